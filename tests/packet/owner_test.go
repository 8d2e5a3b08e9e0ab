package packet

import (
	"fmt"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

const endGone = uint8(bpf.WeirFlowEndEND_GONE)

// detach removes a pod, from the next commit on.
func (w *watch) detach(p testnode.Pod) {
	delete(w.State.Endpoints, p.Number)
	delete(w.State.Peers, prefix(p.Addr4+"/32"))
	delete(w.State.Peers, prefix(p.Addr6+"/128"))
}

// dead: a detached pod's interface gets nothing through.
func (w *watch) dead(what string, p testnode.Pod, f testnode.Frame) {
	w.t.Helper()
	if r := w.FromPod(w.t, p, f); r.Verdict != testnode.Drop {
		w.t.Errorf("%s: the gone pod's interface: verdict %d", what, r.Verdict)
	}
}

// heirs are the flows that a gone pod leaves to the next one with its address.
var heirs = []struct {
	name     string
	protocol layers.IPProtocol
	packets  string
	forth    string
	back     string
}{
	{"TCP", layers.IPProtocolTCP, ">S <SA >A", "PA", "PA"},
	{"TCP, closing", layers.IPProtocolTCP, ">S <SA >A >FA <FA", "A", "A"},
	{"UDP", layers.IPProtocolUDP, "> <", "", ""},
	{"SCTP", layers.IPProtocolSCTP, "> <", "", ""},
}

// B21: a pod with a gone pod's address, at once or later, inherits nothing: what a sends it
// on an old tuple is judged as new, and what it sends on one is its own, no answer.
func TestNextPodWithTheAddress(t *testing.T) {
	for _, atOnce := range []bool{true, false} {
		for _, free := range []bool{true, false} { // the new pod may do as it likes
			t.Run(fmt.Sprintf("at once %v, free %v", atOnce, free), func(t *testing.T) {
				w := newSceneWith(t, open, loader.Config{Timeouts: loader.Timeouts{Linger: time.Hour}}).watch(t)
				w.inherit(atOnce, free)
			})
		}
	}
}

func (w *watch) inherit(atOnce, free bool) {
	w.t.Helper()
	begun := map[bool][]testnode.Frame{} // by whether b answers
	for i, h := range heirs {
		for v6 := range 2 {
			for _, answers := range []bool{true, false} {
				r := w.roads()[0]
				if !answers {
					r = turned(r)
					r.there, r.back = r.back, r.there
				}
				f := begin(r, h.protocol, uint16(1000+i), v6)
				f.Dport = map[bool]uint16{true: 80, false: 81}[answers]
				w.exchange(h.name, r, f, h.packets)
				begun[answers] = append(begun[answers], f)
			}
		}
	}
	w.detach(w.b)
	if !atOnce {
		w.Commit(w.t)
		w.dead("at once", w.b, answer(begun[true][0], "PA"))
	}
	rules := map[bool]uint32{true: open, false: closed}[free]
	d := w.AddPod(w.t, w.b.Addr4, w.b.Addr6, idC, rules, rules)
	w.Commit(w.t)
	before := w.counters()
	verdict := map[bool]outcome{true: redirected, false: policyDrop}[free]
	for i, h := range heirs {
		for v6 := range 2 {
			f, g := begun[true][2*i+v6], begun[false][2*i+v6]
			what := fmt.Sprintf("%s, v6 %d", h.name, v6)
			w.dead(what, w.b, answer(f, h.back))
			w.from(w.t, what+": a goes on", w.a, flags(f, h.forth), verdict)
			w.from(w.t, what+": the new pod goes on", d, flags(g, h.forth), verdict)
			if !free {
				w.from(w.t, what+": the new pod answers", d, answer(f, h.back), policyDrop)
				w.from(w.t, what+": a answers the new pod", w.a, answer(g, h.back), policyDrop)
				continue
			}
			if owner(w.flow(f)) != w.a.Number || owner(w.flow(g)) != d.Number {
				w.t.Errorf("%s: charged to %d and %d, want %d and %d", what, owner(w.flow(f)), owner(w.flow(g)), w.a.Number, d.Number)
			}
		}
	}
	want := uint64(0)
	if free {
		want = uint64(2 * 2 * len(heirs))
	}
	if c := w.counters(); c.FlowsNew-before.FlowsNew != want {
		w.t.Errorf("%d new flows, want %d", c.FlowsNew-before.FlowsNew, want)
	}
	if n := w.charged(d); free && n != want/2 || !free && n != 0 {
		w.t.Errorf("%d flows charged to the new pod, want %d", n, want/2)
	}
}

// A pod's flows end with it, however long they might have lasted: they are reported, their
// room is free, and its number can be another's.
func TestFlowsOfADetachedPod(t *testing.T) {
	w := newScene(t, open).watch(t)
	roads := w.roads()
	ab, out, in := begin(roads[0], layers.IPProtocolTCP, 1000, 0), begin(turned(roads[4]), layers.IPProtocolUDP, 1001, 1), begin(roads[4], layers.IPProtocolTCP, 1002, 0)
	w.exchange("to b", roads[0], ab, ">S <SA >A")
	w.from(t, "from b", w.b, out, next)
	w.exchange("to b from outside", roads[4], in, ">S <SA >A")
	other := tcp(w.a.Addr4, 1, w.c.Addr4, 80, "S")
	w.from(t, "between others", w.a, other, redirected)
	w.detach(w.b)
	w.Commit(t)
	for _, f := range []testnode.Frame{ab, out, in} {
		if e := w.ended(f); e.End != endGone {
			t.Errorf("%+v: ended by %d, want gone", f, e.End)
		}
	}
	w.eventually("b's flows are deleted", func() bool { return w.charged(w.b) == 0 && w.control().Flows == 1 })
	if n := w.charged(w.a); n != 1 {
		t.Errorf("%d flows charged to a, want 1", n)
	}
	w.from(t, "the others go on", w.c, answer(other, "SA"), redirected)
}

// An endpoint that is only changed keeps its flows.
func TestFlowsOfAChangedEndpoint(t *testing.T) {
	w := newScene(t, open).watch(t)
	f := tcp(w.a.Addr4, 1000, w.b.Addr4, 80, "S")
	w.from(t, "flow", w.a, f, redirected)
	for i := range byte(10) {
		ep := w.State.Endpoints[w.b.Number]
		ep.MAC[4] = i
		w.State.Endpoints[w.b.Number] = ep
		w.Commit(t)
		w.tables.Sweep(t)
	}
	w.Set(w.b, 0, 0) // no rulesets, as before its policy is there
	w.Commit(t)
	w.tables.Sweep(t)
	if flow := w.flow(f); flow == nil || isClosed(flow) {
		t.Errorf("the flow is over: %+v", flow)
	}
	w.Set(w.b, open, open)
	w.Commit(t)
	w.from(t, "answer", w.b, answer(f, "SA"), redirected)
}

// An endpoint's number that another interface has now, while a flow of the old one lives: the
// flow is nobody's, and what answers it is judged for itself.
func TestNumberOfAnotherInterface(t *testing.T) {
	s := newScene(t, open)
	asks := testnode.UDP(s.a.Addr4, 1, s.c.Addr4, 53)
	answers := testnode.UDP(s.c.Addr4, 53, s.a.Addr4, 1)
	s.from(t, "a asks", s.a, asks, redirected)
	s.from(t, "c answers", s.c, answers, redirected)
	d := s.AddPod(t, "10.0.0.4", "fd00::4", idA, open, open)
	s.State.Endpoints[s.a.Number] = s.State.Endpoints[d.Number]
	delete(s.State.Endpoints, d.Number)
	for addr, peer := range s.State.Peers {
		switch peer.Endpoint {
		case s.a.Number:
			delete(s.State.Peers, addr)
		case d.Number:
			peer.Endpoint = s.a.Number
			s.State.Peers[addr] = peer
		}
	}
	s.Set(s.c, closed, open)
	s.Commit(t)
	s.from(t, "c answers nobody", s.c, answers, dropped(bpf.WeirDropReasonDROP_UNMANAGED_PEER))
	s.from(t, "a's old interface", s.a, asks, dropped(bpf.WeirDropReasonDROP_NO_ENDPOINT))
}
