package flowexport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weirnet/weir/controlplane/flowlog"
)

// Target takes flows. It is used by one goroutine.
type Target interface {
	// Send hands on records in their order, some of lost events, and returns how many of the
	// first are settled.
	// A *RefusedError says that some after these will never be taken; after any other error
	// what is not settled is sent again later. None at all is to look whether it could.
	Send(context.Context, []*flowlog.Record) (settled int, err error)
	// Close lets go of what the target holds; nothing is sent after it.
	Close() error
}

// RefusedError says that a target will not take N records, however often they are sent.
type RefusedError struct {
	N   int
	Err error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%d records refused: %v", e.N, e.Err) }

func (e *RefusedError) Unwrap() error { return e.Err }

// Config is an Exporter's.
type Config struct {
	Name   string // the kind: "file", "otlp"
	Where  string // what people call the target: a path, a URL; no secrets
	Target Target
	Filter flowlog.Filter
	Log    *slog.Logger

	Queue  int           // flows that wait at most; 0 = QueueSize
	Batch  int           // handed on at once at most; 0 = 512
	Linger time.Duration // how long the first of a batch waits for others; 0 = 100 ms
	Retry  time.Duration // first pause after a failure, doubled up to 30 s; 0 = 1 s
	Final  time.Duration // how long the last flows may take at the end; 0 = 2 s
}

// QueueSize is how many flows wait for a target by default.
const QueueSize = 16384

const longestPause = 30 * time.Second

// Exporter hands the flows of a log to a target.
type Exporter struct {
	Config
	from  *flowlog.Reader
	queue *queue

	mu    sync.Mutex // the account
	count account
}

// New returns an Exporter of what comes into the log from now on; it does nothing until it is
// run.
func New(from *flowlog.Log, c Config) *Exporter {
	if c.Queue <= 0 {
		c.Queue = QueueSize
	}
	if c.Batch <= 0 {
		c.Batch = 512
	}
	if c.Linger <= 0 {
		c.Linger = 100 * time.Millisecond
	}
	if c.Retry <= 0 {
		c.Retry = time.Second
	}
	if c.Final <= 0 {
		c.Final = 2 * time.Second
	}
	return &Exporter{Config: c, from: from.Reader("export-" + c.Name), queue: newQueue(c.Queue)}
}

// Run exports until ctx or the log is over, and closes the target.
func (e *Exporter) Run(ctx context.Context) {
	sent := make(chan struct{})
	go func() { defer close(sent); e.sendAll(ctx) }()
	e.read(ctx)
	e.queue.close()
	select {
	case <-sent:
	case <-over(ctx, 2*e.Final):
		e.Log.Warn("an export's target holds up the agent's end: it is left", "export", e.Name, "target", e.Where)
		return
	}
	if err := e.Target.Close(); err != nil {
		e.Log.Warn("an export's target did not end well", "export", e.Name, "target", e.Where, "error", err)
	}
}

// read takes records from the log into the queue; it waits for nothing else.
func (e *Exporter) read(ctx context.Context) {
	defer e.from.Close()
	for {
		records, missed, err := e.from.Next(ctx)
		if err != nil {
			return // ctx or the log is over
		}
		for _, r := range missed {
			e.take(r)
		}
		for _, r := range records {
			e.take(r)
		}
	}
}

func (e *Exporter) take(r *flowlog.Record) {
	if n, cause := r.Lost(); n > 0 {
		e.queue.addLost(n, cause)
		if cause == "" {
			e.lose(LostBehind, n)
		}
		return
	}
	if !e.Filter.Wants(r) {
		return
	}
	e.taken()
	if !e.queue.add(r) {
		e.lose(LostQueue, 1)
	}
}

// over is closed so long after ctx is.
func over(ctx context.Context, after time.Duration) <-chan struct{} {
	out := make(chan struct{})
	context.AfterFunc(ctx, func() { time.AfterFunc(after, func() { close(out) }) })
	return out
}

// sendAll is the target's side: until the queue is closed and empty.
func (e *Exporter) sendAll(ctx context.Context) {
	final, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	context.AfterFunc(ctx, func() { time.AfterFunc(e.Final, cancel) })
	if _, err := e.Target.Send(final, nil); err != nil {
		e.away(err) // what is wrong on this node is told before the first flow
	}
	for {
		batch := e.queue.next(e.Batch, e.Linger)
		if batch == nil {
			return
		}
		e.deliver(ctx, final, batch)
	}
}

// deliver sends a batch until all of it is settled. Once ctx is over there are no more
// pauses; once final is, the rest is lost.
func (e *Exporter) deliver(ctx, final context.Context, batch []*flowlog.Record) {
	pause := e.Retry
	for len(batch) > 0 {
		n, err := e.Target.Send(final, batch)
		e.settle(batch[:n], "")
		batch = batch[n:]
		var refused *RefusedError
		switch {
		case err == nil:
		case errors.As(err, &refused):
			n := min(max(refused.N, 1), len(batch))
			e.settle(batch[:n], LostRefused)
			batch = batch[n:]
			e.refused(refused)
		case ctx.Err() != nil:
			e.away(err)
			e.settle(batch, LostEnd)
			return
		default:
			e.away(err)
			e.sleep(ctx, pause)
			pause = min(2*pause, longestPause)
			continue
		}
		e.back()
		pause = e.Retry
	}
}

// sleep waits about so long, less if ctx is over.
func (e *Exporter) sleep(ctx context.Context, pause time.Duration) {
	t := time.NewTimer(pause - pause/8 + rand.N(pause/4+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
