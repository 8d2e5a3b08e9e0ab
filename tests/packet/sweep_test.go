package packet

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

// Collection stops nobody: while tens of thousands of flows are closed, reported and deleted,
// a flow's packets pass, every one, and new flows begin. Then all the room is there again.
func TestCollectionUnderTraffic(t *testing.T) {
	const capacity, many = 1 << 16, 30000
	w := newSceneWith(t, open, loader.Config{
		FlowShare: 64, Sizes: loader.Sizes{"flows": capacity},
		Timeouts: loader.Timeouts{UDP: 500 * time.Millisecond, Linger: 500 * time.Millisecond},
	}).watch(t)
	steady := tcp(w.c.Addr4, 1, w.b.Addr4, 80, "S")
	w.from(t, "steady flow", w.c, steady, redirected)
	for round := range 2 {
		waves := []*volley{
			fromPod(w.a, testnode.UDP(w.a.Addr4, 0, w.b.Addr4, 53), 1, many),
			fromPod(w.a, testnode.UDP(w.a.Addr6, 0, w.b.Addr6, 53), 1, many),
		}
		for _, v := range waves {
			if got := w.sent(v, w.send(v)); got != many {
				t.Fatalf("round %d: %d of %d flows began", round, got, many)
			}
		}
		w.underTraffic(steady, func() {
			w.eventually("all are collected", func() bool { return w.charged(w.a) == 0 })
		})
		w.consistent("collected", w.a, w.b, w.c)
	}
	c := w.counters()
	if c.FlowsEnded < 4*many || c.EventsEmitted+c.EventsLost != c.FlowsNew+c.FlowsEnded {
		t.Errorf("%d new, %d ended, %d events and %d lost: want all of %d ended, and an event or a loss for each", c.FlowsNew, c.FlowsEnded, c.EventsEmitted, c.EventsLost, 4*many)
	}
}

// underTraffic runs f while the flow's packets come all the time, and b opens new flows.
func (w *watch) underTraffic(steady testnode.Frame, f func()) {
	w.t.Helper()
	h, err := w.Hook("from_pod")
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.Close()
	packet := flags(steady, "A").Bytes(w.t)
	var stop atomic.Bool
	var passed, lost int
	done := w.Thread(func() error {
		for !stop.Load() {
			verdict, err := h.Run(packet, w.c.Ifindex, w.c.Ifindex, 0)
			if err != nil {
				return err
			}
			if verdict == testnode.Redirect {
				passed++
			} else {
				lost++
			}
		}
		return nil
	})
	news := fromPod(w.b, testnode.UDP(w.b.Addr4, 0, outside, 53), 1, 64)
	if got := w.sent(news, w.send(news)); got != 64 {
		w.t.Errorf("%d of 64 new flows began beside the collection", got)
	}
	f()
	w.eventually("the new ones as well", func() bool { return w.charged(w.b) == 0 })
	stop.Store(true)
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
	if lost > 0 || passed < 1000 {
		w.t.Errorf("%d packets of a live flow passed, %d did not", passed, lost)
	}
}

// Two pods open and reset the same tuples at the same time, over and over, while the sweep
// deletes: no entry, slot or charge is lost on the way.
func TestTableUnderRaces(t *testing.T) {
	const share, capacity, tuples = 50, 200, 120
	w := newSceneWith(t, open, loader.Config{
		FlowShare: share, Sizes: loader.Sizes{"flows": capacity},
		Timeouts: loader.Timeouts{UDP: 200 * time.Millisecond, SYN: 200 * time.Millisecond, Closing: 200 * time.Millisecond, TCP: 200 * time.Millisecond, Linger: 200 * time.Millisecond},
	}).watch(t)
	until := time.Now().Add(3 * time.Second)
	for time.Now().Before(until) {
		var done []<-chan error
		for _, fl := range []string{"S", "R", "A"} {
			ab, ba := tcp(w.a.Addr4, 0, w.b.Addr4, 80, fl), tcp(w.b.Addr4, 80, w.a.Addr4, 0, fl)
			done = append(done, w.send(fromPod(w.a, ab, 1, tuples)), w.sendPorts(w.b, ba, tuples))
		}
		for _, d := range done {
			if err := <-d; err != nil {
				t.Fatal(err)
			}
		}
	}
	w.eventually("all is collected", func() bool { return w.control().Flows == 0 })
	w.consistent("in the end", w.a, w.b, w.c)
	c := w.counters()
	if c.FlowsNew != c.FlowsEnded || c.EventsEmitted+c.EventsLost != c.FlowsNew+c.FlowsEnded || c.FlowsNew < 1000 {
		t.Errorf("%d flows began, %d ended, %d events and %d lost", c.FlowsNew, c.FlowsEnded, c.EventsEmitted, c.EventsLost)
	}
	v := fromPod(w.c, testnode.UDP(w.c.Addr4, 0, outside, 53), 1, capacity)
	if got := w.sent(v, w.send(v)); got != capacity-2*share {
		t.Errorf("%d flows fit afterwards, want %d", got, capacity-2*share)
	}
}

// sendPorts is send with the destination's port going up.
func (w *watch) sendPorts(p testnode.Pod, f testnode.Frame, n int) <-chan error {
	w.t.Helper()
	h, err := w.Hook("from_pod")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { h.Close() })
	b := f.Bytes(w.t)
	return w.Thread(func() error {
		for i := range n {
			b[36], b[37] = byte((1+i)>>8), byte(1+i)
			if _, err := h.Run(b, p.Ifindex, p.Ifindex, 0); err != nil {
				return err
			}
		}
		return nil
	})
}
