package packet

import (
	"cmp"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/reader"
	"github.com/weirnet/weir/tests/testnode"
)

// With rings as small as they may be and nobody who reads them, what was produced is what was
// written and what was lost, exactly, ring by ring and kind by kind, against the packets sent;
// and what was written is there for the next reader, all of it.
func TestNothingIsLostUncounted(t *testing.T) {
	const many = 3000
	s := newSceneWith(t, open, loader.Config{
		FlowShare: many, Update: time.Second,
		Sizes:    loader.Sizes{"flow_events": 4096, "denial_events": 4096, "flows": 1 << 14},
		Timeouts: loader.Timeouts{UDP: 6 * time.Second, Linger: 500 * time.Millisecond},
	})
	s.Set(s.c, open, closed)
	s.Commit(t)
	w := &watch{scene: s, t: t}
	flows := fromPod(s.a, testnode.UDP(s.a.Addr4, 0, s.b.Addr4, 53), 1, many)
	if got := w.sent(flows, w.send(flows)); got != many {
		t.Fatalf("%d of %d flows began", got, many)
	}
	time.Sleep(1500 * time.Millisecond) // old enough for an update, if packets come
	if got := w.sent(flows, w.send(flows)); got != 2*many {
		t.Fatalf("%d of %d packets passed", got, 2*many)
	}
	denied := fromPod(s.b, testnode.UDP(s.b.Addr4, 0, s.c.Addr4, 53), 1, many)
	if got := w.sent(denied, w.send(denied)); got != 0 {
		t.Fatalf("%d of %d denied packets passed", got, many)
	}
	var c datapath.Counters
	w.eventually("all flows have ended", func() bool { c = w.counters(); return c.FlowsEnded == many })
	produced := c.FlowsNew + c.FlowsUpdated + c.FlowsEnded + c.FlowsRevoked
	if c.FlowsNew != many || c.FlowsUpdated < many || produced != c.EventsEmitted+c.EventsLost {
		t.Errorf("flows: %d new, %d updates, %d ended, %d revoked; %d written, %d lost: want %d new, as many updates, and a place for each",
			c.FlowsNew, c.FlowsUpdated, c.FlowsEnded, c.FlowsRevoked, c.EventsEmitted, c.EventsLost, many)
	}
	if n := c.Drops[datapath.ReasonPolicy]; n != many || n != c.DenialsEmitted+c.DenialsLost+c.DenialsSuppressed {
		t.Errorf("denials: %d dropped; %d written, %d lost, %d past the budget: want %d, and a place for each",
			n, c.DenialsEmitted, c.DenialsLost, c.DenialsSuppressed, many)
	}
	if c.EventsLost == 0 || c.DenialsLost == 0 || c.DenialsSuppressed == 0 {
		t.Errorf("nothing is shown: %d and %d lost, %d suppressed", c.EventsLost, c.DenialsLost, c.DenialsSuppressed)
	}
	in, err := reader.Open(s.Config.BPFFSDir)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	read := map[bool]uint64{}
	for read[false]+read[true] < c.EventsEmitted+c.DenialsEmitted {
		e, err := in.Read()
		if err != nil {
			t.Fatal(err)
		}
		read[e.Kind == datapath.EventDenied]++
	}
	if read[false] != c.EventsEmitted || read[true] != c.DenialsEmitted {
		t.Errorf("read %d events and %d denials, written were %d and %d", read[false], read[true], c.EventsEmitted, c.DenialsEmitted)
	}
}

// Without records no event is written and none counts as lost; what passes, what is dropped and
// what is counted is the same.
func TestWithoutRecordsAllElseIsTheSame(t *testing.T) {
	const many = 300
	type outcome struct {
		passed, denied        uint64
		begun, ended, revoked uint64
		drops                 uint64
		counts                []datapath.DenialCount
	}
	run := func(off bool) (o outcome, c datapath.Counters) {
		s := newSceneWith(t, open, loader.Config{
			NoRecords: off, FlowShare: many, Update: time.Second, Timeouts: loader.Timeouts{UDP: 4 * time.Second, Linger: 500 * time.Millisecond},
		})
		s.Set(s.c, open, closed)
		s.Commit(t)
		w := &watch{scene: s, t: t}
		flows := fromPod(s.a, testnode.UDP(s.a.Addr4, 0, s.b.Addr4, 53), 1, many)
		o.passed = uint64(w.sent(flows, w.send(flows)))
		time.Sleep(1500 * time.Millisecond) // old enough for an update
		o.passed += uint64(w.sent(flows, w.send(flows)))
		denied := fromPod(s.b, testnode.UDP(s.b.Addr4, 0, s.c.Addr4, 53), 1, many)
		o.denied = many - uint64(w.sent(denied, w.send(denied)))
		s.Set(s.b, open, closed)
		s.Commit(t)
		o.denied += many - uint64(w.sent(flows, w.send(flows)))
		w.eventually("all flows have ended", func() bool { c = w.counters(); return c.FlowsEnded == many })
		var err error
		if o.counts, err = s.Kernel.Denials(); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(o.counts, func(a, b datapath.DenialCount) int {
			return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Rule, b.Rule))
		})
		o.begun, o.ended, o.revoked, o.drops = c.FlowsNew, c.FlowsEnded, c.FlowsRevoked, c.Drops[datapath.ReasonPolicy]
		return o, c
	}
	on, written := run(false)
	off, silent := run(true)
	if !reflect.DeepEqual(on, off) {
		t.Errorf("with records    %+v\nwithout records %+v", on, off)
	}
	if on.drops != 2*many || on.revoked != many || written.EventsEmitted < 3*many || written.DenialsEmitted == 0 {
		t.Errorf("nothing is shown: %+v, %+v", on, written)
	}
	if n := silent.EventsEmitted + silent.EventsLost + silent.DenialsEmitted + silent.DenialsLost + silent.DenialsSuppressed + silent.FlowsUpdated; n != 0 {
		t.Errorf("without records: %+v", silent)
	}
}

// A flow that goes on is told of each time its packets have come for so long; its counts are
// from its beginning, and what ends it has them all.
func TestLongFlowsAreToldOf(t *testing.T) {
	w := newSceneWith(t, open, loader.Config{
		Update: time.Second, Timeouts: loader.Timeouts{UDP: 3 * time.Second, Linger: 500 * time.Millisecond},
	}).watch(t)
	f := testnode.UDP(w.a.Addr4, 7, w.b.Addr4, 53)
	sent := uint64(0)
	for end := time.Now().Add(3500 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		w.from(t, "its packets", w.a, f, redirected)
		sent++
	}
	w.eventually("it has ended", func() bool { return w.counters().FlowsEnded == 1 })
	w.eventually("its end is heard", func() bool { return len(w.of(datapath.EventEnded)) == 1 })
	updates, ended := w.of(datapath.EventUpdate), w.of(datapath.EventEnded)[0]
	if len(updates) < 2 || len(updates) > 4 {
		t.Errorf("%d updates in 3.5 s, one a second", len(updates))
	}
	last := datapath.Event{}
	for _, u := range append(updates, ended) {
		if u.Packets[0] < last.Packets[0] || u.Bytes[0] < last.Bytes[0] || u.Created != ended.Created || u.Dropped {
			t.Errorf("%+v after %+v", u, last)
		}
		last = u
	}
	if ended.Packets[0] != sent {
		t.Errorf("%d packets at the end, sent were %d", ended.Packets[0], sent)
	}
	if c := w.counters(); c.FlowsUpdated != uint64(len(updates)) {
		t.Errorf("%d updates counted, %d heard", c.FlowsUpdated, len(updates))
	}
}

// of are the events of a kind that were heard.
func (w *watch) of(kind datapath.EventKind) []datapath.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []datapath.Event
	for _, e := range w.heard {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}
