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
// way is never taken for a suppressed one. It goes on from what the log before told, as far as
// that is known; else with what is counted from now on.
type suppressed struct {
	started bool
	told    *ledger // of the log before; nil: not known
	debt    uint64  // denials that are counted and were told as lost events, nobody knows whose
	tallies map[denials]*tally
}

// ledger is what records tell of the kernel's counts.
type ledger struct {
	packets map[denials]uint64 // of each count
	debt    uint64
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
	k, end := denialsOf(&e)
	t := s.of(k)
	t.recorded += e.Packets[0]
	t.end = end
}

// remainder stands for denials without records of their own.
type remainder struct {
	event   datapath.Event
	packets uint64
	unnamed uint64 // further ones that records of lost events tell
}

// look takes the kernel's counts and returns what stands for what they hold beyond the records.
func (s *suppressed) look(counts []datapath.DenialCount, now time.Time) (out []remainder) {
	for _, c := range counts {
		k := denials{c.Endpoint, c.Rule, c.Direction, c.Reason}
		if chatter[c.Reason.String()] {
			continue
		}
		t := s.of(k)
		if !s.started || c.Packets < t.counted {
			base := c.Packets
			if !s.started && s.told != nil {
				base = min(base, s.told.packets[k])
			}
			*t = tally{base: base, counted: c.Packets, end: t.end}
			continue
		}
		if n := t.counted - t.base; n > t.recorded+t.said {
			more := n - t.recorded - t.said
			t.said += more
			unnamed := min(more, s.debt)
			s.debt -= unnamed
			if more > unnamed {
				out = append(out, remainder{k.event(t.end, now), more - unnamed, unnamed})
			}
		}
		t.counted = c.Packets
	}
	s.started = true
	return out
}

// ledger is what is told of each count to begin with.
func (s *suppressed) ledger() ledger {
	out := ledger{map[denials]uint64{}, s.debt}
	for k, t := range s.tallies {
		out.packets[k] = t.base
	}
	return out
}

// denialsOf is what the kernel counted e by, and the end of the packet that the endpoint was at.
func denialsOf(e *datapath.Event) (k denials, end int) {
	k = denials{endpoint: e.Endpoint[0], direction: e.Direction, reason: e.Reason}
	if k.endpoint == 0 {
		k.endpoint, end = e.Endpoint[1], 1
	}
	if e.Direction != datapath.None {
		k.rule = e.Rule[e.Direction]
	}
	return k, end
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
	for _, m := range l.suppressed.look(counts, l.opts.Now()) {
		r := l.names.record(m.event)
		r.suppressed, r.unnamed, r.read, r.denials = m.packets, m.unnamed, l.read.Load(), l.denied
		l.tallies.add(r)
		l.ring.add(r)
	}
}

// firstLook begins to count: from what the log before told, where its past says so.
func (l *Log) firstLook(in datapath.Reader) {
	l.mu.Lock()
	started := l.suppressed.started
	l.mu.Unlock()
	if started {
		return // by an earlier Run
	}
	told := l.history.ledger(in)
	l.mu.Lock()
	if l.suppressed.told = told; told != nil {
		l.suppressed.debt = told.debt
	}
	l.mu.Unlock()
	l.countDenials()
	if told != nil || l.opts.Counters == nil {
		return
	}
	if c, err := l.opts.Counters(); err == nil && c.DenialsSuppressed > 0 {
		slog.Warn("denied packets were counted and not recorded one by one before this agent: whether the log of one before told them is not known, for there is none on disk", "packets", c.DenialsSuppressed)
	}
}

// lastLook tells what is outstanding when the log ends. What the rings hold is read in between:
// it has records of its own.
func (l *Log) lastLook(losses func()) {
	if l.opts.Denials == nil {
		return
	}
	losses()
	l.countDenials()
	time.Sleep(lastPause)
	losses()
	l.countDenials()
}

// lastPause is enough for a reader to come by the rings, and short for who waits for an agent to end.
const lastPause = 200 * time.Millisecond
