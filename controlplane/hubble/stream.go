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

	"github.com/weirnet/weir/controlplane/flowlog"
)

// stream runs what sends to a client, one of a bounded number. A client that takes nothing
// for too long is left behind: its stream ends with the reason, whatever send waits for.
func (s *Server) stream(ctx context.Context, send func(context.Context, *watch) error) error {
	if err := s.slots.Enter(); err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := newWatch(s.Stall)
	defer w.timer.Stop()
	done := make(chan error, 1)
	go func() {
		defer s.slots.Leave()
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
	timer   *time.Timer  // armed while there are sends, and for a while after
	armed   atomic.Bool  // it is
	start   time.Time    // of the watch
	since   atomic.Int64 // start of the send that goes on, after that of the watch; 0 = none does
	late    atomic.Bool
	stalled chan struct{}
}

func newWatch(most time.Duration) *watch {
	w := &watch{most: most, start: time.Now(), stalled: make(chan struct{})}
	w.timer = time.AfterFunc(most, w.look)
	w.timer.Stop()
	return w
}

// look is the timer's: it is set anew for what is left of the wait, as a timer of every
// message's own would cost more than the message.
func (w *watch) look() {
	since := w.since.Load()
	if since == 0 {
		w.armed.Store(false)
		if w.since.Load() != 0 { // has begun since, and may have found it armed
			w.arm()
		}
		return
	}
	if rest := w.most - (time.Since(w.start) - time.Duration(since)); rest > 0 {
		w.timer.Reset(rest)
		return
	}
	if !w.late.Swap(true) {
		close(w.stalled)
	}
}

func (w *watch) arm() {
	if !w.armed.Swap(true) {
		w.timer.Reset(w.most)
	}
}

// during runs send, whose wait counts. The error of one that was left behind is
// os.ErrDeadlineExceeded.
func (w *watch) during(send func() error) error {
	w.since.Store(max(1, int64(time.Since(w.start))))
	if !w.armed.Load() {
		w.arm()
	}
	err := send()
	w.since.Store(0)
	if err != nil && w.late.Load() {
		return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	return err
}

// sink sends flows to a client.
type sink struct {
	log     *flowlog.Log
	encoder *flowlog.Encoder
	stream  observerpb.Observer_GetFlowsServer
	mask    mask
	watch   *watch
}

// Send implements flowlog.Sink.
func (s *sink) Send(m *observerpb.GetFlowsResponse) error {
	s.mask.apply(m.GetFlow())
	return s.watch.during(func() error { return s.stream.Send(m) })
}

// SendRecord is Send of a record's message, which is made only if the client wants parts of it.
func (s *sink) SendRecord(r *flowlog.Record) error {
	if s.mask != nil {
		return s.Send(s.log.Message(r))
	}
	b := buffers{}.Get(0)
	var err error
	if *b, err = s.encoder.AppendMessage(*b, r); err != nil {
		return err
	}
	return s.watch.during(func() error { return s.stream.SendMsg((*encoded)(b)) })
}

// Flush implements flowlog.Sink: gRPC keeps nothing back.
func (s *sink) Flush() error { return nil }
