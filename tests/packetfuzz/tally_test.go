package packetfuzz

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weirnet/weir/datapath"
)

// tally is what a run did: that it did too little would be an error as well.
type tally struct {
	frames  int
	stubs   int // not taken by this kernel's test run
	classes [classes]int
	past    int            // by a redirect to or from another node
	allowed int            // whole packets that policy allows: all passed
	clean   int            // and as generated, unchanged
	kinds   map[string]int // passes, by what the packet was
	drops   map[datapath.Reason]uint64
}

func (s *tally) note(clean bool, cl class, r *reading, must bool) {
	if s.kinds == nil {
		s.kinds = map[string]int{}
	}
	s.frames++
	s.classes[cl]++
	if must {
		s.allowed++
		if clean {
			s.clean++
		}
	}
	if cl != dropped && cl != unjudged {
		s.kinds[kindOf(r)]++
	}
}

// kind names a packet that passed.
func kindOf(r *reading) string {
	name := r.kind.String()
	known := map[uint8]string{icmp4: "echo", icmp6: "echo", tcp: "TCP", udp: "UDP", sctp: "SCTP", gre: "GRE", esp: "ESP", ipip: "IP in IP"}
	switch protocol, ok := known[r.protocol]; {
	case r.first:
		name = "first fragment"
	case r.kind == flowPacket && ok:
		name = protocol
	case r.kind == flowPacket:
		name = "other protocol"
	}
	if r.kind != arpMessage && r.source.Is6() {
		name += " v6"
	}
	return name
}

// reasons takes the kernel's counts of drops, which have to be as many as were seen.
func (s *tally) reasons(drops map[datapath.Reason]uint64) error {
	s.drops = drops
	sum := 0
	for _, n := range drops {
		sum += int(n)
	}
	if sum != s.classes[dropped] {
		return fmt.Errorf("the kernel counted %d drops, there were %d", sum, s.classes[dropped])
	}
	return nil
}

func (s *tally) add(o *tally) {
	s.frames += o.frames
	s.stubs += o.stubs
	s.past += o.past
	s.allowed += o.allowed
	s.clean += o.clean
	for i, n := range o.classes {
		s.classes[i] += n
	}
	if s.kinds == nil {
		s.kinds, s.drops = map[string]int{}, map[datapath.Reason]uint64{}
	}
	for k, n := range o.kinds {
		s.kinds[k] += n
	}
	for r, n := range o.drops {
		s.drops[r] += n
	}
}

func (s *tally) String() string {
	var parts []string
	for i, n := range s.classes {
		parts = append(parts, fmt.Sprintf("%d %s", n, class(i)))
	}
	return fmt.Sprintf("%d frames (%s, %d not taken), %d past the stack, %d whole and allowed of which all passed; passes %v; drops %v",
		s.frames, strings.Join(parts, ", "), s.stubs, s.past, s.allowed, s.kinds, s.drops)
}

// reasons that a frame alone, or one after another, can bring about.
var reached = []string{
	"policy", "unmanaged peer", "spoofed source", "bad source", "foreign source", "ethertype", "vlan", "truncated",
	"bad header", "ip options", "extension header", "fragment short", "fragment unknown", "tcp flags", "tcp stray",
	"icmp type", "icmp unrelated", "neighbour", "multicast", "family", "destination",
}

// check holds floors: a parser that drops everything passes nothing misread, too.
func (s *tally) check(t *testing.T) {
	t.Helper()
	count := map[string]uint64{}
	for r, n := range s.drops {
		count[r.String()] = n
	}
	for _, name := range reached {
		if count[name] == 0 {
			t.Errorf("no frame was dropped for %q", name)
		}
	}
	if s.past < s.frames/1000 {
		t.Errorf("only %d of %d frames passed the stack", s.past, s.frames)
	}
	if s.allowed < s.frames/10 || s.clean < s.frames/20 {
		t.Errorf("only %d of %d frames were whole and allowed, %d of them as generated", s.allowed, s.frames, s.clean)
	}
	for c, n := range s.classes {
		if n == 0 {
			t.Errorf("no frame ended as %q", class(c))
		}
	}
	for _, kind := range []string{"TCP", "UDP", "SCTP", "echo", "GRE", "ESP", "IP in IP", "other protocol", "first fragment", "later fragment", "ICMP error", "ARP", "NDP"} {
		if s.kinds[kind] == 0 && kind != "NDP" || s.kinds[kind+" v6"] == 0 && kind != "ARP" {
			t.Errorf("no %s passed, or none of one family", kind)
		}
	}
}
