package flowlog

import (
	"context"
	"log/slog"
	"time"

	"github.com/weirnet/weir/datapath"
)

// denials is what the kernel counts denied packets by.
type denials struct {
	endpoint  uint32
	rule      uint32
	direction datapath.Direction
	reason    datapath.Reason
}

// tally is one count's account: counted by the kernel - recorded = suppressed.
type tally struct {
	base     uint64 // counted before the log began
	counted  uint64 // at the last look
	recorded uint64 // packets that have a record of their own
	said     uint64 // suppressed packets that records already stand for
	end      int    // the end of the packet that the endpoint was at
}

// suppressed finds out how many denied packets have no record of their own. It compares
// the counts of one look with the records that came until the next, so an event on its
// way is never taken for a suppressed one; what was counted while no log ran is not said.
type suppressed struct {
	started bool
	tallies map[denials]*tally
}

func newSuppressed() *suppressed { return &suppressed{tallies: map[denials]*tally{}} }

// chatter are reasons that are counted and never recorded.
var chatter = map[string]bool{"neighbour": true, "multicast": true}

func (s *suppressed) of(k denials) *tally {
	t := s.tallies[k]
	if t == nil {
		t = &tally{}
		s.tallies[k] = t
	}
	return t
}

// recorded notes an event that gets a record of its own.
func (s *suppressed) recorded(e datapath.Event) {
	if e.Kind != datapath.EventDenied {
		return
	}
	k, end := denials{endpoint: e.Endpoint[0], direction: e.Direction, reason: e.Reason}, 0
	if k.endpoint == 0 {
		k.endpoint, end = e.Endpoint[1], 1
	}
	if e.Direction != datapath.None {
		k.rule = e.Rule[e.Direction]
	}
	t := s.of(k)
	t.recorded += e.Packets[0]
	t.end = end
}

// look takes the kernel's counts and returns the events that stand for what they hold
// beyond the records, with their numbers.
func (s *suppressed) look(counts []datapath.DenialCount, now time.Time) (events []datapath.Event, packets []uint64) {
	for _, c := range counts {
		k := denials{c.Endpoint, c.Rule, c.Direction, c.Reason}
		if chatter[c.Reason.String()] {
			continue
		}
		t := s.of(k)
		if !s.started || c.Packets < t.counted {
			*t = tally{base: c.Packets, counted: c.Packets, end: t.end}
			continue
		}
		if n := t.counted - t.base; n > t.recorded+t.said {
			more := n - t.recorded - t.said
			t.said += more
			events, packets = append(events, k.event(t.end, now)), append(packets, more)
		}
		t.counted = c.Packets
	}
	s.started = true
	return events, packets
}

func (k denials) event(end int, now time.Time) datapath.Event {
	e := datapath.Event{Kind: datapath.EventDenied, Time: now, Dropped: true, Reason: k.reason, Direction: k.direction}
	e.Endpoint[end] = k.endpoint
	if k.direction != datapath.None {
		e.Rule[k.direction] = k.rule
	}
	return e
}

// again calls f, once an interval, until ctx is over.
func again(ctx context.Context, interval time.Duration, f func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

func (l *Log) countDenials() {
	counts, err := l.opts.Denials()
	if err != nil {
		slog.Warn("denied packets not counted for the flow log", "err", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	events, packets := l.suppressed.look(counts, l.opts.Now())
	for i, e := range events {
		r := l.names.record(e)
		r.suppressed, r.read = packets[i], l.read.Load()
		l.tallies.add(r)
		l.ring.add(r)
	}
}
