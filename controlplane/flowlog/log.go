package flowlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
)

// Size is how many records a Log keeps by default.
const Size = 65536

// batch is how many records a follower takes from the ring at once.
const batch = 512

// Options of a Log.
type Options struct {
	Node    string           // the node's name in every message
	Version string           // of the agent
	Size    int              // records kept; 0 = Size
	Now     func() time.Time // nil = time.Now
	// Denials, when set, are the kernel's exact counts (datapath.Kernel has them):
	// every Interval the log adds a record for the denials of each endpoint and rule
	// that were counted but not recorded one by one.
	Denials  func() ([]datapath.DenialCount, error)
	Interval time.Duration // 0 = 10 s
}

// Log keeps the newest flow records of the node. It may be used from many goroutines.
type Log struct {
	opts Options
	ring *ring

	mu         sync.Mutex // one event at a time: names and suppressed
	names      *namer
	suppressed *suppressed
}

// New returns an empty Log that asks names, never from two goroutines at once.
func New(names Names, opts Options) *Log {
	if opts.Size <= 0 {
		opts.Size = Size
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Interval <= 0 {
		opts.Interval = 10 * time.Second
	}
	return &Log{names: newNamer(names), ring: newRing(opts.Size), opts: opts, suppressed: newSuppressed()}
}

// Run records what r yields until ctx is over (nil) or r fails; it closes r. Followers
// wait for a first Run and are let go when it returns; what was recorded stays. It may
// be run again, with another reader.
func (l *Log) Run(ctx context.Context, r datapath.Reader) error {
	l.ring.setClosed(false)
	defer l.ring.setClosed(true)
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer func() {
		if stop() {
			_ = r.Close()
		}
	}()
	if l.opts.Denials != nil {
		l.countDenials()
		counting, stopped := context.WithCancel(ctx)
		defer stopped()
		go l.watchDenials(counting)
	}
	for {
		e, err := r.Read()
		switch {
		case err != nil && (ctx.Err() != nil || errors.Is(err, os.ErrClosed)):
			return nil
		case err != nil:
			return fmt.Errorf("read flow events: %w", err)
		}
		l.add(e)
	}
}

func (l *Log) add(e datapath.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.suppressed.recorded(e)
	l.ring.add(l.names.record(e))
}

// Sink takes a query's answer.
type Sink interface {
	// Send takes one message; an error ends the query.
	Send(*observerpb.GetFlowsResponse) error
	// Flush is called when all there is at the moment was sent.
	Flush() error
}

// Query sends the records that q asks for, oldest first, and with q.Follow goes on with
// new ones until ctx is over or the log's Run is. A follower that reads too slowly skips
// what the ring could not keep for it and gets a lost_events message with the number of
// records, matching or not, in their place. The error is to's, or ctx's.
func (l *Log) Query(ctx context.Context, q api.FlowQuery, to Sink) error {
	match := compile(q)
	kept, next := l.ring.all()
	for _, r := range l.past(q, match, kept) {
		if err := to.Send(l.response(r)); err != nil {
			return err
		}
	}
	if err := to.Flush(); err != nil || !q.Follow {
		return err
	}
	return l.follow(ctx, next, match, to)
}

// past returns the records that q asks for among those kept, oldest first.
func (l *Log) past(q api.FlowQuery, match filter, kept []*record) []*record {
	if q.New {
		return nil
	}
	var since time.Time
	if q.Since > 0 {
		since = l.opts.Now().Add(-q.Since)
	}
	var out []*record
	for _, r := range slices.Backward(kept) {
		if q.Last > 0 && len(out) == q.Last {
			break
		}
		if !r.event.Time.Before(since) && match(r) {
			out = append(out, r)
		}
	}
	slices.Reverse(out)
	return out
}

func (l *Log) follow(ctx context.Context, next uint64, match filter, to Sink) error {
	buf := make([]*record, 0, batch)
	for {
		records, lost, wait := l.ring.after(next, buf)
		if wait != nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-wait:
			}
			continue
		}
		if len(records) == 0 && lost == 0 {
			return nil
		}
		next += lost + uint64(len(records))
		if err := l.sendAll(records, lost, match, to); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (l *Log) sendAll(records []*record, lost uint64, match filter, to Sink) error {
	if lost > 0 {
		if err := to.Send(l.lost(lost)); err != nil {
			return err
		}
	}
	for _, r := range records {
		if !match(r) {
			continue
		}
		if err := to.Send(l.response(r)); err != nil {
			return err
		}
	}
	return to.Flush()
}
