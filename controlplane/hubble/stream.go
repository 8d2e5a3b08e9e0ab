package hubble

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stream runs what sends to a client, one of a bounded number. A client that takes nothing
// for too long is left behind: its stream ends with the reason, whatever send waits for.
func (s *Server) stream(ctx context.Context, send func(context.Context, *watch) error) error {
	select {
	case s.slots <- struct{}{}:
	default:
		return status.Errorf(codes.ResourceExhausted, "%d streams are open already: try again later", streamsMost)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := newWatch(s.Stall)
	defer w.timer.Stop()
	done := make(chan error, 1)
	go func() {
		defer func() { <-s.slots }()
		done <- send(ctx, w)
	}()
	select {
	case err := <-done:
		return asStatus(err)
	case <-w.stalled:
		return status.Errorf(codes.ResourceExhausted, "this reader took nothing for %s and was left behind: ask again, with since, for what it missed", s.Stall)
	}
}

func asStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// watch looks at how long a client lets one message wait.
type watch struct {
	most    time.Duration
	timer   *time.Timer
	late    atomic.Bool
	stalled chan struct{}
}

func newWatch(most time.Duration) *watch {
	w := &watch{most: most, stalled: make(chan struct{})}
	w.timer = time.AfterFunc(most, func() {
		if !w.late.Swap(true) {
			close(w.stalled)
		}
	})
	w.timer.Stop()
	return w
}

// during runs send, whose wait counts. The error of one that was left behind is
// os.ErrDeadlineExceeded.
func (w *watch) during(send func() error) error {
	w.timer.Reset(w.most)
	err := send()
	w.timer.Stop()
	if err != nil && w.late.Load() {
		return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	return err
}

// sink sends flows to a client.
type sink struct {
	stream observerpb.Observer_GetFlowsServer
	mask   mask
	watch  *watch
}

// Send implements flowlog.Sink.
func (s *sink) Send(m *observerpb.GetFlowsResponse) error {
	s.mask.apply(m.GetFlow())
	return s.watch.during(func() error { return s.stream.Send(m) })
}

// Flush implements flowlog.Sink: gRPC keeps nothing back.
func (s *sink) Flush() error { return nil }
