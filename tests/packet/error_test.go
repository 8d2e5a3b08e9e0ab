package packet

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

var unrelated = dropped(bpf.WeirDropReasonDROP_ICMP_UNRELATED)

// unreachable is src's ICMP error about a frame: to who sent it, port unreachable.
func unreachable(t testing.TB, src string, about testnode.Frame) testnode.Frame {
	if mustAddr(src).Is6() {
		return errorAbout(t, src, about, 1, 4)
	}
	return errorAbout(t, src, about, 3, 3)
}

func errorAbout(t testing.TB, src string, about testnode.Frame, typ, code uint8) testnode.Frame {
	f := testnode.Frame{Src: src, Dst: about.Src, Protocol: layers.IPProtocolICMPv4, ICMPType: typ, ICMPCode: code}
	if mustAddr(src).Is6() {
		f.Protocol = layers.IPProtocolICMPv6
	}
	f.Payload = about.Bytes(t)[14:]
	return f
}

// errorTypes are the errors there are, by family: unreachable, time exceeded, parameter
// problem, and IPv6's packet too big.
var errorTypes = [2][]uint8{{3, 11, 12}, {1, 2, 3, 4}}

// Review 22: an error about a packet of a live flow passes, from its receiver and from
// routers on its way, to who sent it, about either direction. It makes no flow.
func TestICMPErrors(t *testing.T) {
	w := newScene(t, open).watch(t)
	port := uint16(1000)
	for i, road := range w.roads() {
		for _, talk := range talks {
			for v6 := range 2 {
				port++
				what := fmt.Sprintf("%s, %s, v6 %d", road.name, talk.name, v6)
				f := begin(road, talk.protocol, port, v6)
				if talk.protocol == portless {
					f.Protocol = portless + layers.IPProtocol(2*i+v6)
				}
				w.exchange(what, road, f, talk.packets)
				before := w.counters()
				for _, typ := range errorTypes[v6] {
					w.report(what, road, f, typ)
					if talk.packets != ">" && talk.packets != ">S" {
						w.report(what+", about the answer", turned(road), answer(f, talk.backward), typ)
					}
				}
				if after := w.counters(); after.FlowsNew != before.FlowsNew {
					t.Errorf("%s: errors made flows", what)
				}
			}
		}
	}
}

// turned is the road as its responder sees it.
func turned(r road) road {
	r.from, r.to, r.egress, r.ingress = r.to, r.from, r.ingress, r.egress
	return r
}

// report sends an error of its receiver's about a frame, and a router's.
func (w *watch) report(what string, r road, about testnode.Frame, typ uint8) {
	w.t.Helper()
	what = fmt.Sprintf("%s, type %d", what, typ)
	e := errorAbout(w.t, about.Dst, about, typ, 0)
	sender, receiver := w.podAt(about.Src), w.podAt(about.Dst)
	if receiver != nil {
		got := w.from(w.t, what, *receiver, e, next)
		if got.Mark != uint16(receiver.Number)|mEI {
			w.t.Errorf("%s: mark %#x, want decided", what, got.Mark)
		}
		if sender != nil {
			w.to(w.t, what+", on to its sender", *sender, e, receiver.Ifindex, got.Mark, next)
		}
		return
	}
	w.network(w.t, what+", at the uplink", "from_network", e, w.uplink, 0, next)
	w.to(w.t, what, *sender, e, w.uplink, 0, next)
	e.Src = map[bool]string{false: "198.51.100.77", true: "2001:db8:77::1"}[mustAddr(e.Src).Is6()]
	w.to(w.t, what+", by a router", *sender, e, w.uplink, 0, next)
}

func (w *watch) podAt(addr string) *testnode.Pod {
	for _, p := range []testnode.Pod{w.a, w.b, w.c} {
		if p.Addr4 == addr || p.Addr6 == addr {
			return &p
		}
	}
	return nil
}

// B10: an error with an inner packet that its sender was never sent, or of a flow that is
// not there or not allowed any more, goes nowhere.
func TestForgedICMPErrors(t *testing.T) {
	w := newScene(t, open).watch(t)
	for v6, addr := range [2]func(testnode.Pod) string{
		func(p testnode.Pod) string { return p.Addr4 }, func(p testnode.Pod) string { return p.Addr6 },
	} {
		a, b, c := addr(w.a), addr(w.b), addr(w.c)
		f := tcp(a, 1000, b, 80, "S")
		w.from(t, "flow", w.a, f, redirected)
		w.from(t, "its answer", w.b, answer(f, "SA"), redirected)
		ac := testnode.UDP(a, 1000, c, 53)
		w.from(t, "flow to c", w.a, ac, redirected)
		inner := func(change func(*testnode.Frame)) testnode.Frame {
			g := f
			change(&g)
			return unreachable(t, b, g)
		}
		redirectedTo := func(e testnode.Frame, dst string) testnode.Frame { e.Dst = dst; return e }
		for what, e := range map[string]testnode.Frame{
			"another port of the sender":   inner(func(g *testnode.Frame) { g.Sport++ }),
			"another port of the receiver": inner(func(g *testnode.Frame) { g.Dport++ }),
			"another protocol":             inner(func(g *testnode.Frame) { g.Protocol = layers.IPProtocolUDP }),
			"another sender":               inner(func(g *testnode.Frame) { g.Src = c }),
			"another sender, told to a":    redirectedTo(inner(func(g *testnode.Frame) { g.Src = c }), a),
			"a's packet, told to c":        redirectedTo(unreachable(t, b, f), c),
			"what a sent to c":             unreachable(t, b, ac),
			"what b sent itself":           redirectedTo(unreachable(t, b, answer(f, "SA")), a),
			"what b sent itself, to b":     unreachable(t, b, answer(f, "SA")),
			"cut before the ports":         cut(unreachable(t, b, f), 20+20*v6+2),
			"cut in the header":            cut(unreachable(t, b, f), 12),
			"nothing":                      cut(unreachable(t, b, f), 0),
			"an unknown version":           poke(unreachable(t, b, f), 0, 0xf5),
		} {
			w.from(t, fmt.Sprintf("v6 %d, %s", v6, what), w.b, e, unrelated)
		}
		w.from(t, "by a third pod", w.c, unreachable(t, c, f), unrelated)
		w.from(t, "by a third pod, as b", w.c, unreachable(t, b, f), dropped(bpf.WeirDropReasonDROP_SPOOFED_SOURCE))
		w.to(t, "from outside, about nothing", w.a, unreachable(t, map[bool]string{false: outside, true: "2001:db8::9"}[v6 == 1], unknown(ac)), w.uplink, 0, unrelated)
		w.to(t, "from outside, as b", w.a, unreachable(t, b, f), w.uplink, 0, dropped(bpf.WeirDropReasonDROP_FOREIGN_SOURCE))
		w.from(t, "the one that is true", w.b, unreachable(t, b, f), next)
	}
	later := tcp(w.a.Addr4, 1000, w.b.Addr4, 80, "S")
	e := poke(poke(unreachable(t, w.b.Addr4, later), 6, 0), 7, 9) // a later fragment: its bytes are no ports
	w.from(t, "about a later fragment", w.b, e, unrelated)
	w.from(t, "about one with options", w.b, poke(unreachable(t, w.b.Addr4, later), 0, 0x46), unrelated)
}

// unknown is the frame with a port that no flow has.
func unknown(f testnode.Frame) testnode.Frame { f.Sport += 77; return f }

// cut leaves n bytes of what an error quotes.
func cut(f testnode.Frame, n int) testnode.Frame {
	f.Payload = f.Payload[:n]
	return f
}

// poke changes a byte of what an error quotes.
func poke(f testnode.Frame, at int, b byte) testnode.Frame {
	f.Payload = slices.Clone(f.Payload)
	f.Payload[at] = b
	return f
}

// What TCP sequence number an error quotes is for its receiver's TCP to check, which has the
// window: none is asked for here.
func TestErrorsQuoteAnySequence(t *testing.T) {
	w := newScene(t, open).watch(t)
	f := tcp(w.a.Addr4, 1000, w.b.Addr4, 80, "S")
	w.from(t, "flow", w.a, f, redirected)
	e := unreachable(t, w.b.Addr4, f)
	binary.BigEndian.PutUint32(e.Payload[24:], 0xdeadbeef)
	w.from(t, "about a packet that a never sent", w.b, e, next)
}

// An error is worth what its flow is: nothing once that is forbidden or over, and still all
// when a commit came between that does not concern it.
func TestErrorsFollowTheirFlow(t *testing.T) {
	w := newScene(t, fromAAny).watch(t)
	for v6, r := range []road{w.roads()[0], w.roads()[0]} {
		f := begin(r, layers.IPProtocolUDP, 1000, v6)
		e, back := unreachable(t, f.Dst, f), unreachable(t, f.Src, answer(f, ""))
		sendBoth := func(what string, want outcome) {
			t.Helper()
			w.from(t, what, w.b, e, want)
			w.from(t, what+", about the answer", w.a, back, want)
		}
		w.exchange("flow", r, f, "> <")
		sendBoth("live", next)
		for range 3 {
			w.Set(w.c, open, []uint32{open, closed}[w.Kernel.Epoch()%2])
			w.Commit(t)
			w.from(t, "after a commit, first", w.b, e, next)
			w.Set(w.c, open, []uint32{open, closed}[w.Kernel.Epoch()%2])
			w.Commit(t)
			w.from(t, "after another, the other way", w.a, back, next)
		}
		w.Set(w.b, open, closed)
		w.Commit(t)
		sendBoth("forbidden, before any packet of the flow", unrelated)
		if !isRevoked(w.flow(f)) {
			t.Errorf("the error's judgement left the entry as %+v", w.flow(f))
		}
		w.Set(w.b, open, fromAAny)
		w.Commit(t)
		sendBoth("allowed again, which a packet of the flow has to find", unrelated)
		r.there("packet", f, true)
		sendBoth("live again", next)
		w.lapse(time.Hour, f)
		sendBoth("over", unrelated)
	}
}

// At the receiver's door an error is judged by the flow that its receiver sent into.
func TestErrorsFromOutsideFollowTheirFlow(t *testing.T) {
	w := newScene(t, open).watch(t)
	for v6, r := range []road{w.roads()[3], w.roads()[3]} {
		f := begin(r, layers.IPProtocolUDP, 1000, v6)
		e := unreachable(t, f.Dst, f)
		w.exchange("flow", r, f, "> <")
		w.Set(w.c, open, []uint32{open, closed}[w.Kernel.Epoch()%2])
		w.Commit(t)
		w.to(t, "after a commit", w.a, e, w.uplink, 0, next)
		w.forbid(datapath.Egress)
		w.to(t, "forbidden", w.a, e, w.uplink, 0, unrelated)
		w.Set(w.a, open, open)
		w.Commit(t)
	}
}

// Review 22: errors about one flow are bounded, each way, and one flow's do not count on
// another's; the excess has its reason.
func TestErrorsAreBounded(t *testing.T) {
	const budget = uint64(bpf.WeirLimitsERROR_BUDGET)
	w := newScene(t, open).watch(t)
	f := testnode.UDP(w.a.Addr4, 1000, w.b.Addr4, 53)
	other := testnode.UDP(w.a.Addr4, 1001, w.b.Addr4, 53)
	w.from(t, "flow", w.a, f, redirected)
	w.from(t, "answer", w.b, answer(f, ""), redirected)
	w.from(t, "another flow", w.a, other, redirected)
	flood := func() (passed uint64) {
		for range 5 * budget {
			if w.FromPod(t, w.b, unreachable(t, w.b.Addr4, f)).Verdict == testnode.Next {
				passed++
			}
		}
		return passed
	}
	before, began := w.Drops(t), w.control().Clock
	passed := flood()
	seconds := w.control().Clock/1000 - began/1000 + 1 // windows that it fell in
	if passed < budget || passed > budget*seconds {
		t.Errorf("%d errors passed in %d seconds' windows, want %d in each", passed, seconds, budget)
	}
	if d := diff(before, w.Drops(t)); len(d) != 1 || d[datapath.Reason(bpf.WeirDropReasonDROP_ICMP_RATE)] != 5*budget-passed {
		t.Errorf("dropped %v, want %d for their rate", d, 5*budget-passed)
	}
	w.from(t, "about another flow", w.b, unreachable(t, w.b.Addr4, other), next)
	w.from(t, "the other way", w.a, unreachable(t, w.a.Addr4, answer(f, "")), next)
	w.eventually("the next second's", func() bool {
		return w.FromPod(t, w.b, unreachable(t, w.b.Addr4, f)).Verdict == testnode.Next
	})
}
