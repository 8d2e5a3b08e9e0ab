// Package spill keeps blocks of records on disk, the newest so many bytes of them, so that
// they outlive who wrote them. What a block holds is its writer's business.
//
//	DIR/00000000000000000017.flows     a segment: blocks, one after the other
//	block = header, data; both have a checksum
//
// A segment is written by one process and never again. What is damaged is skipped and
// counted: the next block is found by its mark.
package spill

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Block is a run of records: those of one writer's life, First to Last.
type Block struct {
	Run         uint64 // which life
	First, Last uint64
	Count       uint32
	From, Until time.Time // of its records
	Data        []byte
}

// Options of a Store.
type Options struct {
	Dir  string
	Size int64         // bytes, all segments together
	Age  time.Duration // records older than that go; 0 = none do
	Log  *slog.Logger
}

// SizeLeast is the smallest Size.
const SizeLeast = 1 << 20

// Status is what a Store holds and what went wrong.
type Status struct {
	Bytes    int64
	Segments int
	Oldest   time.Time // zero: empty
	Corrupt  uint64    // damaged places found
	Skipped  uint64    // bytes of those
}

// Store is a directory of segments. Append is for one goroutine, the rest for any.
type Store struct {
	opts    Options
	segment int64  // bytes after which a new one begins
	foreign uint64 // the highest number that something else has

	mu       sync.Mutex
	segments []*segment // oldest first; the last may be the open one
	open     *os.File
	status   Status
}

// segment is a file as far as it is known to be whole.
type segment struct {
	number      uint64
	path        string
	size        int64
	from, until time.Time
	damaged     bool // what is damaged in it was counted
}

const suffix = ".flows"

// Open takes what is in o.Dir and makes it if it is not there.
func Open(o Options) (*Store, error) {
	if o.Size < SizeLeast {
		return nil, fmt.Errorf("%d bytes are too few: at least %d are needed", o.Size, SizeLeast)
	}
	s := &Store{opts: o, segment: max(o.Size/8, SizeLeast/8)}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of spilled flows: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(o.Dir, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("list spilled flows: %w", err)
	}
	slices.Sort(names)
	for _, path := range names {
		number, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), suffix), 10, 64)
		if err != nil {
			continue // not ours
		}
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() { // opening a FIFO would wait for ever
			s.opts.Log.Warn("what is no regular file among spilled flows is left alone", "file", path, "error", err)
			s.foreign = max(s.foreign, number)
			continue
		}
		if g := s.adopt(number, path); g != nil {
			s.segments = append(s.segments, g)
		}
	}
	s.trim(time.Now())
	return s, nil
}

// adopt looks a segment through; nil: there is nothing in it.
func (s *Store) adopt(number uint64, path string) *segment {
	g := &segment{number: number, path: path, size: -1}
	blocks, until := 0, int64(0)
	for b, err := range s.read(g) {
		if err != nil {
			s.opts.Log.Warn("a file of spilled flows cannot be read: its records are missing in what is shown of the past", "file", path, "error", err)
			return nil
		}
		g.extend(b)
		blocks++
	}
	if info, err := os.Stat(path); err == nil {
		until = info.Size()
	}
	g.size = until
	if blocks == 0 {
		_ = os.Remove(path)
		return nil
	}
	return g
}

func (g *segment) extend(b *Block) {
	if g.from.IsZero() || b.From.Before(g.from) {
		g.from = b.From
	}
	if b.Until.After(g.until) {
		g.until = b.Until
	}
}

// Append writes a block. After an error nothing of it is there.
func (s *Store) Append(b *Block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(); err != nil {
		return err
	}
	g := s.segments[len(s.segments)-1]
	line := append(b.header(), b.Data...)
	if n, err := s.open.WriteAt(line, g.size); err != nil {
		if n > 0 {
			err = errors.Join(err, s.open.Truncate(g.size))
		}
		return fmt.Errorf("write spilled flows: %w", err)
	}
	g.size += int64(len(line))
	g.extend(b)
	if g.size >= s.segment {
		err := s.open.Close()
		s.open = nil
		if err != nil {
			return fmt.Errorf("close spilled flows: %w", err)
		}
	}
	s.trim(time.Now())
	return nil
}

// begin has a segment to write to; s.mu is held.
func (s *Store) begin() error {
	if s.open != nil {
		return nil
	}
	number := s.foreign + 1
	if n := len(s.segments); n > 0 {
		number = max(number, s.segments[n-1].number+1)
	}
	g := &segment{number: number, path: filepath.Join(s.opts.Dir, fmt.Sprintf("%020d%s", number, suffix))}
	f, err := os.OpenFile(g.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("begin a file of spilled flows: %w", err)
	}
	s.open, s.segments = f, append(s.segments, g)
	return nil
}

// Expire removes what is too old.
func (s *Store) Expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trim(now)
}

// trim removes the oldest segments until the rest fits; s.mu is held.
func (s *Store) trim(now time.Time) {
	total := int64(0)
	for _, g := range s.segments {
		total += g.size
	}
	for len(s.segments) > 0 {
		g := s.segments[0]
		old := s.opts.Age > 0 && g.until.Before(now.Add(-s.opts.Age))
		if total <= s.opts.Size && !old {
			return
		}
		if len(s.segments) == 1 && s.open != nil {
			if g.size == 0 {
				return
			}
			_ = s.open.Close()
			s.open = nil
		}
		if err := os.Remove(g.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.opts.Log.Warn("a file of spilled flows cannot be removed: it takes room beyond its bound", "error", err)
		}
		total -= g.size
		s.segments = s.segments[1:]
	}
}

// Status says what there is.
func (s *Store) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	out.Segments = len(s.segments)
	for _, g := range s.segments {
		out.Bytes += g.size
		if !g.from.IsZero() && (out.Oldest.IsZero() || g.from.Before(out.Oldest)) {
			out.Oldest = g.from
		}
	}
	return out
}

// Close ends the segment that is written to.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return nil
	}
	err := s.open.Close()
	s.open = nil
	return err
}

// Blocks are those that may have records of that time, in the order they were written, or the
// other way round. Data is valid until the next.
func (s *Store) Blocks(from, until time.Time, backward bool) iter.Seq[*Block] {
	s.mu.Lock()
	segments := make([]segment, len(s.segments))
	for i, g := range s.segments {
		segments[i] = *g
	}
	s.mu.Unlock()
	if backward {
		slices.Reverse(segments)
	}
	within := func(f, u time.Time) bool {
		return (from.IsZero() || !u.Before(from)) && (until.IsZero() || !f.After(until))
	}
	return func(yield func(*Block) bool) {
		for i := range segments {
			g := &segments[i]
			if g.size == 0 || !within(g.from, g.until) {
				continue
			}
			var later []*Block // a segment's blocks are found front to back
			for b, err := range s.read(g) {
				if err != nil {
					break // trimmed meanwhile
				}
				if !within(b.From, b.Until) {
					continue
				}
				if backward {
					b.Data = slices.Clone(b.Data)
					later = append(later, b)
				} else if !yield(b) {
					return
				}
			}
			for _, b := range slices.Backward(later) {
				if !yield(b) {
					return
				}
			}
		}
	}
}

const (
	headerSize = 64
	dataMost   = 64 << 20
)

var (
	mark  = [4]byte{'W', 'F', 'B', 2}
	table = crc32.MakeTable(crc32.Castagnoli)
	order = binary.LittleEndian
)

func (b *Block) header() []byte {
	h := make([]byte, headerSize)
	copy(h, mark[:])
	order.PutUint32(h[4:], uint32(len(b.Data)))
	order.PutUint32(h[8:], b.Count)
	order.PutUint64(h[16:], b.Run)
	order.PutUint64(h[24:], b.First)
	order.PutUint64(h[32:], b.Last)
	order.PutUint64(h[40:], uint64(b.From.UnixNano()))
	order.PutUint64(h[48:], uint64(b.Until.UnixNano()))
	order.PutUint32(h[56:], crc32.Checksum(b.Data, table))
	order.PutUint32(h[60:], crc32.Checksum(h[:60], table))
	return h
}

func parse(h []byte) (b Block, length int, sum uint32, ok bool) {
	if [4]byte(h[:4]) != mark || order.Uint32(h[60:]) != crc32.Checksum(h[:60], table) {
		return b, 0, 0, false
	}
	b = Block{
		Count: order.Uint32(h[8:]), Run: order.Uint64(h[16:]), First: order.Uint64(h[24:]), Last: order.Uint64(h[32:]),
		From: time.Unix(0, int64(order.Uint64(h[40:]))), Until: time.Unix(0, int64(order.Uint64(h[48:]))),
	}
	length = int(order.Uint32(h[4:]))
	return b, length, order.Uint32(h[56:]), length <= dataMost
}

// read yields a segment's blocks, up to its size (-1: all of the file). An error is about the
// file; what is damaged in it is skipped, and counted the first time.
func (s *Store) read(g *segment) iter.Seq2[*Block, error] {
	return func(yield func(*Block, error) bool) {
		f, err := os.Open(g.path)
		if err != nil {
			yield(nil, err)
			return
		}
		defer f.Close()
		var in io.Reader = f
		if g.size >= 0 {
			in = io.LimitReader(f, g.size)
		}
		r := bufio.NewReaderSize(in, 64<<10)
		skipped, data := int64(0), []byte(nil)
		for {
			h, err := r.Peek(headerSize)
			if err != nil {
				skipped += int64(len(h)) // a tail that was cut off
				break
			}
			b, length, sum, ok := parse(h)
			if ok {
				data, ok = s.whole(f, r, length, sum, data)
			}
			if !ok {
				n, _ := r.Discard(1 + next(h[1:]))
				skipped += int64(n)
				continue
			}
			b.Data = data
			if !yield(&b, nil) {
				return
			}
		}
		if skipped > 0 {
			s.damaged(g, skipped)
		}
	}
}

// whole takes a block whose header is next, if its data is what the header says. If it is
// not, nothing is taken: the header alone is damaged ground.
func (s *Store) whole(f *os.File, r *bufio.Reader, length int, sum uint32, into []byte) ([]byte, bool) {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return into, false
	}
	at -= int64(r.Buffered()) // where the header is
	into = slices.Grow(into[:0], length)[:length]
	if n, err := f.ReadAt(into, at+headerSize); n < length || err != nil && !errors.Is(err, io.EOF) || crc32.Checksum(into, table) != sum {
		return into, false
	}
	_, err = r.Discard(headerSize + length)
	return into, err == nil
}

// next is how far the next mark may be.
func next(b []byte) int {
	for i := range b {
		if b[i] == mark[0] {
			return i
		}
	}
	return len(b)
}

func (s *Store) damaged(g *segment, bytes int64) {
	s.mu.Lock()
	known := g.damaged
	for _, own := range s.segments {
		if own.number == g.number {
			known = known || own.damaged
			own.damaged = true
		}
	}
	g.damaged = true
	if !known {
		s.status.Corrupt++
		s.status.Skipped += uint64(bytes)
	}
	s.mu.Unlock()
	if !known {
		s.opts.Log.Warn("a file of spilled flows is damaged, or was cut off while it was written: what can be read of it is shown", "file", g.path, "bytesSkipped", bytes)
	}
}
