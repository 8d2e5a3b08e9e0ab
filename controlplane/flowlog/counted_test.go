package flowlog

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/spill"
	"github.com/weirnet/weir/datapath"
)

// node is a kernel that denies: what it counted and what was read of its rings outlive logs.
type node struct {
	mu             sync.Mutex
	counted        datapath.DenialCount
	lost           uint64
	bytes, denials uint64
}

func newNode() *node {
	e := refused()
	k, _ := denialsOf(&e)
	return &node{counted: datapath.DenialCount{Endpoint: k.endpoint, Rule: k.rule, Direction: k.direction, Reason: k.reason}}
}

func (n *node) Denials() ([]datapath.DenialCount, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return []datapath.DenialCount{n.counted}, nil
}

func (n *node) Counters() (datapath.Counters, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return datapath.Counters{DenialsLost: n.lost}, nil
}

// counts packets, of which so many found the ring full.
func (n *node) counts(packets, lost uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counted.Packets += packets
	n.lost += lost
}

func (n *node) start(t *testing.T, dir string, interval time.Duration) *life {
	t.Helper()
	store, err := spill.Open(spill.Options{Dir: dir, Size: spill.SizeLeast, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	l := New(shop(), Options{Node: "worker-1", Size: 1024, Spill: store, Denials: n.Denials, Counters: n.Counters, Interval: interval})
	ctx, cancel := context.WithCancel(t.Context())
	in := newReader()
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx, rings{in, &n.bytes, &n.denials}) }()
	for len(l.Status().Readers) == 0 { // it has begun
		time.Sleep(time.Millisecond)
	}
	return &life{l, in, sync.OnceFunc(func() { cancel(); must(t, <-ran) })}
}

// denies has records of so many denials, and further ones that are only counted.
func (n *node) denies(l *life, records int, more uint64) {
	for range records {
		e := refused()
		e.Time = time.Now()
		n.counts(1, 0)
		before := l.read.Load()
		l.in.events <- e
		for l.read.Load() == before {
			time.Sleep(time.Millisecond)
		}
	}
	n.counts(more, 0)
}

// kill leaves of a life what was on its disk by now, which is where the next begins.
func (l *life) kill(t *testing.T, dir string, records uint64) (left string) {
	t.Helper()
	l.waitFor(t, records)
	left = t.TempDir()
	must(t, os.CopyFS(left, os.DirFS(dir)))
	return left
}

// shown is how many denied packets the log tells of: by records, by records of counts, as lost.
func (l *life) shown(t *testing.T) (records, counted, lost uint64) {
	t.Helper()
	var to collector
	must(t, l.Query(t.Context(), api.FlowQuery{}, &to))
	for _, m := range to.got {
		if e := m.GetLostEvents(); e != nil {
			lost += e.GetNumEventsLost()
			continue
		}
		var x api.FlowExtension
		text := &wrapperspb.StringValue{}
		must(t, m.GetFlow().GetExtensions().UnmarshalTo(text))
		must(t, json.Unmarshal([]byte(text.GetValue()), &x))
		if x.Suppressed == 0 {
			records++
		}
		counted += x.Suppressed
	}
	return records, counted, lost
}

func (l *life) shows(t *testing.T, what string, records, counted, lost uint64) {
	t.Helper()
	var got, want = [3]uint64{}, [3]uint64{records, counted, lost}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got[0], got[1], got[2] = l.shown(t)
		if got == want {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s: records, counted, lost are %d, want %d", what, got, want)
		}
	}
}

// Every denied packet is told once, by whichever log comes by: by a record, in a count, or as lost.
func TestCountedDenialsOutliveLogs(t *testing.T) {
	const never, soon = time.Hour, 20 * time.Millisecond
	n, dir := newNode(), t.TempDir()
	first := n.start(t, dir, never)
	n.denies(first, 5, 95)
	first.stop() // well
	first.shows(t, "the first has ended", 5, 95, 0)

	n.counts(11, 0) // nobody is there
	second := n.start(t, dir, never)
	n.denies(second, 3, 50)
	left := second.kill(t, dir, 3)
	n.denies(second, 2, 0) // read by it, and gone with it
	n.counts(7, 0)
	third := n.start(t, left, soon)
	third.shows(t, "the second was killed", 8, 95+11+50+7, 2)

	n.counts(30, 10)
	third.shows(t, "a ring was full", 8, 163+20, 12)
	n.denies(third, 1, 0)
	again := third.kill(t, left, 5)
	fourth := n.start(t, again, soon)
	time.Sleep(10 * soon)
	fourth.shows(t, "the third was killed, with all told", 9, 183, 12)
	fourth.stop()
	n.bytes, n.denials = 0, 0 // other rings, so other counts
	n.counted.Packets = 1000
	fifth := n.start(t, again, soon)
	n.denies(fifth, 1, 4)
	fifth.shows(t, "the node has booted", 10, 187, 12)
	fifth.stop()
	third.stop()
	second.stop()
}
