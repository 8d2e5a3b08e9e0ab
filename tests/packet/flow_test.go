package packet

import (
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

const (
	mE  = testnode.MarkEgress
	mEI = testnode.MarkEgress | testnode.MarkIngress
)

func tcp(src string, sport uint16, dst string, dport uint16, flags string) testnode.Frame {
	return testnode.TCP(src, sport, dst, dport, flags)
}

// Both families, one code path: a connection between pods goes by BPF both ways.
func TestConnectionBetweenPods(t *testing.T) {
	s := newScene(t, fromA80)
	for _, v := range [][2]string{{s.a.Addr4, s.b.Addr4}, {s.a.Addr6, s.b.Addr6}} {
		a, b := v[0], v[1]
		s.from(t, "SYN", s.a, tcp(a, 1000, b, 80, "S"), redirected)
		s.from(t, "SYN+ACK", s.b, tcp(b, 80, a, 1000, "SA"), redirected)
		s.from(t, "ACK", s.a, tcp(a, 1000, b, 80, "A"), redirected)
		s.from(t, "other port", s.a, tcp(a, 1000, b, 81, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))
	}
	s.from(t, "c to b", s.c, tcp(s.c.Addr4, 1000, s.b.Addr4, 80, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))
	c, err := s.Kernel.Counters()
	if err != nil || c.FlowsNew != 2 {
		t.Errorf("flows %d (%v), want 2: one entry for both directions, none for a denied packet", c.FlowsNew, err)
	}
}

// The redirected frame is addressed to the pod's interface, from the gateway.
func TestRedirectRewritesAddresses(t *testing.T) {
	s := newScene(t, open)
	r := s.from(t, "SYN", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 2, "S"), redirected)
	want := [12]byte{2, 0, 0, 0, 0, byte(s.b.Number), 0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
	if got := [12]byte(r.Frame[:12]); got != want {
		t.Errorf("frame begins %x, want %x", got, want)
	}
}

// Review 1 (T1): a neighbour's live flow is no way in for a third pod, nor for the outside.
func TestForgedTupleOfALiveFlow(t *testing.T) {
	s := newScene(t, fromAUDP)
	f := testnode.UDP(s.a.Addr4, 1000, s.b.Addr4, 53)
	s.from(t, "a's own", s.a, f, redirected)
	s.from(t, "c forges a", s.c, f, dropped(bpf.WeirDropReasonDROP_SPOOFED_SOURCE))
	s.to(t, "outside forges a", s.b, f, s.uplink, 0, dropped(bpf.WeirDropReasonDROP_FOREIGN_SOURCE))
	s.network(t, "outside forges a at the uplink", "from_network", f, s.uplink, 0, dropped(bpf.WeirDropReasonDROP_FOREIGN_SOURCE))
	s.network(t, "outside to the node's loopback (B35)", "from_network", tcp(outside, 1, "127.0.0.1", 80, "S"), s.uplink, 0, dropped(bpf.WeirDropReasonDROP_DESTINATION))
	s.from(t, "a goes on", s.a, f, redirected)
}

// Review 2 (T3): who comes from the node is told by the interface, not by the address.
func TestNodeAddressIsNoPass(t *testing.T) {
	s := newScene(t, closed)
	f := tcp(nodeAddr, 1000, s.b.Addr4, 80, "S")
	s.to(t, "the node's own probe", s.b, f, 0, 0, next)
	f.Sport++
	s.to(t, "masqueraded from outside", s.b, f, s.uplink, 0, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.to(t, "masqueraded from pod c", s.b, f, s.c.Ifindex, uint16(s.c.Number), dropped(bpf.WeirDropReasonDROP_POLICY))
	s.Set(s.b, open, fromA80)
	s.Commit(t)
	s.to(t, "pod a behind masquerade is a", s.b, f, s.a.Ifindex, uint16(s.a.Number), next)
}

// Review 3 (T7): what goes to a Service is judged where NAT has named its destination.
func TestServiceIsJudgedBehindNAT(t *testing.T) {
	s := newScene(t, open)
	s.State.Frontends[datapath.Frontend{Addr: mustAddr("10.96.0.1"), Protocol: datapath.TCP, Port: 443}] = struct{}{}
	s.State.Frontends[datapath.Frontend{Addr: mustAddr("0.0.0.0"), Protocol: datapath.TCP, Port: 30080}] = struct{}{}
	s.Set(s.a, toWorld, open)
	s.Commit(t)
	undecided := func(what string, p testnode.Pod, f testnode.Frame) {
		t.Helper()
		if r := s.from(t, what, p, f, next); r.Mark != uint16(p.Number) {
			t.Fatalf("%s: mark %#x: want the endpoint alone, not decided", what, r.Mark)
		}
	}
	undecided("to a Service", s.a, tcp(s.a.Addr4, 7, "10.96.0.1", 443, "S"))
	undecided("to a NodePort, not isolated", s.c, tcp(s.c.Addr4, 7, nodeAddr, 30080, "S"))
	// If nobody translates it, it ends at the node, which a may not reach.
	s.from(t, "to a NodePort, the node forbidden", s.a, tcp(s.a.Addr4, 7, nodeAddr, 30080, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))
	n := uint16(s.a.Number)
	s.network(t, "allowed backend", "to_network", tcp(nodeAddr, 7, outside, 80, "S"), s.a.Ifindex, n, next)
	s.network(t, "its answer", "from_network", tcp(outside, 80, nodeAddr, 7, "SA"), s.uplink, 0, next)
	s.network(t, "excepted backend", "to_network", tcp(nodeAddr, 8, "203.0.113.13", 80, "S"), s.a.Ifindex, n, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.network(t, "another backend", "to_network", tcp(nodeAddr, 9, "198.51.100.1", 80, "S"), s.a.Ifindex, n, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.to(t, "a pod as backend", s.b, tcp(s.a.Addr4, 7, s.b.Addr4, 80, "S"), s.a.Ifindex, n, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.network(t, "the node's own", "to_network", tcp(nodeAddr, 9, "198.51.100.1", 80, "S"), 0, 0, next)
}

// An answer to what left through NAT is decided before NAT turns it back.
func TestAnswerThroughNATIsDecided(t *testing.T) {
	s := newScene(t, open)
	s.Set(s.a, toWorld, closed)
	s.Commit(t)
	s.network(t, "out", "to_network", tcp(nodeAddr, 7, outside, 80, "S"), s.a.Ifindex, uint16(s.a.Number), next)
	r := s.network(t, "answer", "from_network", tcp(outside, 80, nodeAddr, 7, "SA"), s.uplink, 0, next)
	if r.Mark != mEI {
		t.Fatalf("mark %#x, want decided", r.Mark)
	}
	s.to(t, "un-NATed answer", s.a, tcp("10.96.0.1", 443, s.a.Addr4, 7, "SA"), s.uplink, r.Mark, next)
	s.to(t, "the same from nowhere", s.a, tcp("10.96.0.1", 443, s.a.Addr4, 7, "SA"), s.uplink, 0, dropped(bpf.WeirDropReasonDROP_TCP_STRAY))
}

// Review 4 (T10): an entry that holds one half does not pass at the other.
func TestHalfJudgedEntry(t *testing.T) {
	s := newScene(t, open)
	f := tcp(s.a.Addr4, 1000, "10.0.0.9", 80, "S")
	r := s.from(t, "to an address not learned", s.a, f, next)
	if r.Mark != uint16(s.a.Number)|mE {
		t.Fatalf("mark %#x, want egress judged and no more", r.Mark)
	}
	d := s.AddPod(t, "10.0.0.9", "", idC, open, closed)
	s.Commit(t)
	s.to(t, "the pod is there now and isolated", d, f, s.a.Ifindex, r.Mark, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "its entry, found from the sender's side", s.a, f, dropped(bpf.WeirDropReasonDROP_POLICY))
}

// Review 5 (T5): the responder's packet, found first after a commit, is judged as an answer.
func TestStaleEntryIsJudgedInItsInitiatorsOrientation(t *testing.T) {
	s := newScene(t, fromAAny)
	s.Set(s.b, closed, fromAAny)
	s.Commit(t)
	for _, f := range [][2]testnode.Frame{
		{tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S"), tcp(s.b.Addr4, 80, s.a.Addr4, 1, "A")},
		{testnode.UDP(s.a.Addr4, 1, s.b.Addr4, 53), testnode.UDP(s.b.Addr4, 53, s.a.Addr4, 1)},
		{testnode.Echo(s.a.Addr4, s.b.Addr4, 7, false), testnode.Echo(s.b.Addr4, s.a.Addr4, 7, true)},
		{testnode.UDP(s.a.Addr6, 1, s.b.Addr6, 53), testnode.UDP(s.b.Addr6, 53, s.a.Addr6, 1)},
		{testnode.Echo(s.a.Addr6, s.b.Addr6, 7, false), testnode.Echo(s.b.Addr6, s.a.Addr6, 7, true)},
	} {
		s.from(t, "request", s.a, f[0], redirected)
		s.Set(s.c, open, []uint32{open, closed}[s.Commit(t)%2]) // any change: the epoch moves
		s.Commit(t)
		s.from(t, "answer first", s.b, f[1], redirected)
	}
	s.from(t, "b's own", s.b, testnode.UDP(s.b.Addr4, 9, s.a.Addr4, 9), dropped(bpf.WeirDropReasonDROP_POLICY))
}

// Promise 3: a revoked flow stops in both directions, whichever packet comes first, and
// comes back when it is allowed again.
func TestRevocation(t *testing.T) {
	s := newScene(t, fromAAny)
	ab, ba := tcp(s.a.Addr4, 1, s.b.Addr4, 80, "A"), tcp(s.b.Addr4, 80, s.a.Addr4, 1, "A")
	s.from(t, "SYN", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S"), redirected)
	s.from(t, "SYN+ACK", s.b, tcp(s.b.Addr4, 80, s.a.Addr4, 1, "SA"), redirected)
	s.Set(s.b, open, closed)
	s.Commit(t)
	s.from(t, "answer after the commit", s.b, ba, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "request after the commit", s.a, ab, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "answer again", s.b, ba, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.Set(s.b, open, fromAAny)
	s.Commit(t)
	s.from(t, "allowed again", s.b, ba, redirected)
	s.from(t, "allowed again", s.a, ab, redirected)
	c, _ := s.Kernel.Counters()
	if c.FlowsRevoked != 1 {
		t.Errorf("%d revoked, want 1", c.FlowsRevoked)
	}
}

// A commit that does not concern a flow restamps it without a walk.
func TestUnconcernedFlowIsRestamped(t *testing.T) {
	s := newScene(t, fromA80)
	s.from(t, "SYN", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S"), redirected)
	s.Set(s.c, closed, closed)
	s.Commit(t)
	s.from(t, "ACK", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "A"), redirected)
	c, _ := s.Kernel.Counters()
	if c.FlowsRestamped != 1 || c.FlowsRejudged != 0 {
		t.Errorf("restamped %d, judged again %d; want 1 and 0", c.FlowsRestamped, c.FlowsRejudged)
	}
}

// Review 5: TCP in the middle of a stream whose entry is lost is picked up, the other way
// round if need be; it opens nothing, and UDP gets no such mercy.
func TestMidStreamPickUp(t *testing.T) {
	s := newScene(t, fromA80)
	s.Set(s.b, closed, fromA80)
	s.Commit(t)
	s.from(t, "b pushes to a's old connection", s.b, tcp(s.b.Addr4, 80, s.a.Addr4, 5, "PA"), redirected)
	s.from(t, "and a acknowledges", s.a, tcp(s.a.Addr4, 5, s.b.Addr4, 80, "A"), redirected)
	for _, flags := range []string{"S", "SA", "FA", "R"} {
		want := dropped(bpf.WeirDropReasonDROP_TCP_STRAY)
		if flags == "S" {
			want = dropped(bpf.WeirDropReasonDROP_POLICY)
		}
		s.from(t, "b opens with "+flags, s.b, tcp(s.b.Addr4, 80, s.a.Addr4, 6, flags), want)
	}
	s.from(t, "b to a port nobody may reach b from", s.b, tcp(s.b.Addr4, 81, s.a.Addr4, 6, "A"), dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "UDP", s.b, testnode.UDP(s.b.Addr4, 80, s.a.Addr4, 6), dropped(bpf.WeirDropReasonDROP_POLICY))
	c, _ := s.Kernel.Counters()
	if c.FlowsPickedUp != 1 {
		t.Errorf("picked up %d, want 1", c.FlowsPickedUp)
	}
}

// Review 6 (T2): the path is the first packet's, for both directions.
func TestPathIsFixedByTheFirstPacket(t *testing.T) {
	s := newScene(t, open)
	s.to(t, "from outside by the stack", s.b, tcp(outside, 1, s.b.Addr4, 80, "S"), s.uplink, 0, next)
	r := s.from(t, "answer", s.b, tcp(s.b.Addr4, 80, outside, 1, "SA"), next)
	if r.Mark != uint16(s.b.Number)|mEI {
		t.Errorf("mark %#x, want decided: NAT may turn it towards anybody", r.Mark)
	}
	s.to(t, "pod to pod behind NAT", s.b, tcp(s.a.Addr4, 3, s.b.Addr4, 80, "S"), s.a.Ifindex, uint16(s.a.Number), next)
	s.from(t, "its answer goes back by the stack", s.b, tcp(s.b.Addr4, 80, s.a.Addr4, 3, "SA"), next)
}

// Review 7 (T8): an old tuple is no way to begin in the other direction.
func TestReverseConnectionOnAnOldTuple(t *testing.T) {
	s := newScene(t, fromAAny)
	s.Set(s.b, closed, fromAAny)
	s.Commit(t)
	a, b := s.a.Addr4, s.b.Addr4
	s.from(t, "SYN", s.a, tcp(a, 1000, b, 8080, "S"), redirected)
	s.from(t, "b begins on it", s.b, tcp(b, 8080, a, 1000, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "SYN+ACK", s.b, tcp(b, 8080, a, 1000, "SA"), redirected)
	s.from(t, "FIN", s.a, tcp(a, 1000, b, 8080, "FA"), redirected)
	s.from(t, "FIN", s.b, tcp(b, 8080, a, 1000, "FA"), redirected)
	s.from(t, "b begins on the closed one", s.b, tcp(b, 8080, a, 1000, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "a begins again", s.a, tcp(a, 1000, b, 8080, "S"), redirected)
	s.from(t, "echo", s.a, testnode.Echo(a, b, 9, false), redirected)
	s.from(t, "reply", s.b, testnode.Echo(b, a, 9, true), redirected)
	s.from(t, "b asks with the same id", s.b, testnode.Echo(b, a, 9, false), dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "a asks c", s.a, testnode.Echo(a, s.c.Addr4, 11, false), redirected)
	s.from(t, "c asks with the same id", s.c, testnode.Echo(s.c.Addr4, a, 11, false), redirected)
	s.from(t, "c answers", s.c, testnode.Echo(s.c.Addr4, a, 11, true), redirected)
	s.from(t, "a answers", s.a, testnode.Echo(a, s.c.Addr4, 11, true), redirected)
	s.from(t, "a reply of no request", s.a, testnode.Echo(a, b, 10, true), dropped(bpf.WeirDropReasonDROP_ICMP_TYPE))
	c, _ := s.Kernel.Counters()
	if c.FlowsEnded != 1 {
		t.Errorf("%d ended, want 1: the one taken over", c.FlowsEnded)
	}
}
