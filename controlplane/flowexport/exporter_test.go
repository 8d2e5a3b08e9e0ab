package flowexport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowexport"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/tests/flowfeed"
)

// node is a flow log that is fed by hand, and its exporters.
type node struct {
	*flowfeed.Feed
	said *safeBuffer // what exporters log
}

func newNode(t *testing.T, size int) *node { return &node{flowfeed.New(t, size), &safeBuffer{}} }

func (n *node) start(c flowexport.Config) (e *flowexport.Exporter, stop func()) {
	c.Log = slog.New(slog.NewTextHandler(n.said, nil))
	if c.Linger == 0 {
		c.Linger = time.Millisecond
	}
	c.Retry = 5 * time.Millisecond
	e = flowexport.New(n.Log, c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); e.Run(ctx) }()
	stop = func() {
		n.Helper()
		cancel()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			n.Fatal("the exporter does not end")
		}
	}
	n.Cleanup(stop)
	return e, stop
}

// balanced returns a status in which every flow is accounted for.
func (n *node) balanced(e *flowexport.Exporter) api.ExportStatus {
	n.Helper()
	s := e.Status()
	if got := s.Exported + s.Queued + s.Lost["queue"] + s.Lost["refused"] + s.Lost["end"]; got != s.Taken {
		n.Fatalf("%d of %d flows accounted for: %+v", got, s.Taken, s)
	}
	return s
}

// until waits for a status.
func (n *node) until(e *flowexport.Exporter, what string, is func(api.ExportStatus) bool) api.ExportStatus {
	n.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s := n.balanced(e)
		if is(s) {
			return s
		}
		if time.Now().After(end) {
			n.Fatalf("not within 5 s: %s: %+v", what, s)
		}
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// target remembers what it got: source ports, and "lost N SOURCE".
type target struct {
	mu     sync.Mutex
	got    []string
	away   error           // Send fails
	refuse map[string]bool // for good
	hold   chan struct{}   // Send waits for it, whatever its context
	closed bool
}

func (r *target) Send(_ context.Context, records []*flowlog.Record) (int, error) {
	if r.hold != nil {
		<-r.hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, record := range records {
		text := fmt.Sprint(record.Event().Source.Port())
		if n, cause := record.Lost(); n > 0 {
			text = fmt.Sprintf("lost %d %s", n, cause)
		}
		switch {
		case r.away != nil:
			return i, r.away
		case r.refuse[text]:
			return i, &flowexport.RefusedError{N: 1, Err: errors.New("too ugly")}
		}
		r.got = append(r.got, text)
	}
	return len(records), nil
}

func (r *target) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

func (r *target) set(away error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

func (r *target) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func ports(from, to int) (out []string) {
	for p := from; p <= to; p++ {
		out = append(out, fmt.Sprint(p))
	}
	return out
}

func (n *node) same(got, want []string) {
	n.Helper()
	if !slices.Equal(got, want) {
		n.Fatalf("got %v\nwant %v", got, want)
	}
}

func TestAllThatComesIsExported(t *testing.T) {
	n := newNode(t, 1<<16)
	n.Flows(3) // before: not its business
	to := &target{}
	e, stop := n.start(flowexport.Config{Name: "test", Where: "here", Target: to, Batch: 7})
	n.Flows(1000)
	s := n.until(e, "all exported", func(s api.ExportStatus) bool { return s.Exported == 1000 })
	if s.Taken != 1000 || s.Error != "" || s.Queued != 0 {
		t.Errorf("%+v", s)
	}
	stop()
	n.same(to.all(), ports(4, 1003))
	if !to.closed || n.said.String() != "" {
		t.Errorf("closed: %v, said: %s", to.closed, n.said)
	}
}

// What a filter keeps back is no loss.
func TestOnlyWhatIsWantedIsTaken(t *testing.T) {
	n := newNode(t, 1<<16)
	wanted, err := n.Log.QueryFilter(api.FlowQuery{FlowEnd: api.FlowEnd{Ports: []string{"7"}}})
	if err != nil {
		t.Fatal(err)
	}
	to := &target{}
	e, stop := n.start(flowexport.Config{Name: "test", Target: to, Filter: wanted, Queue: 1})
	n.Flows(20)
	n.until(e, "one exported", func(s api.ExportStatus) bool { return s.Exported == 1 })
	stop()
	if s := n.balanced(e); s.Taken != 1 {
		t.Errorf("%+v", s)
	}
	n.same(to.all(), []string{"7"})
}

// A target that is away is told of once, and once when it is back; what its queue had no
// room for is lost, counted, and named in the stream where it is missing.
func TestTargetIsAwayAndComesBack(t *testing.T) {
	n := newNode(t, 1<<16)
	to := &target{away: errors.New("nobody listens")}
	e, stop := n.start(flowexport.Config{Name: "test", Where: "there", Target: to, Queue: 10, Batch: 4})
	n.Flows(4)
	n.until(e, "a failure", func(s api.ExportStatus) bool { return s.Failures > 0 })
	n.Flows(30) // 4 are being sent, or 1, ..., 10 wait
	s := n.until(e, "a full queue", func(s api.ExportStatus) bool { return s.Taken == 34 && s.Failures > 3 })
	if s.Lost["queue"] != 34-s.Queued || s.Queued < 10 || s.Queued > 14 || s.Error != "nobody listens" || s.Since == nil {
		t.Fatalf("%+v", s)
	}
	to.set(nil)
	n.until(e, "it is back", func(after api.ExportStatus) bool { return after.Exported == s.Queued && after.Error == "" })
	n.Flows(1)
	n.until(e, "another", func(after api.ExportStatus) bool { return after.Exported == s.Queued+1 })
	stop()
	kept := int(s.Queued)
	n.same(to.all(), slices.Concat(ports(1, kept), []string{fmt.Sprintf("lost %d export_queue", 34-kept)}, ports(35, 35)))
	said := n.said.String()
	if strings.Count(said, "\n") != 2 || strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, "nobody listens") ||
		!strings.Contains(said, "flows are exported again") || !strings.Contains(said, fmt.Sprintf("lost=%d", 34-kept)) {
		t.Errorf("said:\n%s", said)
	}
}

func TestWhatIsRefusedIsNotSentAgain(t *testing.T) {
	n := newNode(t, 1<<16)
	to := &target{refuse: map[string]bool{"5": true, "6": true, "20": true}}
	e, stop := n.start(flowexport.Config{Name: "test", Target: to, Batch: 8})
	n.Flows(30)
	s := n.until(e, "all settled", func(s api.ExportStatus) bool { return s.Exported == 27 })
	if s.Lost["refused"] != 3 || s.Failures != 0 || s.Error != "" {
		t.Errorf("%+v", s)
	}
	stop()
	n.same(to.all(), slices.Concat(ports(1, 4), ports(7, 19), ports(21, 30)))
	if said := n.said.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "too ugly") {
		t.Errorf("said:\n%s", said)
	}
}

// A target that never answers holds up neither the log, nor another exporter, nor the end.
func TestStuckTargetHoldsNobodyUp(t *testing.T) {
	n := newNode(t, 1<<16)
	stuck, fine := &target{hold: make(chan struct{})}, &target{}
	defer close(stuck.hold)
	e1, stop1 := n.start(flowexport.Config{Name: "stuck", Target: stuck, Queue: 50, Batch: 5, Final: 50 * time.Millisecond})
	e2, stop2 := n.start(flowexport.Config{Name: "fine", Target: fine})
	n.Flows(2000)
	n.until(e2, "all exported", func(s api.ExportStatus) bool { return s.Exported == 2000 })
	n.until(e1, "all taken", func(s api.ExportStatus) bool { return s.Taken == 2000 && s.Lost["queue"] >= 1945 })
	stop1()
	stop2()
	n.same(fine.all(), ports(1, 2000))
}

// What waits when the agent ends is tried once more, then lost and counted.
func TestEndWhileTargetIsAway(t *testing.T) {
	n := newNode(t, 1<<16)
	to := &target{away: errors.New("away")}
	e, stop := n.start(flowexport.Config{Name: "test", Target: to, Batch: 3})
	n.Flows(20)
	n.until(e, "all taken", func(s api.ExportStatus) bool { return s.Taken == 20 })
	stop()
	if s := n.balanced(e); s.Lost["end"] != 20 || s.Queued != 0 {
		t.Errorf("%+v", s)
	}
}

func TestEndSendsWhatWaits(t *testing.T) {
	n := newNode(t, 1<<16)
	to := &target{}
	e, stop := n.start(flowexport.Config{Name: "test", Target: to, Linger: time.Hour})
	n.Flows(20)
	n.until(e, "all taken", func(s api.ExportStatus) bool { return s.Taken == 20 })
	stop()
	if s := n.balanced(e); s.Exported != 20 {
		t.Errorf("%+v", s)
	}
	n.same(to.all(), ports(1, 20))
}

// What the log could not keep until it was read is counted, and named in the stream.
func TestBehind(t *testing.T) {
	n := newNode(t, 8)
	to := &target{}
	e := flowexport.New(n.Log, flowexport.Config{Name: "test", Target: to, Log: slog.New(slog.DiscardHandler), Linger: time.Millisecond})
	n.Flows(100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); e.Run(ctx) }()
	n.until(e, "what is left", func(s api.ExportStatus) bool { return s.Exported == 8 })
	cancel()
	<-ended
	if s := e.Status(); s.Lost["behind"] != 92 {
		t.Errorf("%+v", s)
	}
	n.same(to.all(), append([]string{"lost 92 "}, ports(93, 100)...))
}

// Nor is what the kernel lost meanwhile: those who missed the log's records of it hear of it, by
// cause, and flows alone count as missed.
func TestBehindHearsOfTheKernelsLosses(t *testing.T) {
	n := newNode(t, 8)
	to := &target{}
	e := flowexport.New(n.Log, flowexport.Config{Name: "test", Target: to, Log: slog.New(slog.DiscardHandler), Linger: time.Millisecond})
	n.Flows(20)
	n.KernelLoses(40, 2)
	n.Flows(30)
	n.KernelLoses(5, 0)
	n.Flows(4)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); e.Run(ctx) }()
	n.until(e, "what is left", func(s api.ExportStatus) bool { return s.Exported == 7 })
	cancel()
	<-ended
	if s := e.Status(); s.Lost["behind"] != 47 || s.Taken != 7 {
		t.Errorf("%+v", s)
	}
	n.same(to.all(), slices.Concat([]string{"lost 40 flow_events", "lost 2 denial_events", "lost 47 "}, ports(48, 50), []string{"lost 5 flow_events"}, ports(51, 54)))
}

// broken is a target that cannot be opened.
type broken struct{ err error }

func (b broken) Send(context.Context, []*flowlog.Record) (int, error) { return 0, b.err }
func (broken) Close() error                                           { return nil }

func TestTargetThatCannotBeIsToldOfBeforeTheFirstFlow(t *testing.T) {
	n := newNode(t, 0)
	e, _ := n.start(flowexport.Config{Name: "test", Target: broken{errors.New("no such directory")}})
	n.until(e, "an error", func(s api.ExportStatus) bool {
		return s.Error == "no such directory" && s.Failures == 1 && s.Taken == 0
	})
}
