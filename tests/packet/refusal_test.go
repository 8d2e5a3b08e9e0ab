package packet

import (
	"reflect"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

var byPolicy = dropped(bpf.WeirDropReasonDROP_POLICY)

// A denial is remembered by the packet's own fields. What differs from it in anything that
// decides is judged for itself.
func TestARefusalIsOfItsOwnPacketsAlone(t *testing.T) {
	s := newScene(t, closed)
	s.Set(s.a, toWorld, open)
	s.Commit(t)
	refused := func(what string, p testnode.Pod, f testnode.Frame) {
		t.Helper()
		for range 2 {
			s.from(t, what, p, f, byPolicy)
			f.Sport++
		}
	}
	refused("a to c", s.a, tcp(s.a.Addr4, 1000, s.c.Addr4, 80, "S"))
	refused("likewise, IPv6", s.a, tcp(s.a.Addr6, 1000, s.c.Addr6, 80, "S"))
	refused("excepted", s.a, tcp(s.a.Addr4, 1000, "203.0.113.13", 80, "S"))
	s.from(t, "beside it", s.a, tcp(s.a.Addr4, 1000, "203.0.113.12", 80, "S"), next)
	s.from(t, "another source", s.a, tcp("10.0.0.77", 1000, s.c.Addr4, 80, "S"), dropped(bpf.WeirDropReasonDROP_SPOOFED_SOURCE))
	s.from(t, "another's source", s.a, tcp(s.b.Addr4, 1000, s.c.Addr4, 80, "S"), dropped(bpf.WeirDropReasonDROP_SPOOFED_SOURCE))
	s.from(t, "another pod", s.b, tcp(s.b.Addr4, 1000, s.c.Addr4, 80, "S"), redirected)
	for _, flags := range []string{"SA", "R", "FA", "A"} {
		want := dropped(bpf.WeirDropReasonDROP_TCP_STRAY)
		if flags == "A" {
			want = redirected // perhaps an answer whose entry was lost: c may connect to a
		}
		s.from(t, "not a beginning: "+flags, s.a, tcp(s.a.Addr4, 999, s.c.Addr4, 80, flags), want)
	}
	refused("UDP", s.a, testnode.UDP(s.a.Addr4, 1000, s.c.Addr4, 80))
	refused("SCTP", s.a, withProtocol(testnode.UDP(s.a.Addr4, 1000, s.c.Addr4, 80), layers.IPProtocolSCTP))
	refused("echo, whose id is the port 0", s.a, testnode.Echo(s.a.Addr4, s.c.Addr4, 0, false))
	s.from(t, "the echo's reply", s.a, testnode.Echo(s.a.Addr4, s.c.Addr4, 0, true), dropped(bpf.WeirDropReasonDROP_ICMP_TYPE))

	// At the receiver's door: who sent it is told by where it came from, not by its source.
	f := tcp(outside, 1000, s.b.Addr4, 80, "S")
	for range 2 {
		s.to(t, "from outside", s.b, f, s.uplink, 0, byPolicy)
		f.Sport++
	}
	s.to(t, "the node with that source", s.b, f, 0, 0, next)
	s.to(t, "another address", s.b, tcp(outside, 1000, "10.0.0.77", 80, "S"), s.uplink, 0, dropped(bpf.WeirDropReasonDROP_DESTINATION))
	s.to(t, "another pod's door", s.c, tcp(outside, 1000, s.c.Addr4, 80, "S"), s.uplink, 0, next)
	f.Sport++
	s.to(t, "of a shared link, judged", s.b, f, s.uplink, uint16(s.a.Number)|uint16(bpf.WeirMarkBitsMARK_SHARED|bpf.WeirMarkBitsMARK_EGRESS|bpf.WeirMarkBitsMARK_INGRESS), next)
	for range 2 {
		f.Sport++
		s.to(t, "pod c behind masquerade", s.b, f, s.c.Ifindex, uint16(s.c.Number), byPolicy)
	}
	s.Set(s.b, open, fromA80)
	s.Set(s.a, open, open)
	s.Commit(t)
	f.Sport++
	s.to(t, "pod c in the next epoch", s.b, f, s.c.Ifindex, uint16(s.c.Number), byPolicy)
	f.Sport++
	s.to(t, "pod a with the same source", s.b, f, s.a.Ifindex, uint16(s.a.Number), next)
}

func withProtocol(f testnode.Frame, p layers.IPProtocol) testnode.Frame {
	f.Protocol = p
	return f
}

// What is remembered is found, at both hooks and by the packet alone: what identities had to
// say of it is taken away in between.
func TestARefusalIsFound(t *testing.T) {
	s := newScene(t, closed)
	send := map[string]func(sport uint16){
		"from_pod": func(sport uint16) { s.from(t, "refused", s.a, tcp(s.a.Addr4, sport, s.b.Addr4, 80, "S"), byPolicy) },
		"IPv6": func(sport uint16) {
			s.from(t, "refused", s.a, testnode.UDP(s.a.Addr6, sport, s.b.Addr6, 80), byPolicy)
		},
		"to_pod": func(sport uint16) {
			s.to(t, "refused", s.b, tcp(outside, sport, s.b.Addr4, 80, "S"), s.uplink, 0, byPolicy)
		},
		"to_pod, of a pod": func(sport uint16) {
			s.to(t, "refused", s.b, tcp(nodeAddr, sport, s.b.Addr4, 80, "S"), s.c.Ifindex, uint16(s.c.Number), byPolicy)
		},
	}
	cached := func() uint64 {
		t.Helper()
		c, err := s.Kernel.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return c.DenialsCached
	}
	for name, f := range send {
		f(1000)
		if err := s.ForgetDenials(); err != nil {
			t.Fatal(err)
		}
		before := cached()
		f(1001)
		if cached() != before+1 {
			t.Errorf("%s: the same again was judged again", name)
		}
	}
}

// A refusal holds for the epoch that it was judged in, and for nothing that has an entry.
func TestARefusalEndsWithItsEpoch(t *testing.T) {
	s := newScene(t, closed)
	syn := tcp(s.a.Addr4, 1000, s.b.Addr4, 80, "S")
	send := func(what string, want outcome) {
		t.Helper()
		syn.Sport++
		s.from(t, what, s.a, syn, want)
	}
	for range 3 {
		send("refused", byPolicy)
		send("refused again", byPolicy)
		s.Set(s.b, open, fromA80)
		s.Commit(t)
		send("allowed by the next epoch", redirected)
		open := syn
		s.Set(s.b, 1, closed)
		s.Commit(t)
		send("refused by the one after", byPolicy)
		open.Sport++
		w := open
		w.Sport--
		s.from(t, "the flow that is revoked", s.a, flags(w, "A"), byPolicy)
	}

	// A flow of before is judged as what it is, and its end is told.
	s.Set(s.b, open, open)
	s.Commit(t)
	flow := testnode.UDP(s.a.Addr4, 1000, s.b.Addr4, 53)
	s.from(t, "a flow", s.a, flow, redirected)
	s.Set(s.b, open, closed)
	s.Commit(t)
	other := flow
	other.Sport++
	s.from(t, "refused", s.a, other, byPolicy)
	before, err := s.Kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	s.from(t, "the flow", s.a, flow, byPolicy)
	if after, err := s.Kernel.Counters(); err != nil || after.FlowsRevoked != before.FlowsRevoked+1 {
		t.Errorf("%d flows revoked, want %d (%v)", after.FlowsRevoked, before.FlowsRevoked+1, err)
	}

	// An address that had no peer of its own gets one: it is judged by that at once.
	s.Set(s.a, toB, open)
	s.Commit(t)
	unmanaged := dropped(bpf.WeirDropReasonDROP_UNMANAGED_PEER)
	newcomer := tcp(s.a.Addr4, 1000, "10.0.0.200", 80, "S")
	for range 2 {
		s.from(t, "a newcomer", s.a, newcomer, unmanaged)
		newcomer.Sport++
	}
	s.State.Peers[prefix("10.0.0.200/32")] = datapath.Peer{Identity: idB}
	s.Commit(t)
	s.from(t, "who is known now", s.a, newcomer, next)

	// A claimed address and port is NAT's to name, once the commit that claims it is in force.
	service := datapath.Frontend{Addr: mustAddr("10.96.0.1"), Protocol: datapath.TCP, Port: 443}
	s.Set(s.a, toWorld, open)
	s.Commit(t)
	claimed := tcp(s.a.Addr4, 1000, "10.96.0.1", 443, "S")
	s.from(t, "not claimed", s.a, claimed, byPolicy)
	s.from(t, "not claimed", s.a, claimed, byPolicy)
	s.State.Frontends[service] = struct{}{}
	s.Commit(t)
	s.from(t, "claimed", s.a, claimed, next)
	delete(s.State.Frontends, service)
	s.Commit(t)
	s.from(t, "not any more", s.a, claimed, byPolicy)
}

// An answer is its flow's, though what it says of itself was refused as a beginning.
func TestARefusalIsNoAnswersFate(t *testing.T) {
	s := newScene(t, open)
	s.Set(s.b, toWorld, open)
	s.Commit(t)
	answer := testnode.UDP(s.b.Addr4, 53, s.a.Addr4, 1000)
	s.from(t, "not asked", s.b, answer, byPolicy)
	s.from(t, "not asked", s.b, answer, byPolicy)
	s.from(t, "asked", s.a, testnode.UDP(s.a.Addr4, 1000, s.b.Addr4, 53), redirected)
	s.from(t, "an answer", s.b, answer, redirected)
	other := answer
	other.Sport = 54
	s.from(t, "of another port", s.b, other, byPolicy)
}

// Each refused packet is recorded as the first was, and counted.
func TestARefusalIsToldLikeTheFirst(t *testing.T) {
	w := newScene(t, closed).watch(t)
	f := tcp(w.a.Addr4, 1000, w.b.Addr4, 80, "S")
	door := tcp(outside, 1000, w.b.Addr4, 80, "S")
	const times = 10
	for range times {
		w.from(t, "refused", w.a, f, byPolicy)
		w.to(t, "refused at the door", w.b, door, w.uplink, 0, byPolicy)
	}
	for _, f := range []testnode.Frame{f, door} {
		told := w.events(datapath.EventDenied, f, times)
		for _, e := range told[1:] {
			e.Time = told[0].Time
			if !reflect.DeepEqual(e, told[0]) {
				t.Fatalf("told %+v, of the first %+v", e, told[0])
			}
		}
	}
	counts, err := w.Kernel.Denials()
	if err != nil {
		t.Fatal(err)
	}
	var packets uint64
	for _, c := range counts {
		packets += c.Packets
	}
	if packets != 2*times {
		t.Errorf("%d packets counted, want %d: %+v", packets, 2*times, counts)
	}
}

// Whoever floods has the places of its own interface, and no other.
func TestRefusalsAreNotWashedOut(t *testing.T) {
	s := newScene(t, closed)
	kept := func() map[uint32]int {
		t.Helper()
		out := map[uint32]int{}
		refusals, err := s.Refusals()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range refusals {
			out[r.Ifindex]++
		}
		return out
	}
	s.from(t, "refused", s.a, tcp(s.a.Addr4, 1000, s.b.Addr4, 80, "S"), byPolicy)
	for port := range uint16(2000) {
		s.FromPod(t, s.c, tcp(s.c.Addr4, 1000, s.b.Addr4, 1+port, "S"))
	}
	got := kept()
	if got[uint32(s.a.Ifindex)] != 1 {
		t.Errorf("a has %d refusals remembered, want its one", got[uint32(s.a.Ifindex)])
	}
	if n := got[uint32(s.c.Ifindex)]; n < 2 || n > int(bpf.WeirLimitsREFUSALS) {
		t.Errorf("c has %d refusals remembered, want up to %d", n, bpf.WeirLimitsREFUSALS)
	}
}
