package packet

import (
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

// An address whose endpoint is not known as one of this node's: its pod is judged where
// the stack hands the packet over.
func TestPodKnownAsNobodysIsJudgedAtItsDoor(t *testing.T) {
	s := newScene(t, closed)
	s.State.Peers[prefix(s.b.Addr4+"/32")] = datapath.Peer{Identity: idB}
	s.Commit(t)
	for range 3 {
		f := testnode.UDP(s.c.Addr4, 9, s.b.Addr4, 53)
		r := s.from(t, "out", s.c, f, next)
		s.to(t, "in", s.b, f, s.c.Ifindex, uint16(r.Mark), dropped(bpf.WeirDropReasonDROP_POLICY))
	}
}
