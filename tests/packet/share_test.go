package packet

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

// volley is packets of one kind in a row, each of another source port (or ICMP id).
type volley struct {
	hook             string
	frame            testnode.Frame
	ifindex, ingress int
	first, n         int
	passed           atomic.Int64
}

func fromPod(p testnode.Pod, f testnode.Frame, first, n int) *volley {
	return &volley{hook: "from_pod", frame: f, ifindex: p.Ifindex, ingress: p.Ifindex, first: first, n: n}
}

// send fires the volley on a thread of its own.
func (w *watch) send(v *volley) <-chan error {
	w.t.Helper()
	h, err := w.Hook(v.hook)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { h.Close() })
	b := v.frame.Bytes(w.t)
	at := 14 + 20
	if mustAddr(v.frame.Src).Is6() {
		at = 14 + 40
	}
	if v.frame.Protocol == layers.IPProtocolICMPv4 || v.frame.Protocol == layers.IPProtocolICMPv6 {
		at += 4
	}
	return w.Thread(func() error {
		for i := v.first; i < v.first+v.n; i++ {
			binary.BigEndian.PutUint16(b[at:], uint16(i))
			verdict, err := h.Run(b, v.ifindex, v.ingress, 0)
			if err != nil {
				return err
			}
			if verdict != testnode.Drop {
				v.passed.Add(1)
			}
		}
		return nil
	})
}

func (w *watch) sent(v *volley, done <-chan error) int {
	w.t.Helper()
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
	return int(v.passed.Load())
}

// consistent holds the account of the table together: entries, slots, charges and loans. There
// must be no traffic.
func (w *watch) consistent(when string, pods ...testnode.Pod) {
	w.t.Helper()
	var entries, charged, borrowed uint64
	for _, err := range w.Kernel.Flows() {
		if err != nil {
			w.t.Fatal(err)
		}
		entries++
	}
	for _, p := range pods {
		n := w.charged(p)
		charged += n
		if share := uint64(w.Config.FlowShare); n > share {
			borrowed += n - share
		}
	}
	c := w.control()
	if c.Flows != entries || charged != entries || c.FlowBorrowed != borrowed {
		w.t.Errorf("%s: %d entries, counted as %d, charged as %d; %d lent, counted as %d", when, entries, c.Flows, charged, borrowed, c.FlowBorrowed)
	}
}

// B17, by every way to make flows: the greedy pod's flows are its share and what nobody needs,
// the rest is dropped for that reason, each packet counted; its neighbours' flows go on, and
// they open their whole share beside it.
func TestGreedyPod(t *testing.T) {
	const share, capacity, pods, tries = 100, 1000, 3, 20000
	const lent = capacity - pods*share
	for _, f := range []testnode.Frame{
		{Protocol: layers.IPProtocolUDP, Dport: 53},
		{Protocol: layers.IPProtocolTCP, Dport: 80, Flags: "S"},
		{Protocol: layers.IPProtocolTCP, Dport: 80, Flags: "PA"},
		{Protocol: layers.IPProtocolICMPv4, ICMPType: 8},
		{Protocol: layers.IPProtocolSCTP, Dport: 80},
	} {
		t.Run(fmt.Sprint(f.Protocol, f.Flags), func(t *testing.T) {
			w := newSceneWith(t, open, loader.Config{FlowShare: share, Sizes: loader.Sizes{"flows": capacity}}).watch(t)
			neighbour := tcp(w.b.Addr4, 1, w.c.Addr4, 80, "S")
			w.from(t, "neighbours' flow", w.b, neighbour, redirected)
			f.Src, f.Dst = w.a.Addr4, outside
			before := w.Drops(t)
			greedy := fromPod(w.a, f, 1024, tries)
			done := w.send(greedy)
			beside := []*volley{
				fromPod(w.b, testnode.UDP(w.b.Addr4, 0, outside, 53), 1024, share-1),
				fromPod(w.c, testnode.UDP(w.c.Addr6, 0, "2001:db8::9", 53), 1024, share),
			}
			for _, v := range beside {
				if got := w.sent(v, w.send(v)); got < share-1 {
					t.Errorf("a neighbour opened %d flows beside the greedy pod, want its share of %d", got, share)
				}
			}
			got := w.sent(greedy, done)
			if got > share+lent || got < share {
				t.Errorf("the greedy pod opened %d flows, want no less than %d and no more than %d", got, share, share+lent)
			}
			if d := diff(before, w.Drops(t)); len(d) != 1 || d[datapath.Reason(bpf.WeirDropReasonDROP_FLOW_SHARE)] != tries-uint64(got) {
				t.Errorf("dropped %v, want %d for the share", d, tries-got)
			}
			w.from(t, "neighbours' flow goes on", w.c, answer(neighbour, "SA"), redirected)
			f.Sport, f.ICMPID = 1024, 1024
			w.from(t, "the greedy pod's first flow goes on", w.a, f, next)
			w.consistent("after the flood", w.a, w.b, w.c)
			if n := w.charged(w.a); n != uint64(got) {
				t.Errorf("%d flows charged to the greedy pod, it opened %d", n, got)
			}
			w.denialsOf(w.a, bpf.WeirDropReasonDROP_FLOW_SHARE, tries-uint64(got))
		})
	}
}

// denialsOf holds the exact count of a pod's packets that were dropped for a reason.
func (w *watch) denialsOf(p testnode.Pod, reason bpf.WeirDropReason, want uint64) {
	w.t.Helper()
	counts, err := w.Kernel.Denials()
	if err != nil {
		w.t.Fatal(err)
	}
	var got uint64
	for _, d := range counts {
		if d.Endpoint == p.Number && d.Reason == datapath.Reason(reason) {
			got += d.Packets
		}
	}
	if got != want {
		w.t.Errorf("pod %d: %d packets counted for %v, want %d", p.Number, got, datapath.Reason(reason), want)
	}
}

// A flood from outside is charged to the pod that it is for, whose neighbours have theirs.
func TestFloodFromOutside(t *testing.T) {
	const share, capacity = 50, 300
	w := newSceneWith(t, open, loader.Config{FlowShare: share, Sizes: loader.Sizes{"flows": capacity}}).watch(t)
	v := &volley{hook: "to_pod", frame: testnode.UDP(outside, 0, w.b.Addr4, 53), ifindex: w.b.Ifindex, ingress: w.uplink, first: 1, n: 5000}
	if got := w.sent(v, w.send(v)); got != capacity-2*share {
		t.Errorf("%d flows from outside to one pod, want %d", got, capacity-2*share)
	}
	for _, p := range []testnode.Pod{w.a, w.c} {
		v := fromPod(p, testnode.UDP(p.Addr4, 0, outside, 53), 1, share)
		if got := w.sent(v, w.send(v)); got != share {
			t.Errorf("pod %d opened %d flows beside the flood, want its share of %d", p.Number, got, share)
		}
	}
	w.consistent("after the flood", w.a, w.b, w.c)
}

// What is denied makes no flow, and so costs no share.
func TestDeniedFloodTakesNoRoom(t *testing.T) {
	const share, capacity = 4, 12
	w := newSceneWith(t, open, loader.Config{FlowShare: share, Sizes: loader.Sizes{"flows": capacity}}).watch(t)
	w.Set(w.a, toB, open)
	w.Commit(t)
	v := fromPod(w.a, testnode.UDP(w.a.Addr4, 0, outside, 53), 1, 5000)
	if got := w.sent(v, w.send(v)); got != 0 {
		t.Errorf("%d of the denied packets passed", got)
	}
	for i := range uint16(share) {
		w.from(t, "allowed", w.a, testnode.UDP(w.a.Addr4, 1+i, w.b.Addr4, 53), redirected)
	}
	w.from(t, "past the share", w.a, testnode.UDP(w.a.Addr4, 99, w.b.Addr4, 53), shareSpent)
	w.consistent("after the flood", w.a, w.b, w.c)
}

// Shares that do not fit the table together are an operator's mistake: what finds no room is
// dropped for that, and what is there goes on.
func TestTableSmallerThanItsShares(t *testing.T) {
	const share, capacity = 100, 64
	w := newSceneWith(t, open, loader.Config{FlowShare: share, Sizes: loader.Sizes{"flows": capacity}}).watch(t)
	for i := range uint16(capacity) {
		w.from(t, "flow", w.a, testnode.UDP(w.a.Addr4, 1+i, outside, 53), next)
	}
	full := dropped(bpf.WeirDropReasonDROP_FLOW_TABLE_FULL)
	w.from(t, "one more", w.a, testnode.UDP(w.a.Addr4, 1000, outside, 53), full)
	w.from(t, "a neighbour's", w.b, testnode.UDP(w.b.Addr4, 1000, outside, 53), full)
	w.from(t, "one that is there", w.a, testnode.UDP(w.a.Addr4, 1, outside, 53), next)
	w.consistent("when full", w.a, w.b, w.c)
}

// Who takes an old tuple over pays for it from then on, and needs the room.
func TestTakingOverMovesTheCharge(t *testing.T) {
	const share, capacity = 2, 6
	w := newSceneWith(t, open, loader.Config{FlowShare: share, Sizes: loader.Sizes{"flows": capacity}, Timeouts: loader.Timeouts{Linger: time.Hour}}).watch(t)
	var flows []testnode.Frame
	for i := range uint16(2) {
		f := tcp(w.a.Addr4, 1000+i, w.b.Addr4, 80, "S")
		w.from(t, "flow", w.a, f, redirected)
		w.from(t, "refused", w.b, answer(f, "RA"), redirected)
		flows = append(flows, f)
	}
	w.from(t, "b takes it over", w.b, answer(flows[0], "S"), redirected)
	if a, b := w.charged(w.a), w.charged(w.b); a != 1 || b != 1 {
		t.Errorf("charged %d to a and %d to b, want 1 and 1", a, b)
	}
	w.from(t, "another of b's", w.b, testnode.UDP(w.b.Addr4, 1, outside, 53), next)
	w.from(t, "b's share is spent", w.b, answer(flows[1], "S"), shareSpent)
	if f := w.flow(flows[1]); f == nil || !isClosed(f) || owner(f) != w.a.Number {
		t.Errorf("what b could not take over is %+v, want a's, closed", f)
	}
	w.from(t, "a may have it again", w.a, flows[1], redirected)
	w.consistent("in the end", w.a, w.b, w.c)
}
