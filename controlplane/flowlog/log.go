package flowlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirnet/weir/controlplane/flowlog/spill"
	"github.com/weirnet/weir/datapath"
)

// Size is how many records a Log keeps by default.
const Size = 65536

// Options of a Log.
type Options struct {
	Off     bool             // the programs write no records: whoever asks for some is told
	Node    string           // the node's name in every message
	Version string           // of the agent
	Size    int              // records kept; 0 = Size
	Now     func() time.Time // nil = time.Now
	// Denials, when set, are the kernel's exact counts (datapath.Kernel has them):
	// every Interval the log adds a record for the denials of each endpoint and rule
	// that were counted but not recorded one by one.
	Denials  func() ([]datapath.DenialCount, error)
	Interval time.Duration // 0 = 10 s
	// Counters, when set, are the kernel's own: what it had no room for is told in the log.
	Counters func() (datapath.Counters, error)
	// Spill, when set, is where records go that shall outlive the log. Run closes it.
	Spill *spill.Store
}

// Log keeps the newest flow records of the node. It may be used from many goroutines.
type Log struct {
	streams Streams // of ServeHTTP
	opts    Options
	ring    *ring

	read    atomic.Uint64 // events
	account account
	history history

	mu         sync.Mutex // one event at a time: names, suppressed and tallies
	names      *namer
	suppressed *suppressed
	denied     uint64 // events
	tallies    tallies
	namespaces map[string]time.Time // when they last had a flow

	begun   time.Time
	emitter []byte // wireEmitter
}

// ErrOff is why a Log has no records, for who asks for some.
var ErrOff = errors.New("flow records are off on this node (weir-agent --flow-records=false): what is dropped is counted, see weir status")

// Off is ErrOff where there are no records.
func (l *Log) Off() error {
	if l.opts.Off {
		return ErrOff
	}
	return nil
}

// New returns an empty Log that asks names, never from two goroutines at once.
func New(names Names, opts Options) *Log {
	if opts.Size <= 0 {
		opts.Size = Size
	}
	if opts.Off {
		opts.Denials = nil // none is recorded one by one
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Interval <= 0 {
		opts.Interval = 10 * time.Second
	}
	return &Log{streams: NewStreams(streamsMost), history: history{store: opts.Spill, run: rand.Uint64()}, names: newNamer(names), ring: newRing(opts.Size), opts: opts, suppressed: newSuppressed(), namespaces: map[string]time.Time{}, begun: opts.Now(), emitter: wireEmitter(opts.Version)}
}

// Run records what r yields until ctx is over (nil) or r fails; it closes r. Followers
// wait for a first Run and are let go when it returns; what was recorded stays. It may
// be run again, with another reader.
func (l *Log) Run(ctx context.Context, r datapath.Reader) error {
	l.ring.setClosed(false)
	if l.opts.Denials != nil {
		l.firstLook(r)
	}
	if l.opts.Spill != nil {
		spilled := make(chan struct{})
		l.begin(r)
		kept := l.Reader(spillName)
		go func() { defer close(spilled); l.history.keep(kept) }()
		defer func() { <-spilled }()
	}
	defer l.ring.setClosed(true)
	look := func() {} // at what the kernel lost: before its counts, which have that, too
	if l.opts.Counters != nil {
		var err error
		if look, err = l.watchLosses(); err != nil {
			_ = r.Close()
			return err
		}
		watching, stopped := context.WithCancel(ctx)
		defer stopped()
		go again(watching, lossInterval, look)
	}
	if l.opts.Denials != nil {
		counting, stopped := context.WithCancel(ctx)
		defer stopped()
		go again(counting, l.opts.Interval, func() { look(); l.countDenials() })
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		l.lastLook(look)
		_ = r.Close()
	})
	defer func() {
		if stop() {
			_ = r.Close()
		} else {
			<-ended
		}
	}()
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
	read := l.read.Add(1)
	l.suppressed.recorded(e)
	r := l.names.record(e)
	if e.Kind == datapath.EventDenied {
		l.denied++
	}
	r.read, r.denials = read, l.denied
	l.tallies.add(r)
	l.noteNamespaces(r)
	l.ring.add(r)
}
