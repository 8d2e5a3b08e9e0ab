// Package flowfeed is a flow log that tests feed by hand, with a shop of two pods.
package flowfeed

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Node is the name of the log's node.
const Node = "worker-1"

// Feed is a log that runs until its test is over.
type Feed struct {
	testing.TB
	Log    *flowlog.Log
	events chan datapath.Event
	sent   uint64
	port   uint16

	mu       sync.Mutex
	counters datapath.Counters
}

// New returns a log that keeps so many records; 0 = the default.
func New(t testing.TB, size int) *Feed {
	f := &Feed{TB: t, events: make(chan datapath.Event)}
	f.Log = flowlog.New(shop{}, flowlog.Options{Node: Node, Version: "0.1.0", Size: size, Counters: f.kernel})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- f.Log.Run(ctx, reader{f.events, ctx.Done()}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return f
}

// Add puts events into the log; it has them when Add returns.
func (f *Feed) Add(events ...datapath.Event) {
	f.Helper()
	for _, e := range events {
		select {
		case f.events <- e:
			f.sent++
		case <-time.After(10 * time.Second):
			f.Fatal("the log does not read")
		}
	}
	for f.Log.Status().Records < f.sent {
		time.Sleep(100 * time.Microsecond)
	}
}

// KernelLoses has the kernel lose events, and denials; the log tells of both when it returns.
func (f *Feed) KernelLoses(events, denials uint64) {
	f.Helper()
	before := f.Log.Status().Records
	f.mu.Lock()
	f.counters.EventsLost += events
	f.counters.DenialsLost += denials
	f.mu.Unlock()
	f.sent += min(events, 1) + min(denials, 1)
	for end := time.Now().Add(20 * time.Second); f.Log.Status().Records < before+min(events, 1)+min(denials, 1); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.Fatal("the log does not tell what the kernel lost")
		}
	}
}

func (f *Feed) kernel() (datapath.Counters, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counters, nil
}

// Flows makes n flows of web to db begin, from the next source ports on: 1, 2, ...
func (f *Feed) Flows(n int) {
	f.Helper()
	for range n {
		f.port++
		f.Add(Began(f.port))
	}
}

// Records are what the log makes of events.
func (f *Feed) Records(events ...datapath.Event) (out []*flowlog.Record) {
	f.Helper()
	r := f.Log.Reader("test")
	defer r.Close()
	f.Add(events...)
	for len(out) < len(events) {
		some, _, err := r.Next(f.Context())
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, some...)
	}
	return out
}

// At is when events are.
var At = time.Date(2026, 11, 24, 12, 0, 0, 123e6, time.UTC)

// Began is web -> db:6379, allowed on both sides.
func Began(port uint16) datapath.Event {
	return datapath.Event{
		Kind: datapath.EventNew, Time: At, Created: uint64(port), Epoch: 12, Protocol: datapath.TCP, Direction: datapath.None,
		Source: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port), Destination: netip.MustParseAddrPort("10.0.0.3:6379"),
		Ifindex: 7, Endpoint: [2]uint32{1, 2}, Identity: [2]identity.Number{1001, 1002}, Rule: [2]uint32{datapath.RuleNotIsolated, 300},
		Judged: datapath.JudgedEgress | datapath.JudgedIngress, Path: 1, TCPFlags: 2, Packets: [2]uint64{1, 0}, Bytes: [2]uint64{60, 0},
		Process: &datapath.Process{PID: 812, Name: "curl", Executable: "/usr/bin/curl", Start: At.Add(-time.Minute)},
	}
}

// Ended is how it may end.
func Ended(port uint16) datapath.Event {
	e := Began(port)
	e.Kind, e.End, e.Age, e.TCPFlags = datapath.EventEnded, 1, 2500*time.Millisecond, 0x1b1b
	e.Packets, e.Bytes = [2]uint64{7, 5}, [2]uint64{700, 5000}
	e.TCP[0] = datapath.TCPEnd{Known: true, RTT: 250 * time.Microsecond, Retransmits: 3}
	return e
}

// Denied is the same, denied by the isolation of db.
func Denied(port uint16) datapath.Event {
	e := Began(port)
	e.Kind, e.Created, e.Dropped, e.Reason, e.Direction, e.Path = datapath.EventDenied, 0, true, datapath.ReasonPolicy, datapath.Ingress, 0
	e.Rule[1] = 301
	return e
}

// shop is the flowlog.Names of it.
type shop struct{}

func (shop) Endpoint(number uint32) *flowlog.Party {
	switch number {
	case 1:
		return &flowlog.Party{Namespace: "shop", Name: "web-1", Labels: []string{"app=web"}, Workload: flowlog.Workload{Kind: "Deployment", Name: "web"}}
	case 2:
		return &flowlog.Party{Namespace: "shop", Name: "db-0", Labels: []string{"app=db"}}
	}
	return nil
}

func (shop) Peer(a netip.Addr, _ identity.Number) *flowlog.Party {
	if a == netip.MustParseAddr("192.168.0.10") {
		return &flowlog.Party{Name: Node}
	}
	return nil
}

func (shop) ServiceNumbered(number uint16) *flowlog.Ref {
	if number == 9 {
		return &flowlog.Ref{Namespace: "shop", Name: "db"}
	}
	return nil
}

func (shop) Service(a netip.Addr) *flowlog.Ref {
	if a == netip.MustParseAddr("10.96.0.10") {
		return &flowlog.Ref{Namespace: "kube-system", Name: "dns"}
	}
	return nil
}

func (shop) Interface(uint32) string { return "weir0000000000a" }

func (shop) Rule(id uint32) (policy.Rule, bool) {
	ref := policy.Ref{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"}
	switch id {
	case 300:
		return policy.Rule{ID: id, Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "db", Direction: datapath.Ingress}, true
	case 301:
		return policy.Rule{ID: id, Kind: policy.KindDefaultDeny, Direction: datapath.Ingress, IsolatedBy: []policy.Ref{ref}}, true
	}
	return policy.NewAllocator().Rule(id)
}

type reader struct {
	events chan datapath.Event
	closed <-chan struct{}
}

func (r reader) Read() (datapath.Event, error) {
	select {
	case e := <-r.events:
		return e, nil
	case <-r.closed:
		return datapath.Event{}, os.ErrClosed
	}
}

func (reader) Close() error { return nil }
