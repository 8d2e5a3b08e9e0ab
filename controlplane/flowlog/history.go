package flowlog

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"maps"
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

	// of whoever writes
	denied uint64 // denials that the log had read by the last record
	before uint64 // that it had read before begun
	told   ledger // by the records that are written
	since  int    // blocks, the last that has all of told included; 0: there is none
}

// counted is a datapath.Reader that knows how much was ever read of the rings.
type counted interface {
	Consumed() (bytes, denials, each uint64, err error)
}

// begin notes where a life begins to read, on disk at once, and tells what the one before had in
// its hands when it was killed: read by it, by the kernel's account, and not spilled.
func (l *Log) begin(in datapath.Reader) {
	h := &l.history
	from, ok := in.(counted)
	if !ok {
		return
	}
	bytes, denials, each, err := from.Consumed()
	if err != nil {
		slog.Warn("whether an earlier agent lost flows is not known", "error", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	again := h.told.packets != nil
	if !again && l.suppressed.started {
		h.told = l.suppressed.ledger()
	}
	missing, denied := h.heldBack(bytes, denials)
	if l.suppressed.told == nil && !again {
		denied = 0 // what is counted begins after them
	}
	l.suppressed.debt += denied
	h.mu.Lock()
	h.begun, h.offset, h.missing = reading{Begun: bytes, Each: each, DenialsBegun: denials}, l.read.Load(), missing
	h.mu.Unlock()
	h.denied, h.before, h.since = l.denied, l.denied, 0
	var told []*record
	if missing > 0 {
		told = []*record{{lost: missing, cause: LostAgent, unnamed: denied, read: l.read.Load(), denials: l.denied, event: datapath.Event{Time: l.opts.Now()}}}
		l.ring.add(told[0])
	}
	h.write(newPacker(), told)
}

// last is what the newest block of a life before says of rings of which so many bytes were ever
// read; nil: it is of others, or there is none.
func (h *history) last(bytes uint64) *reading {
	for b := range h.store.Blocks(time.Time{}, time.Time{}, true) {
		last, err := unpackBlock(b.Data)
		if err != nil || last.Each == 0 || bytes < last.Begun {
			return nil
		}
		return &last.reading
	}
	return nil
}

// heldBack is how many events the life before had read and not spilled, and how many of them
// were denials.
func (h *history) heldBack(bytes, denials uint64) (missing, denied uint64) {
	last := h.last(bytes)
	if last == nil {
		return 0, 0
	}
	more := func(bytes, begun, read uint64) uint64 {
		if bytes < begun || (bytes-begun)/last.Each <= read {
			return 0
		}
		return (bytes-begun)/last.Each - read
	}
	missing = more(bytes, last.Begun, last.Read)
	return missing, min(missing, more(denials, last.DenialsBegun, last.DenialsRead))
}

// ledger is what the records of the life before tell of denials; nil: it is not known.
func (h *history) ledger(in datapath.Reader) *ledger {
	from, ok := in.(counted)
	if !ok || h.store == nil {
		return nil
	}
	bytes, _, _, err := from.Consumed()
	if err != nil {
		return nil
	}
	var out *ledger
	var run uint64
	for b := range h.store.Blocks(time.Time{}, time.Time{}, true) {
		p, err := unpackBlock(b.Data)
		if err != nil || p.Each == 0 || out != nil && b.Run != run {
			return nil
		}
		if out == nil {
			if bytes < p.Begun+p.Read*p.Each {
				return nil // of other rings
			}
			out, run = &ledger{map[denials]uint64{}, p.Debt}, b.Run
		}
		for _, t := range p.Told {
			k := denials{t.Endpoint, t.Rule, t.Direction, t.Reason}
			if _, newer := out.packets[k]; !newer {
				out.packets[k] = t.Packets
			}
		}
		if p.Everything {
			return out
		}
	}
	return nil
}

// everyBlocks is how many blocks have to be looked through at a start, at most.
const everyBlocks = 64

// tell is what told becomes with these records: its debt, and the counts that change.
func (h *history) tell(records []*record) (changed map[denials]uint64, debt, denied uint64) {
	changed, debt, denied = map[denials]uint64{}, h.told.debt, h.denied
	add := func(k denials, n uint64) {
		if _, ok := changed[k]; !ok {
			changed[k] = h.told.packets[k]
		}
		changed[k] += n
	}
	for _, r := range records {
		gap := r.denials - denied // denials that are among records that were missed
		denied = r.denials
		switch {
		case r.cause == LostDenialEvents:
			debt += r.lost
		case r.lost > 0:
			debt += r.unnamed
		case r.suppressed > 0:
			k, _ := denialsOf(&r.event)
			add(k, r.suppressed+r.unnamed)
			debt -= min(debt, r.unnamed)
		case r.isDenial():
			gap--
			k, _ := denialsOf(&r.event)
			add(k, r.event.Packets[0])
		}
		debt += gap
	}
	return changed, debt, denied
}

// account puts into a block what its records tell of denials. The function that it returns is
// for when the block is written.
func (h *history) account(since *reading, records []*record) (written func()) {
	if h.told.packets == nil {
		return func() {}
	}
	changed, debt, denied := h.tell(records)
	since.Debt, since.DenialsRead = debt, denied-h.before
	since.Everything = h.since == 0 || h.since >= everyBlocks
	in := changed
	if since.Everything {
		in = maps.Clone(h.told.packets)
		maps.Copy(in, changed)
	}
	for k, n := range in {
		since.Told = append(since.Told, packedTold{Endpoint: k.endpoint, Rule: k.rule, Direction: k.direction, Reason: k.reason, Packets: n})
	}
	return func() {
		maps.Copy(h.told.packets, changed)
		h.told.debt, h.denied = debt, denied
		if h.since++; since.Everything {
			h.since = 1
		}
	}
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
	done := h.account(&since, records)
	var err error
	if b.Data, err = p.pack(records, since); err == nil {
		err = h.store.Append(b)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		done()
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
