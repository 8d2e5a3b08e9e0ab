package flowlog

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/spill"
	"github.com/weirnet/weir/datapath"
)

const (
	spillBlock = 512         // records of a block at most
	spillAfter = time.Second // what a killed agent loses of the past
	spillName  = "spill"     // the reader
)

// history is the log's past on disk: a reader writes it, off the way of events.
type history struct {
	store *spill.Store // nil: there is none
	run   uint64       // this log's life, in its blocks

	mu      sync.Mutex
	written uint64
	lost    uint64 // could not be written
	failed  error  // what the last attempt to write came to
	begun   reading
	offset  uint64 // events that the log had read before
	missing uint64 // events that an earlier life had read and not spilled
}

// counted is a datapath.Reader that knows how much was ever read of the rings.
type counted interface {
	Consumed() (bytes, each uint64, err error)
}

// begin notes where a life begins to read, on disk at once, and tells what the one before had in
// its hands when it was killed: read by it, by the kernel's account, and not spilled.
func (l *Log) begin(in datapath.Reader) {
	h := &l.history
	from, ok := in.(counted)
	if !ok {
		return
	}
	bytes, each, err := from.Consumed()
	if err != nil {
		slog.Warn("whether an earlier agent lost flows is not known", "error", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := h.heldBack(bytes)
	h.mu.Lock()
	h.begun, h.offset, h.missing = reading{Begun: bytes, Each: each}, l.read.Load(), missing
	h.mu.Unlock()
	var told []*record
	if missing > 0 {
		told = []*record{{lost: missing, cause: LostAgent, read: l.read.Load(), event: datapath.Event{Time: l.opts.Now()}}}
		l.ring.add(told[0])
	}
	h.write(newPacker(), told)
}

// heldBack is how many events the life before had read and not spilled, of rings of which so
// many bytes were ever read.
func (h *history) heldBack(bytes uint64) uint64 {
	for b := range h.store.Blocks(time.Time{}, time.Time{}, true) {
		last, err := unpackBlock(b.Data)
		if err != nil || last.Each == 0 || bytes < last.Begun {
			return 0 // of other rings
		}
		if n := (bytes - last.Begun) / last.Each; n > last.Read {
			return n - last.Read
		}
		return 0
	}
	return 0
}

// keep spills what r reads until the log ends.
func (h *history) keep(r *Reader) {
	defer r.Close()
	defer h.store.Close()
	p, pending := newPacker(), make([]*record, 0, spillBlock+batch)
	due := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithDeadline(context.Background(), due)
		records, missed, err := r.Next(ctx)
		cancel()
		if len(pending) == 0 && len(records) > 0 {
			due = time.Now().Add(spillAfter)
		}
		pending = append(append(pending, missed...), records...)
		ended := errors.Is(err, io.EOF)
		if over := !time.Now().Before(due); len(pending) >= spillBlock || over || ended {
			if len(pending) > 0 {
				h.write(p, pending)
			}
			clear(pending)
			pending = pending[:0]
			if over {
				h.store.Expire(time.Now())
			}
			due = time.Now().Add(time.Minute)
		}
		if ended {
			return
		}
	}
}

// write spills records; with none, how far this life has read.
func (h *history) write(p *packer, records []*record) {
	b := &spill.Block{Run: h.run, Count: uint32(len(records)), From: time.Now(), Until: time.Now()}
	h.mu.Lock()
	since := h.begun
	if n := len(records); n > 0 {
		since.Read = records[n-1].read - h.offset
		b.First, b.Last = records[0].seq, records[n-1].seq
		b.From, b.Until = records[0].event.Time, records[0].event.Time
	}
	h.mu.Unlock()
	for _, r := range records {
		if at := r.event.Time; at.Before(b.From) {
			b.From = at
		} else if at.After(b.Until) {
			b.Until = at
		}
	}
	var err error
	if b.Data, err = p.pack(records, since); err == nil {
		err = h.store.Append(b)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.written += uint64(len(records))
	} else {
		h.lost += uint64(len(records))
	}
	if (err == nil) != (h.failed == nil) {
		if err != nil {
			slog.Error("flows are not spilled to disk: those of now will be missing after a restart of the agent", "error", err)
		} else {
			slog.Info("flows are spilled to disk again", "lost", h.lost)
		}
	}
	h.failed = err
}

// records are those of before the oldest that the ring has, as long as the time they are of
// may be asked for; oldest first, or newest first.
func (h *history) records(oldest uint64, s *Selection, backward bool) iter.Seq[*record] {
	return func(yield func(*record) bool) {
		if h.store == nil {
			return
		}
		for b := range h.store.Blocks(s.Since, s.Until, backward) {
			if b.Run == h.run && b.First >= oldest {
				continue
			}
			records, err := unpack(b.Data)
			if err != nil {
				slog.Warn("spilled flows cannot be read: they are missing in what is shown", "records", b.Count, "error", err)
				continue
			}
			if backward {
				slices.Reverse(records)
			}
			for _, r := range records {
				if (b.Run != h.run || r.seq < oldest) && !yield(r) {
					return
				}
			}
		}
	}
}

// covers reports whether the ring alone has all that s asks for.
func covers(kept []*record, s *Selection) bool {
	return len(kept) > 0 && !s.Since.IsZero() && kept[0].event.Time.Before(s.Since)
}

func (h *history) status() *api.FlowSpillStatus {
	if h.store == nil {
		return nil
	}
	on := h.store.Status()
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &api.FlowSpillStatus{Bytes: on.Bytes, Written: h.written, Lost: h.lost, Corrupt: on.Corrupt, Missing: h.missing}
	if !on.Oldest.IsZero() {
		s.Oldest = &on.Oldest
	}
	if h.failed != nil {
		s.Error = h.failed.Error()
	}
	return s
}
