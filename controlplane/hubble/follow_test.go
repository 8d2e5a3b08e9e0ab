package hubble

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirnet/weir/controlplane/flowlog"
)

func TestFollow(t *testing.T) {
	n := start(t)
	n.record(flow(1), flow(2))
	client := observerpb.NewObserverClient(n.dial())
	for _, c := range []struct {
		req  *observerpb.GetFlowsRequest
		want []uint32 // and then 3
	}{
		{&observerpb.GetFlowsRequest{Follow: true, Whitelist: []*flowpb.FlowFilter{{DestinationPort: []string{"1", "3"}}}}, nil},
		{&observerpb.GetFlowsRequest{Follow: true, Number: 1}, []uint32{2}},
		{&observerpb.GetFlowsRequest{Follow: true, Since: timestamppb.New(time.Unix(1, 0))}, []uint32{1, 2}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := client.GetFlows(ctx, c.req)
		if err != nil {
			t.Fatal(err)
		}
		await(t, "the follower", func() bool { return open(n.flows) == 1 })
		n.record(flow(3))
		for _, want := range append(c.want, 3) {
			m, err := stream.Recv()
			if err != nil || m.GetFlow().GetL4().GetTCP().GetDestinationPort() != want {
				t.Errorf("%v: %v, %v, want the flow to port %d", c.req, m, err, want)
			}
		}
		cancel()
		await(t, "its end", func() bool { return open(n.flows) == 0 })
		n.record(flow(1), flow(2))
	}
}

// open is how many follow.
func open(l *flowlog.Log) (n int) {
	for _, r := range l.Status().Readers {
		n += r.Open
	}
	return n
}

// A reader that takes nothing is left behind and told so; nobody waits for it meanwhile.
func TestStalledReader(t *testing.T) {
	n := start(t, func(o *Options) { o.Stall = 300 * time.Millisecond })
	c := observerpb.NewObserverClient(n.dial())
	stream, err := c.GetFlows(t.Context(), &observerpb.GetFlowsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the reader", func() bool { return open(n.flows) == 1 })
	await(t, "its end", func() bool {
		for range 500 {
			n.events <- flow(1) // as fast as they come: the log never waits
		}
		return open(n.flows) == 0
	})
	taken := uint64(0)
	for {
		m, err := stream.Recv()
		if err == nil {
			taken += 1 + m.GetLostEvents().GetNumEventsLost()
			continue
		}
		if s := status.Convert(err); s.Code() != codes.ResourceExhausted || !strings.Contains(s.Message(), "took nothing for 300ms") {
			t.Errorf("it ended with %v", err)
		}
		break
	}
	if r := n.flows.Status().Readers[0]; r.Name != "hubble" || r.Cut != 1 || taken == 0 || taken > r.Taken+r.Lost {
		t.Errorf("the account is %+v, the reader had %d", r, taken)
	}
}

// Readers that come and go leave nothing behind.
func TestManyReaders(t *testing.T) {
	n := start(t)
	n.record(flow(1))
	conn := n.dial()
	c := observerpb.NewObserverClient(conn)
	if _, err := ask(t, conn, &observerpb.GetFlowsRequest{}); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		for range 100 {
			stream, err := c.GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true, Number: 1})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		n.record(flow(1))
		cancel()
	}
	await(t, "their end", func() bool {
		return open(n.flows) == 0 && len(n.server.slots) == 0 && runtime.NumGoroutine() <= before+5
	})
}

func TestTooManyStreams(t *testing.T) {
	n := start(t)
	for range cap(n.server.slots) {
		n.server.slots <- struct{}{}
	}
	_, err := ask(t, n.dial(), &observerpb.GetFlowsRequest{})
	if s := status.Convert(err); s.Code() != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	for range cap(n.server.slots) {
		<-n.server.slots
	}
}

// A reader that pauses loses what the log cannot keep for it, and is told how much: what was
// produced is what it got and what it lost, to the record.
func TestAccountOfAPausingReader(t *testing.T) {
	const produced = 30_000
	n := start(t)
	stream, err := observerpb.NewObserverClient(n.dial()).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the reader", func() bool { return open(n.flows) == 1 })
	go func() {
		for range produced {
			n.events <- flow(1)
		}
	}()
	await(t, "the log", func() bool { return n.flows.Status().Records == produced }) // it reads nothing meanwhile
	got, lost := uint64(0), uint64(0)
	for got+lost < produced {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d flows and %d lost ones: %v", got, lost, err)
		}
		if l := m.GetLostEvents(); l != nil {
			if l.GetSource() != flowpb.LostEventSource_HUBBLE_RING_BUFFER {
				t.Errorf("lost to %v", l.GetSource())
			}
			lost += l.GetNumEventsLost()
		} else {
			got++
		}
	}
	a := n.flows.Status().Readers[0]
	if got+lost != produced || lost == 0 || a.Taken != got || a.Lost != lost {
		t.Errorf("produced %d, got %d, lost %d; the account is %+v", produced, got, lost, a)
	}
}
