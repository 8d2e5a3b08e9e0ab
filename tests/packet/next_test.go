package packet

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

func (s *scene) switchTo(t *testing.T, next *loader.Loaded, flows, left int) {
	t.Helper()
	took, stayed, err := next.Switch(s.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if took != flows || stayed != left {
		t.Errorf("%d flows taken over, %d left; want %d and %d", took, stayed, flows, left)
	}
}

// Review 18: programs on maps of other sizes take over: until the store the old ones judge,
// after it the new ones, and no flow is lost.
func TestNewMapsKeepFlows(t *testing.T) {
	s := newScene(t, fromA80)
	s.Commit(t)
	web := tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S")
	s.from(t, "SYN", s.a, web, redirected)
	s.from(t, "query", s.a, testnode.UDP(s.a.Addr6, 5000, s.c.Addr6, 53), redirected)
	s.from(t, "to be revoked", s.c, testnode.UDP(s.c.Addr4, 1, s.a.Addr4, 53), redirected)
	s.from(t, "to the outside", s.b, testnode.UDP(s.b.Addr4, 1, outside, 53), next)
	s.Set(s.a, open, closed) // answers come all the same
	s.Commit(t)
	s.from(t, "revoked", s.c, testnode.UDP(s.c.Addr4, 1, s.a.Addr4, 53), dropped(bpf.WeirDropReasonDROP_POLICY))
	epoch := s.Kernel.Epoch()

	sizes := loader.Sizes{"flows": 2048, "facts": 4096}
	if left := s.Next(t, sizes); left != nil { // an agent that dies here has changed nothing
		s.from(t, "by the old programs", s.b, tcp(s.b.Addr4, 80, s.a.Addr4, 1, "SA"), redirected)
	}
	n := s.Next(t, sizes)
	s.Set(s.b, open, fromA80)
	s.Commit(t)
	if now := s.Kernel.Epoch(); now <= epoch {
		t.Errorf("epoch %d after %d", now, epoch)
	}
	s.from(t, "still by the old programs", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "A"), redirected)
	s.switchTo(t, n, 4, 0)

	s.from(t, "answer", s.b, tcp(s.b.Addr4, 80, s.a.Addr4, 1, "A"), redirected)
	s.from(t, "data", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "A"), redirected)
	s.from(t, "an answer that is no flow of its own", s.c, testnode.UDP(s.c.Addr6, 53, s.a.Addr6, 5000), redirected)
	s.from(t, "another is denied", s.c, testnode.UDP(s.c.Addr6, 53, s.a.Addr6, 5001), dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "still revoked", s.c, testnode.UDP(s.c.Addr4, 1, s.a.Addr4, 53), dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "denied as before", s.c, tcp(s.c.Addr4, 9, s.b.Addr4, 80, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))

	tables, err := s.Tables()
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	key, side := testnode.FlowKey(netip.MustParseAddrPort(s.a.Addr4+":1"), netip.MustParseAddrPort(s.b.Addr4+":80"), 6)
	var f bpf.WeirFlow
	if ok, err := tables.Flow(&key, &f); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if f.Side[side].Packets != 3 || f.Side[side^1].Packets != 2 {
		t.Errorf("counted %d and %d packets, want 3 and 2, from both tables", f.Side[side].Packets, f.Side[side^1].Packets)
	}
	if n := s.Kernel.FlowCount(); n != 4 {
		t.Errorf("%d flows, want 4", n)
	}
	for p, want := range map[testnode.Pod]uint64{s.a: 2, s.b: 1, s.c: 1} {
		if n, err := s.Kernel.FlowsOf(p.Number); n != want || err != nil {
			t.Errorf("pod %d is charged for %d flows, want %d (%v)", p.Number, n, want, err)
		}
	}

	s.Load(t) // adopted: they are the maps in force
	s.from(t, "by programs loaded again", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "A"), redirected)
}

// A table that holds less takes what it can, and says what it left.
func TestSmallerTableLeavesFlows(t *testing.T) {
	s := newSceneWith(t, open, loader.Config{FlowShare: 4, Sizes: loader.Sizes{"flows": 64}})
	for i := range 30 {
		s.from(t, "flow", s.a, testnode.UDP(s.a.Addr4, uint16(1000+i), s.b.Addr4, 53), redirected)
	}
	n := s.Next(t, loader.Sizes{"flows": 20})
	s.Commit(t)
	s.switchTo(t, n, 12, 18) // its share of 4, and 20 - 3 shares
	s.from(t, "a neighbour has its share", s.c, testnode.UDP(s.c.Addr4, 1, s.b.Addr4, 53), redirected)
	before := s.Drops(t)
	s.FromPod(t, s.a, testnode.UDP(s.a.Addr4, 1, s.b.Addr4, 53))
	if d := diff(before, s.Drops(t)); d[datapath.Reason(bpf.WeirDropReasonDROP_FLOW_SHARE)] != 1 {
		t.Errorf("dropped for %v, want the share", d)
	}
}
