package packet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

var policyDrop = dropped(bpf.WeirDropReasonDROP_POLICY)

// road is how a flow's packets come to hooks: there from its initiator, back from its
// responder. pass is what a hook does with what is allowed.
type road struct {
	name        string
	from, to    [2]string // addresses by family
	there, back func(what string, f testnode.Frame, allowed bool)
	egress      bool // the initiator is a pod here
	ingress     bool // the responder is
}

func (w *watch) roads() []road {
	out := [2]string{outside, "2001:db8::9"}
	a, b := [2]string{w.a.Addr4, w.a.Addr6}, [2]string{w.b.Addr4, w.b.Addr6}
	want := func(pass outcome, allowed bool) outcome {
		if allowed {
			return pass
		}
		return policyDrop
	}
	fromPod := func(p testnode.Pod, pass outcome) func(string, testnode.Frame, bool) {
		return func(what string, f testnode.Frame, allowed bool) {
			w.t.Helper()
			w.from(w.t, what, p, f, want(pass, allowed))
		}
	}
	toPod := func(p testnode.Pod, ingress int, mark uint16) func(string, testnode.Frame, bool) {
		return func(what string, f testnode.Frame, allowed bool) {
			w.t.Helper()
			w.to(w.t, what, p, f, ingress, mark, want(next, allowed))
		}
	}
	fromNetwork := func(what string, f testnode.Frame, allowed bool) {
		w.t.Helper()
		w.network(w.t, what, "from_network", f, w.uplink, 0, want(next, allowed))
	}
	return []road{
		{"pods by BPF", a, b, fromPod(w.a, redirected), fromPod(w.b, redirected), true, true},
		{"pods by the stack", a, b, toPod(w.b, w.a.Ifindex, uint16(w.a.Number)), fromPod(w.b, next), true, true},
		{"out, answered at the uplink", a, out, fromPod(w.a, next), fromNetwork, true, false},
		{"out, answered at the pod", a, out, fromPod(w.a, next), toPod(w.a, w.uplink, 0), true, false},
		{"in", out, b, toPod(w.b, w.uplink, 0), fromPod(w.b, next), false, true},
	}
}

// talks are flows by the packets that came before a change and those that follow it.
var talks = []struct {
	name            string
	protocol        layers.IPProtocol
	packets         string // as life has them
	forth, backward string // flags
}{
	{"TCP", layers.IPProtocolTCP, ">S <SA >A", "PA", "PA"},
	{"TCP not answered yet", layers.IPProtocolTCP, ">S", "S", "SA"},
	{"TCP that a ended", layers.IPProtocolTCP, ">S <SA >A >FA", "A", "PA"},
	{"TCP that b ended", layers.IPProtocolTCP, ">S <SA >A <FA", "PA", "A"},
	{"TCP, its end", layers.IPProtocolTCP, ">S <SA >A", "FA", "R"},
	{"UDP", layers.IPProtocolUDP, "> <", "", ""},
	{"UDP not answered yet", layers.IPProtocolUDP, ">", "", ""},
	{"ICMP", layers.IPProtocolICMPv4, "> <", "", ""},
	{"SCTP", layers.IPProtocolSCTP, "> <", "", ""},
	{"without ports", portless, "> <", "", ""},
}

// portless stands for protocols, from this one on: one a flow, which nothing else tells apart.
const portless layers.IPProtocol = 62

// talking is a flow on a road.
type talking struct {
	road
	what        string
	first       testnode.Frame
	forth, back testnode.Frame // what follows
	sent        [2]uint64
	backFirst   bool
}

// Promise 3, on every road, in both families: what a side's policy forbids now stops both
// ways, whichever packet comes first, for the reason and the rule that it deserves; it is
// recorded once, with the counters up to there; and it goes on when it is allowed again.
func TestRevocationOnEveryRoad(t *testing.T) {
	w := newScene(t, open).watch(t)
	port, protocol := uint16(1000), portless
	for _, road := range w.roads() {
		for _, direction := range []datapath.Direction{datapath.Egress, datapath.Ingress} {
			if direction == datapath.Egress && !road.egress || direction == datapath.Ingress && !road.ingress {
				continue
			}
			var all []*talking
			for _, talk := range talks {
				for variant := range 4 {
					v6, backFirst := variant&1, variant&2 != 0
					port++
					g := &talking{road: road, first: begin(road, talk.protocol, port, v6), backFirst: backFirst}
					if talk.protocol == portless {
						g.first.Protocol = protocol
						protocol++
					}
					g.what = fmt.Sprintf("%s, %s, %v forbids, v6 %d, answer first %v", road.name, talk.name, direction, v6, backFirst)
					g.forth, g.back = flags(g.first, talk.forth), answer(g.first, talk.backward)
					g.sent = w.exchange(g.what, road, g.first, talk.packets)
					all = append(all, g)
				}
			}
			w.revoke(all, direction)
		}
	}
}

// begin is the first frame of a flow on a road.
func begin(r road, protocol layers.IPProtocol, port uint16, v6 int) testnode.Frame {
	f := testnode.Frame{Src: r.from[v6], Dst: r.to[v6], Protocol: protocol, Sport: port, Dport: 80, ICMPID: port, ICMPType: 8, Payload: []byte("talk")}
	if protocol == layers.IPProtocolICMPv4 && v6 == 1 {
		f.Protocol, f.ICMPType = layers.IPProtocolICMPv6, 128
	}
	return f
}

// follow sends what follows, each way.
func (g *talking) follow(when string, allowed, backFirst bool) {
	steps := []func(){
		func() { g.road.there(g.what+", "+when+", there", g.forth, allowed) },
		func() { g.road.back(g.what+", "+when+", back", g.back, allowed) },
	}
	if backFirst {
		steps[0], steps[1] = steps[1], steps[0]
	}
	steps[0]()
	steps[1]()
}

func (w *watch) revoke(all []*talking, direction datapath.Direction) {
	w.t.Helper()
	before := w.counters()
	w.forbid(direction)
	for _, g := range all {
		g.follow("forbidden", false, g.backFirst)
		g.follow("still forbidden", false, !g.backFirst)
	}
	w.Set(w.c, open, []uint32{open, closed}[w.Kernel.Epoch()%2]) // a change that does not concern them
	w.Commit(w.t)
	for _, g := range all {
		g.follow("forbidden after another change", false, g.backFirst)
		w.recorded(g, direction)
	}
	w.Set(w.a, open, open)
	w.Set(w.b, open, open)
	w.Commit(w.t)
	for _, g := range all {
		g.follow("allowed again", true, g.backFirst)
	}
	var opened uint64
	for _, g := range all {
		if g.forth.Flags == "S" && !g.backFirst {
			opened++ // a SYN on a revoked entry is a new flow's
		}
	}
	after, n := w.counters(), uint64(len(all))
	if after.FlowsRevoked != before.FlowsRevoked+n || after.Untracked != before.Untracked || after.FlowsNew != before.FlowsNew+opened {
		w.t.Errorf("%d revoked, %d untracked, %d new, want %d, 0 and %d", after.FlowsRevoked-before.FlowsRevoked, after.Untracked-before.Untracked, after.FlowsNew-before.FlowsNew, n, opened)
	}
}

func (w *watch) recorded(g *talking, direction datapath.Direction) {
	w.t.Helper()
	if f := w.flow(g.first); f == nil || !isRevoked(f) {
		w.t.Errorf("%s: the entry is not revoked: %+v", g.what, f)
	}
	e := w.events(datapath.EventRevoked, g.first, 1)
	if len(e) != 1 || !e[0].Dropped || e[0].Reason != datapath.ReasonPolicy || e[0].Direction != direction || e[0].Rule[direction] != ruleDeny || e[0].Packets != g.sent || e[0].End != endRevoked {
		w.t.Errorf("%s: recorded %+v, want once, for rule %d, %v, after %v packets", g.what, e, ruleDeny, direction, g.sent)
	}
}

func (w *watch) forbid(d datapath.Direction) {
	w.t.Helper()
	if d == datapath.Egress {
		w.Set(w.a, closed, open)
	} else {
		w.Set(w.b, open, closed)
	}
	w.Commit(w.t)
}

// exchange sends packets that are allowed and returns how many, each way.
func (w *watch) exchange(what string, r road, f testnode.Frame, packets string) (sent [2]uint64) {
	w.t.Helper()
	for _, p := range strings.Fields(packets) {
		if p[0] == '>' {
			r.there(what, flags(f, p[1:]), true)
			sent[0]++
		} else {
			r.back(what, answer(f, p[1:]), true)
			sent[1]++
		}
	}
	return sent
}

// A revoked connection stays revoked as long as an open one is remembered: its server may
// push, or repeat itself for a quarter of an hour, and must not be taken for one that begins.
func TestRevokedConnectionStaysRevoked(t *testing.T) {
	w := newSceneWith(t, open, loader.Config{Timeouts: loader.Timeouts{Linger: time.Hour}}).watch(t)
	for v6, r := range []road{w.roads()[0], w.roads()[0]} {
		f := begin(r, layers.IPProtocolTCP, 1000, v6)
		w.exchange("open", r, f, ">S <SA >A")
		w.forbid(datapath.Ingress)
		r.back("push after the change", answer(f, "PA"), false)
		for range 5 {
			w.lapse(time.Hour, f)
			w.from(t, "a push hours later", w.b, answer(f, "PA"), policyDrop)
			w.from(t, "the client hours later", w.a, flags(f, "A"), policyDrop)
		}
		w.lapse(time.Hour, f)
		if e := w.ended(f); e.End != endRevoked || e.Packets != [2]uint64{2, 1} {
			t.Errorf("ended %+v, want revoked, after 2 and 1 packets", e)
		}
		w.from(t, "the client's packets make nothing", w.a, flags(f, "A"), redirected)
		w.Set(w.b, open, open)
		w.Commit(t)
	}
}

// A revoked UDP flow's answers are known for answers until it has aged; then they are what
// they say. Between equal ports they may be either, always.
func TestRevokedDatagrams(t *testing.T) {
	w := newSceneWith(t, open, loader.Config{Timeouts: loader.Timeouts{Linger: time.Hour}}).watch(t)
	for v6, r := range []road{w.roads()[0], w.roads()[0]} {
		f := begin(r, layers.IPProtocolUDP, 1000, v6)
		w.exchange("request and answer", r, f, "> <")
		w.forbid(datapath.Ingress)
		r.back("answer after the change", answer(f, ""), false)
		w.lapse(2*time.Minute, f)
		r.back("two minutes later", answer(f, ""), false)
		w.lapse(time.Minute, f)
		if e := w.ended(f); e.End != endRevoked {
			t.Errorf("ended by %d, want revoked", e.End)
		}
		r.there("request", f, false)
		r.back("b's own", answer(f, ""), true)
		r.there("which a answers", f, true)
		w.Set(w.b, open, open)
		w.Commit(t)
	}
}

// A's 5000 to B's 5000 is forbidden, B's 5000 to A's 5000 is not: they share an entry, and
// each is judged as who it is that speaks.
func TestMirroredPorts(t *testing.T) {
	for _, protocol := range []layers.IPProtocol{layers.IPProtocolUDP, layers.IPProtocolSCTP} {
		w := newScene(t, open).watch(t)
		for i, r := range w.roads() {
			for v6 := range 2 {
				what := fmt.Sprintf("%v, %s, v6 %d", protocol, r.name, v6)
				f := begin(r, protocol, uint16(5000+i), v6)
				f.Dport = f.Sport
				w.exchange(what, r, f, "> <")
				if r.egress {
					w.forbid(datapath.Egress)
				} else {
					w.forbid(datapath.Ingress)
				}
				r.there(what+", forbidden", f, false)
				r.there(what+", forbidden again", f, false)
				w.mirror(what, r, f)
				w.Set(w.a, open, open)
				w.Set(w.b, open, open)
				w.Commit(t)
			}
		}
	}
}

// mirror: the responder begins, and then the other side's packets are answers. From outside
// a new flow is judged at the pod's door.
func (w *watch) mirror(what string, r road, f testnode.Frame) {
	w.t.Helper()
	own, answered := answer(f, ""), what+", answered"
	switch {
	case r.egress && r.ingress:
		w.from(w.t, what+", the other way", w.b, own, redirected)
		w.from(w.t, answered, w.a, f, redirected)
	case r.egress:
		w.network(w.t, what+", let on to the pod's door", "from_network", own, w.uplink, 0, next)
		w.to(w.t, what+", the other way", w.a, own, w.uplink, 0, next)
		w.from(w.t, answered, w.a, f, next)
	default:
		w.from(w.t, what+", the other way", w.b, own, next)
		w.network(w.t, answered, "from_network", f, w.uplink, 0, next)
		w.to(w.t, answered, w.b, f, w.uplink, 0, next)
	}
	if e := w.ended(f); e.End != endRevoked {
		w.t.Errorf("%s: the forbidden flow ended by %d, want revoked", what, e.End)
	}
	if !w.began(own) {
		w.t.Errorf("%s: the flow is not its opener's", what)
	}
}
