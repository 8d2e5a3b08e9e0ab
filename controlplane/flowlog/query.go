package flowlog

import (
	"context"
	"errors"
	"io"
	"iter"
	"math"
	"slices"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
)

// Selection says which records a reader gets, from when on and how many.
type Selection struct {
	Filter Filter
	Since  time.Time // not older; zero = no bound
	Until  time.Time // not newer; zero = no bound. A follower is let go when it is over
	Number uint64    // so many at most of those there are; 0 = all
	First  bool      // the oldest Number, not the newest
	Follow bool      // go on with new ones
	New    bool      // none of those there are, only what comes
}

// Query is Select for what q asks for. A *FilterError means that q is wrong, and that
// nothing was sent.
func (l *Log) Query(ctx context.Context, q api.FlowQuery, to Sink) error {
	s, err := l.selection(q)
	if err != nil {
		return err
	}
	return l.Select(ctx, s, to)
}

func (l *Log) selection(q api.FlowQuery) (Selection, error) {
	f, err := l.QueryFilter(q)
	s := Selection{Filter: f, Number: uint64(q.Last), Follow: q.Follow, New: q.New}
	if q.Since > 0 {
		s.Since = l.opts.Now().Add(-q.Since)
	}
	if q.Until > 0 {
		s.Until = l.opts.Now().Add(-q.Until)
	}
	return s, err
}

// Select sends the records that s asks for, those on disk and then those in the ring, oldest
// first, and with s.Follow goes on with new ones until ctx is over, s.Until is or the log's Run
// is. A follower that reads too slowly skips what the ring could not keep for it and gets a
// lost_events message with the number of records, matching or not, in their place. The error
// is to's, or ctx's.
func (l *Log) Select(ctx context.Context, s Selection, to Sink) error {
	kept, end := l.ring.all()
	if !s.New {
		for r := range l.past(s, kept, end.next-uint64(len(kept))) {
			if err := l.send(r, to); err != nil {
				l.cutOff(nameOf(ctx), err)
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	if err := to.Flush(); err != nil || !s.Follow {
		return err
	}
	return l.follow(ctx, end, s, to)
}

// past yields the records that s asks for among those that there are, oldest first: kept are
// the ring's, of which the oldest has that number.
func (l *Log) past(s Selection, kept []*record, oldest uint64) iter.Seq[*record] {
	spilled := func(backward bool) iter.Seq[*record] {
		if covers(kept, &s) {
			return func(func(*record) bool) {}
		}
		return l.history.records(oldest, &s, backward)
	}
	if s.Number > 0 && !s.First {
		return slices.Values(s.newest(kept, spilled(true)))
	}
	return func(yield func(*record) bool) {
		n := uint64(0)
		each := func(r *record) bool {
			if !s.wants(r) || n == 0 && s.before(r) {
				return true
			}
			n += counts(r)
			return yield(r) && (s.Number == 0 || n < s.Number)
		}
		for r := range spilled(false) {
			if !each(r) {
				return
			}
		}
		for _, r := range kept {
			if !each(r) {
				return
			}
		}
	}
}

// newest are the newest Number of those that s wants, oldest first.
func (s *Selection) newest(kept []*record, spilled iter.Seq[*record]) []*record {
	var out []*record
	n := uint64(0)
	take := func(r *record) bool {
		if s.wants(r) {
			out = append(out, r)
			n += counts(r)
		}
		return n < s.Number
	}
	more := true
	for i := len(kept) - 1; i >= 0 && more; i-- {
		more = take(kept[i])
	}
	if more {
		spilled(take)
	}
	for len(out) > 0 && s.before(out[len(out)-1]) {
		out = out[:len(out)-1]
	}
	slices.Reverse(out)
	return out
}

// counts is what a record counts for where a number is asked for: a gap was not.
func counts(r *record) uint64 {
	if r.lost > 0 {
		return 0
	}
	return 1
}

// before reports whether r is a gap that is not told before the oldest record that is sent: where
// a number alone is asked for, what was lost earlier is not of the time that is shown.
func (s *Selection) before(r *record) bool {
	return r.lost > 0 && s.Number > 0 && s.Number < math.MaxUint64 && s.Since.IsZero() // the largest is Hubble's "all"
}

// wants reports whether s asks for r, were there no end to how many.
func (s *Selection) wants(r *record) bool {
	at := r.event.Time
	return !at.Before(s.Since) && (s.Until.IsZero() || !at.After(s.Until)) && (r.lost > 0 || s.Filter.match(r)) // a gap may hold what is asked for
}

// late is how long after its time a record may come: the kernel's rings are read in turn.
const late = time.Second

// follow goes on where all there was ended.
func (l *Log) follow(ctx context.Context, end place, s Selection, to Sink) error {
	within := ctx
	if !s.Until.IsZero() {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, s.Until.Sub(l.opts.Now())+late)
		defer cancel()
	}
	r := l.readerAt(nameOf(ctx), end)
	defer r.Close()
	for {
		records, missed, err := r.Next(within)
		switch {
		case errors.Is(err, io.EOF), err != nil && ctx.Err() == nil:
			return nil // the log's end, or that of the time asked for
		case err != nil:
			return err
		}
		if err := l.sendAll(records, missed, s, to); err != nil {
			l.cutOff(r.name, err)
			return err
		}
	}
}

// sendAll sends what a reader took, after what it missed.
func (l *Log) sendAll(records, missed []*record, s Selection, to Sink) error {
	for _, r := range missed {
		if err := to.Send(l.response(r)); err != nil {
			return err
		}
	}
	for _, r := range records {
		if !s.wants(r) {
			continue
		}
		if err := l.send(r, to); err != nil {
			return err
		}
	}
	return to.Flush()
}

// Sink takes a query's answer.
type Sink interface {
	// Send takes one message; an error ends the query.
	Send(*observerpb.GetFlowsResponse) error
	// Flush is called when all there is at the moment was sent.
	Flush() error
}

// recordSink is a Sink that makes of records what it needs itself.
type recordSink interface {
	SendRecord(*Record) error
}

func (l *Log) send(r *record, to Sink) error {
	if to, ok := to.(recordSink); ok {
		return to.SendRecord(r)
	}
	return to.Send(l.response(r))
}
