package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// answer is what a collector said to the last request. The SDK's exporters do not say how
// many records were refused, nor which failures are for good. OTLP forbids to send again
// what failed for any reason but those it lists; where the fault is not the records' (a
// token, a path), they wait all the same until it is mended.
type answer struct {
	mu       sync.Mutex
	rejected int
	forGood  error // all of it was refused
	message  string
}

func (a *answer) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rejected, a.forGood, a.message = 0, nil, ""
}

// refused returns how many of n records the collector will never take, and why.
func (a *answer) refused(n int) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.forGood != nil:
		return n, a.forGood
	case a.rejected > 0:
		return min(a.rejected, n), errors.New(a.message)
	}
	return 0, nil
}

// partial takes what was refused out of a response: to the exporter it is a success.
func (a *answer) partial(r *collogs.ExportLogsServiceResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := r.GetPartialSuccess(); p != nil {
		a.rejected, a.message = int(p.GetRejectedLogRecords()), p.GetErrorMessage()
		r.PartialSuccess = nil
	}
}

func (a *answer) final(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forGood = err
}

// intercept listens in on gRPC.
func (a *answer) intercept(ctx context.Context, method string, req, reply any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, c, opts...)
	if r, ok := reply.(*collogs.ExportLogsServiceResponse); ok && err == nil {
		a.partial(r)
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.Internal, codes.FailedPrecondition, codes.AlreadyExists:
		a.final(err)
	}
	return err
}

// transport listens in on HTTP.
type transport struct {
	http.RoundTripper
	answer *answer
}

// most is how much of a response is read.
const most = 1 << 20

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	switch resp.StatusCode {
	case http.StatusOK:
		var m collogs.ExportLogsServiceResponse
		if proto.Unmarshal(body, &m) == nil && m.GetPartialSuccess() != nil {
			t.answer.partial(&m)
			resp.Body, resp.ContentLength = http.NoBody, 0
		}
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusInternalServerError:
		t.answer.final(fmt.Errorf("%s: %q", resp.Status, body[:min(len(body), 200)]))
	}
	return resp, nil
}
