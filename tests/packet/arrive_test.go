package packet

import (
	"bytes"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/testnode"
)

// in has f come in by the ways' device, addressed to it: into the pod p, or to the stack with a mark.
// A tunnel's key cannot be given to TEST_RUN: what came out of it is played by the uplink's hook.
func (n *nodes) in(what string, p testnode.Pod, f testnode.Frame, intoPod bool, mark uint16) testnode.Result {
	n.t.Helper()
	return n.bytesIn(what, p, f.Bytes(n.t), n.device, intoPod, mark)
}

func (n *nodes) bytesIn(what string, p testnode.Pod, frame []byte, device int, intoPod bool, mark uint16) testnode.Result {
	n.t.Helper()
	want := next
	if intoPod {
		want, mark = redirected, 0
	}
	frame = append(slices.Clone(n.mac), frame[6:]...)
	got := n.expect(n.t, what, want, func() testnode.Result { return n.Run(n.t, "from_network", frame, device, device, 0) })
	if got.Verdict == testnode.Drop {
		return got
	}
	if got.Mark != mark {
		n.t.Errorf("%s: mark %#x, want %#x", what, got.Mark, mark)
	}
	if head := append([]byte{2, 0, 0, 0, 0, byte(p.Number)}, bytes.Repeat([]byte{0xee}, 6)...); intoPod && !bytes.Equal(got.Frame[:12], head) {
		n.t.Errorf("%s: the frame's hardware addresses are %x, want %x", what, got.Frame[:12], head)
	}
	return got
}

// refused has f come in and be dropped by policy, with the record that the pod's own hook makes.
func (n *nodes) refused(what string, p testnode.Pod, f testnode.Frame, reason bpf.WeirDropReason) {
	n.t.Helper()
	frame := append(slices.Clone(n.mac), f.Bytes(n.t)[6:]...)
	before := len(n.events(datapath.EventDenied, f, 0))
	n.expect(n.t, what, dropped(reason), func() testnode.Result { return n.Run(n.t, "from_network", frame, n.device, n.device, 0) })
	at := n.events(datapath.EventDenied, f, before+1)[before]
	n.to(n.t, what+", at the pod", p, f, n.device, 0, dropped(reason))
	door := n.events(datapath.EventDenied, f, before+2)[before+1]
	door.Time = at.Time
	if at != door {
		n.t.Errorf("%s: the record is\n%+v\nthe pod's hook's\n%+v", what, at, door)
	}
}

// What another node's pod says goes straight into the pod, from a flow's first packet to its last, and
// so does what the pod answers.
func TestFromAnotherNode(t *testing.T) {
	each(t, fromAAny, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		for name, f := range begins(two, own(n.b), 1000) {
			n.in(name, n.b, f, true, 0)
			if got := n.path(f); got != "nodes" {
				t.Errorf("%s: the path is %q", name, got)
			}
			e := n.events(datapath.EventNew, f, 1)[0]
			if e.Path != uint8(bpf.WeirFlowPathPATH_BPF) || e.Identity != [2]identity.Number{idTwo, idB} || e.Endpoint[1] != n.b.Number || e.Rule[1] != ruleAAny {
				t.Errorf("%s: the event is %+v", name, e)
			}
			back := answer(f, "SA")
			if n.out(name+", answered", n.b, back, true); n.flow(f).State&uint32(bpf.WeirFlowStateFLOW_REPLIED) == 0 {
				t.Errorf("%s: not replied to", name)
			}
			n.in(name+", again", n.b, f, true, 0)
			if flow := n.flow(f); flow.Side[0].Packets+flow.Side[1].Packets != 3 {
				t.Errorf("%s: counted %d and %d packets", name, flow.Side[0].Packets, flow.Side[1].Packets)
			}
		}
		for name, f := range begins(own(n.a), two, 1001) {
			n.out(name+" out", n.a, f, true)
			n.in(name+" out, answered", n.a, answer(f, "SA"), true, 0)
		}
		syn := tcp(two, 1000, own(n.b), 80, "S")
		n.in("data", n.b, flags(syn, "PA"), true, 0)
		n.in("FIN", n.b, flags(syn, "FA"), true, 0)
		n.out("FIN back", n.b, answer(syn, "FA"), true)
		n.in("SYN on the closed connection", n.b, syn, true, 0)
	})
}

const judged = testnode.MarkEgress | testnode.MarkIngress

// What is not quite that goes to the stack, without a mark: the pod's hook judges it.
func TestFromAnotherNodeByTheStack(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		a, b := own(n.a), own(n.b)
		syn := tcp(two, 2000, b, 80, "S")
		for what, f := range map[string]testnode.Frame{
			"data of no connection": tcp(two, 2001, b, 80, "PA"), "SYN+ACK": tcp(two, 2002, b, 80, "SA"), "FIN": tcp(two, 2003, b, 80, "FA"),
			"RST":  tcp(two, 2004, b, 80, "R"),
			"SCTP": {Src: two, Dst: b, Protocol: layers.IPProtocolSCTP, Sport: 2005, Dport: 80}, "GRE": {Src: two, Dst: b, Protocol: layers.IPProtocolGRE},
			"an answer to no request": testnode.Echo(two, b, 2006, true),
		} {
			n.in(what, n.b, f, false, 0)
			if got := n.path(f); got != "" {
				t.Errorf("%s: there is a flow, its path %q", what, got)
			}
		}
		first := piece(t, testnode.Frame{Src: two, Dst: b, Protocol: layers.IPProtocolUDP, Sport: 2006, Dport: 53, Payload: make([]byte, 200)}, 7, 0, 64, true)
		n.bytesIn("a first fragment", n.b, first, n.device, false, 0)
		other := n.AddDevice(t, "other"+two[:2])
		n.bytesIn("by another device", n.b, syn.Bytes(t), other, false, 0)
		if got := n.Run(t, "from_network", syn.Bytes(t), n.device, n.device, 0); got.Verdict != testnode.Next || n.flow(syn) != nil {
			t.Errorf("to another's hardware address: verdict %d, flow %v", got.Verdict, n.flow(syn))
		}

		ep := n.State.Endpoints[n.b.Number]
		for what, set := range map[string]func(*datapath.Endpoint){
			"a pod that takes no redirect": func(e *datapath.Endpoint) { e.NoRedirect = true },
			"a pod on a shared link":       func(e *datapath.Endpoint) { e.Shared = true },
		} {
			other := ep
			set(&other)
			n.State.Endpoints[n.b.Number] = other
			n.Commit(t)
			n.in(what, n.b, syn, false, 0)
			n.State.Endpoints[n.b.Number] = ep
			n.Commit(t)
		}

		n.in("SYN", n.b, syn, true, 0)
		n.bytesIn("its data by another device", n.b, flags(syn, "A").Bytes(t), other, false, judged)
		n.out("a pod's own", n.a, tcp(a, 2007, two, 80, "S"), true)
		n.bytesIn("answered by another device", n.a, tcp(two, 80, a, 2007, "SA").Bytes(t), other, false, judged)
	})
	n := newNodes(t, false, open, loader.Config{})
	for _, from := range []string{"192.0.2.2", three4, outside, "10.1.9.9"} {
		n.in("from "+from, n.b, tcp(from, 2010, n.b.Addr4, 80, "S"), false, 0)
	}
	for _, to := range []string{nodeAddr, "10.0.0.77", two4, outside} {
		n.in("to "+to, n.b, tcp(two4, 2011, to, 80, "S"), false, 0)
	}
	foreign := dropped(bpf.WeirDropReasonDROP_FOREIGN_SOURCE)
	for _, from := range []string{n.a.Addr4, nodeAddr} {
		n.network(t, "with the address "+from, "from_network", tcp(from, 2012, n.b.Addr4, 80, "S"), n.device, 0, foreign)
	}
	n.Config.NoHostRouting = true
	n.must(n.Kernel.Close())
	n.Load(t)
	n.Commit(t)
	n.in("turned off", n.b, tcp(two4, 2013, n.b.Addr4, 80, "S"), false, 0)
}

// Denials are recorded, remembered and charged as they are at the pod's hook.
func TestRefusedFromAnotherNode(t *testing.T) {
	each(t, fromA80, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		for name, f := range begins(two, own(n.b), 3000) {
			if name == "TCP" {
				f.Dport = 81
			}
			n.refused(name, n.b, f, bpf.WeirDropReasonDROP_POLICY)
			n.refused(name+" again", n.b, f, bpf.WeirDropReasonDROP_POLICY)
			if got := n.path(f); got != "" {
				t.Errorf("%s: there is a flow, its path %q", name, got)
			}
		}
		n.in("TCP 80", n.b, tcp(two, 3000, own(n.b), 80, "S"), true, 0)
		ep := n.State.Endpoints[n.b.Number]
		ep.Egress, ep.Ingress = 0, 0
		n.State.Endpoints[n.b.Number] = ep
		n.Commit(t)
		defer n.Commit(t)
		defer n.Set(n.b, open, fromA80)
		n.refused("a pod without rulesets", n.b, tcp(two, 3001, own(n.b), 80, "S"), bpf.WeirDropReasonDROP_NO_RULESET)
	})
}

// A policy's change reaches what comes from another node, and its answers.
func TestRevokedFromAnotherNode(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		for _, set := range []struct {
			ruleset uint32
			allowed bool
		}{{fromAAny, true}, {closed, false}, {open, true}} {
			flows := begins(two, own(n.b), 4000)
			if n.flow(flows["TCP"]) == nil {
				for name, f := range flows {
					n.in(name, n.b, f, true, 0)
					n.out(name+", answered", n.b, answer(f, "SA"), true)
				}
			}
			n.Set(n.b, open, set.ruleset)
			n.Commit(t)
			for name, f := range flows {
				if name == "TCP" {
					f = flags(f, "A")
				}
				if set.allowed {
					n.in(name+", allowed", n.b, f, true, 0)
					n.out(name+", its answer allowed", n.b, answer(f, "A"), true)
					continue
				}
				n.network(t, name+", forbidden", "from_network", f, n.device, 0, policyDrop)
				n.from(t, name+", its answer forbidden", n.b, answer(f, "A"), policyDrop)
			}
		}
	})
}

// Datagrams in pieces the stack puts together, whatever their flow's path; it gets them judged.
func TestFragmentsFromAnotherNode(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		f := testnode.UDP(two, 5000, own(n.b), 53)
		n.in("a datagram", n.b, f, true, 0)
		f.Payload = make([]byte, 200)
		for i, order := range []func(datagram) [][]byte{
			func(d datagram) [][]byte { return [][]byte{d.first, d.middle, d.last} },
			func(d datagram) [][]byte { return [][]byte{d.last, d.first, d.middle} },
		} {
			d := pieces(t, f, uint32(7+i))
			for _, frame := range order(d) {
				mark := uint16(0)
				if &frame[0] == &d.first[0] {
					mark = judged
				}
				n.bytesIn("a piece", n.b, frame, n.device, false, mark)
			}
			door := func(what string, frame []byte) {
				n.expect(t, what, next, func() testnode.Result { return n.Run(t, "to_pod", frame, n.b.Ifindex, n.device, 0) })
			}
			door("a later piece at the pod", d.last)
			door("another", d.middle)
		}
		n.in("a datagram again", n.b, testnode.UDP(two, 5000, own(n.b), 53), true, 0)
	})
}

// Errors about a flow past the stack go past it, too: of such flows it knows nothing.
func TestErrorsBetweenNodes(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		router := map[bool]string{false: "198.51.100.77", true: "2001:db8:77::1"}[mustAddr(two).Is6()]
		v6 := 0
		if mustAddr(two).Is6() {
			v6 = 1
		}
		other := n.AddDevice(t, "aside"+two[:2])
		for name, f := range begins(own(n.a), two, 6000) {
			n.out(name, n.a, f, true)
			for _, typ := range errorTypes[v6] {
				n.in(name+": from its receiver", n.a, errorAbout(t, two, f, typ, 0), true, 0)
				n.in(name+": from a router", n.a, errorAbout(t, router, f, typ, 0), true, 0)
			}
			n.bytesIn(name+": by another device", n.a, errorAbout(t, two, f, errorTypes[v6][0], 0).Bytes(t), other, false, 0)
		}
		for name, f := range begins(two, own(n.b), 6001) {
			n.in(name, n.b, f, true, 0)
			n.out(name+": from the pod", n.b, unreachable(t, own(n.b), f), true)
			n.Set(n.c, open, closed)
			n.Commit(t)
			n.out(name+": from the pod, of another epoch", n.b, unreachable(t, own(n.b), f), true)
			n.Set(n.c, open, open)
			n.Commit(t)
			n.in(name+" answered, an error about that, of another epoch", n.b, unreachable(t, two, answer(f, "SA")), true, 0)
		}
		made := n.counters().FlowsNew
		forged := testnode.UDP(own(n.b), 6002, two, 53)
		n.from(t, "about what was not sent", n.b, unreachable(t, own(n.b), testnode.UDP(two, 6002, own(n.b), 53)), unrelated)
		n.in("about what was not sent, from outside", n.b, unreachable(t, two, forged), false, 0)
		n.to(t, "which the pod's hook refuses", n.b, unreachable(t, two, forged), n.device, 0, unrelated)
		crooked := unreachable(t, two, testnode.UDP(own(n.a), 6000, two, 53))
		crooked.Dst = own(n.b)
		n.in("about another pod's", n.b, crooked, false, 0)
		n.to(t, "which the pod's hook refuses", n.b, crooked, n.device, 0, unrelated)
		if got := n.counters().FlowsNew; got != made {
			t.Errorf("errors made %d flows", got-made)
		}
		stack := tcp(own(n.a), 6003, two, 80, "S")
		clear(n.State.Ways)
		n.Commit(t)
		n.must(n.Kernel.Settle())
		n.out("by the stack", n.a, stack, false)
		n.in("without a way", n.a, unreachable(t, two, testnode.UDP(own(n.a), 6000, two, 53)), false, 0)
		n.ways()
		n.Commit(t)
		n.must(n.Kernel.Settle())
		n.in("about a flow of the stack's", n.a, unreachable(t, two, stack), false, 0)
	})
}

// An error from an address that nobody has is no pod's business: its own hook says so, too.
func TestErrorFromNowhere(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		f := testnode.UDP(own(n.a), 6000, two, 53)
		n.out("out", n.a, f, true)
		odd := []string{"0.0.0.0", "224.0.0.1", "255.255.255.255"}
		if mustAddr(two).Is6() {
			odd = []string{"::", "ff02::1"}
		}
		for _, src := range odd {
			n.in("an error from "+src, n.a, unreachable(t, src, f), false, 0)
		}
	})
}
