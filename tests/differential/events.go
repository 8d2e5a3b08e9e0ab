package differential

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/reader"
)

// events are what the node's rings said, and what they are to say.
type events struct {
	expected map[eventKey]answer // of this cluster

	mu  sync.Mutex
	all []datapath.Event
}

type eventKey struct {
	epoch    uint64
	from, to netip.AddrPort
	protocol uint8
}

func openEvents(t *testing.T, dir string) *events {
	t.Helper()
	in, err := reader.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	e := &events{expected: map[eventKey]answer{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			ev, err := in.Read()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil {
				t.Errorf("read events: %v", err)
				return
			}
			if ev.Kind == datapath.EventEnded {
				continue
			}
			e.mu.Lock()
			e.all = append(e.all, ev)
			e.mu.Unlock()
		}
	}()
	t.Cleanup(func() { in.Close(); <-done })
	return e
}

// expect notes what an event about the packet, or its flow, has to say. Without ports a
// question and the answer to another look alike: no event is expected to be right.
func (e *events) expect(epoch uint64, p packet, want answer) {
	from, to, protocol := p.ends()
	if p.key.Port == [2]uint16{} {
		return
	}
	e.expected[eventKey{epoch, from, to, protocol}] = want
	if p.reply {
		e.expected[eventKey{epoch, to, from, protocol}] = want
	}
}

// checkEvents waits for the last event of the round and compares them all.
func (r *rig) checkEvents(t *testing.T) {
	t.Helper()
	for _, ev := range r.events.drain(t, r) {
		r.tally.event++
		if ev.Source.Port() == 0 {
			continue
		}
		want, asked := r.events.expected[eventKey{ev.Epoch, ev.Source, ev.Destination, ev.Protocol}]
		if !asked {
			t.Fatalf("event about nothing that was asked: %+v", ev)
		}
		if how := r.eventDiffers(ev, want); how != "" {
			t.Fatalf("event %+v: %s\n  reference: %v", ev, how, want)
		}
	}
	clear(r.events.expected)
}

// drain takes all events that the kernel says it wrote.
func (e *events) drain(t *testing.T, r *rig) []datapath.Event {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := r.node.Kernel.Counters()
		if err != nil {
			t.Fatal(err)
		}
		e.mu.Lock()
		total := uint64(r.tally.event + len(e.all))
		if total == c.EventsEmitted-c.FlowsEnded+c.DenialsEmitted || time.Now().After(deadline) {
			all := e.all
			e.all = nil
			e.mu.Unlock()
			if c.EventsLost+c.DenialsLost == 0 && time.Now().After(deadline) {
				t.Fatalf("%d events read, the kernel wrote %+v", total, c)
			}
			return all
		}
		e.mu.Unlock()
	}
}

// eventDiffers says how an event is not what the reference says.
func (r *rig) eventDiffers(ev datapath.Event, want answer) string {
	if ev.Dropped == want.forwarded {
		return "the other verdict"
	}
	if ev.Dropped && ev.Direction != want.direction {
		return "another direction denies"
	}
	for d, side := range want.sides {
		if d > int(want.direction) {
			break // not asked any more
		}
		if ev.Rule[d] == 0 && (side == nil || d == int(datapath.Ingress)) {
			continue // another node's, or toNetwork's
		}
		rule, ok := r.ids.Rule(ev.Rule[d])
		if side == nil || !ok || !sameRule(rule, side) {
			return datapath.Direction(d).String() + " by rule " + rule.String()
		}
	}
	return ""
}
