package flowlog

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/weirnet/weir/controlplane/api"
)

// batch is how many records a reader takes from the ring at once.
const batch = 512

// Reader takes records in their order, at its own pace: the ring does not wait for it,
// and what the ring could not keep is counted. It is for one goroutine.
type Reader struct {
	log   *Log
	name  string
	at    place
	buf   []*record
	taken time.Time // when it last had less than it could take
}

// pause is how long a reader that has taken all there was lets records gather, so that many come
// cheap: what came after a while of nothing it has at once, and a small log's before they are gone.
func (l *Log) pause() time.Duration {
	return min(20*time.Millisecond, time.Duration(l.ring.size)*300*time.Nanosecond)
}

// Reader begins with the record that comes next. name is how status and metrics call it;
// Close must be called.
func (l *Log) Reader(name string) *Reader {
	return l.readerAt(name, l.ring.end())
}

func (l *Log) readerAt(name string, at place) *Reader {
	l.account.change(name, func(a *api.FlowReader) { a.Open++ })
	return &Reader{log: l, name: name, at: at, buf: make([]*record, 0, batch)}
}

// Next waits for records. Those that came before these and are gone are missed: records of lost
// events, one without a cause for how many they were, and the others for what the kernel lost
// meanwhile, which were among them. The records are valid until the next call. It ends with io.EOF
// when no more will come, or ctx's error.
func (r *Reader) Next(ctx context.Context) (records, missed []*Record, err error) {
	if rest := r.log.pause() - time.Since(r.taken); rest > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(rest):
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		records, lost, wait := r.log.ring.after(r.at.next, r.buf)
		if wait != nil {
			select {
			case <-ctx.Done():
			case <-wait:
			}
			continue
		}
		if len(records) == 0 {
			return nil, nil, io.EOF
		}
		if lost > 0 {
			missed = r.at.missed(lost, records[0])
			for _, m := range missed {
				m.event.Time = r.log.opts.Now()
			}
		}
		r.at = after(records[len(records)-1])
		if len(records) < cap(r.buf) {
			r.taken = time.Now()
		}
		r.log.account.change(r.name, func(a *api.FlowReader) {
			a.Taken += uint64(len(records))
			a.Lost += lost
		})
		return records, missed, nil
	}
}

// Close lets the reader go; what it took stays in the account.
func (r *Reader) Close() {
	r.log.account.change(r.name, func(a *api.FlowReader) { a.Open-- })
}

// cutOff notes why a reader that read on behalf of a client ended, where that is its own slowness.
func (l *Log) cutOff(reader string, err error) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	slog.Warn("a reader of flows is cut off: it took nothing for too long", "reader", reader, "for", stall)
	l.account.change(reader, func(a *api.FlowReader) { a.Cut++ })
}

type readerName struct{}

// WithReaderName names the reader that a Query under ctx is, for status and metrics.
func WithReaderName(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, readerName{}, name)
}

func nameOf(ctx context.Context) string {
	if name, ok := ctx.Value(readerName{}).(string); ok {
		return name
	}
	return "flows"
}
