// Package reader reads the kernel's flow and denial events from their rings.
package reader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
)

// The kernel wakes a reader that has read everything. After a drain we rest before we
// ask again, so under load it wakes us once a rest and not once an event; an idle reader
// sleeps in epoll. A ring of the usual size takes millions of events a second meanwhile, a
// smaller one is given less time to fill.
const (
	restMost  = 4 * time.Millisecond
	restLeast = time.Millisecond
	restRing  = 2 << 20
)

func restFor(ring uint32) time.Duration {
	return min(max(restMost*time.Duration(ring)/restRing, restLeast), restMost)
}

// most is how many events one drain takes from a ring.
const most = 4096

// reader merges the two rings by time. One goroutine at a time may Read.
type reader struct {
	maps  []*ebpf.Map
	rings []*ringbuf.Reader
	epoll int
	wake  int // eventfd: closing
	rest  time.Duration
	clock clock

	processes processes

	batch  []datapath.Event
	next   int
	record ringbuf.Record

	closing chan struct{}
	once    sync.Once
	reading sync.Mutex
}

// Open opens the rings that the loader pinned below bpffsDir. There must be no other
// reader: an event is read once.
func Open(bpffsDir string) (datapath.Reader, error) {
	r := &reader{epoll: -1, wake: -1, closing: make(chan struct{})}
	if err := r.open(bpffsDir); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

func (r *reader) open(dir string) error {
	var err error
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("create epoll: %w", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("create eventfd: %w", err)
	}
	if err := r.watch(r.wake); err != nil {
		return err
	}
	for _, name := range []string{bpf.WeirMapFlowEvents, bpf.WeirMapDenialEvents} {
		m, err := ebpf.LoadPinnedMap(maps.Path(dir, name), nil)
		if err != nil {
			return fmt.Errorf("open ring %s: %w", maps.Path(dir, name), err)
		}
		r.maps = append(r.maps, m)
		if r.rest == 0 { // denials are few: they have a budget
			r.rest = restFor(m.MaxEntries())
		}
		ring, err := ringbuf.NewReader(m)
		if err != nil {
			return fmt.Errorf("read ring %s: %w", name, err)
		}
		ring.SetDeadline(time.Unix(1, 0)) // never wait: epoll does
		r.rings = append(r.rings, ring)
		if err := r.watch(m.FD()); err != nil {
			return err
		}
	}
	path := maps.Path(dir, bpf.SockMapProcesses)
	if r.processes.table, err = ebpf.LoadPinnedMap(path, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open map %s: %w", path, err)
	}
	return nil
}

func (r *reader) watch(fd int) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("watch ring: %w", err)
	}
	return nil
}

// Read blocks for the next event; it returns os.ErrClosed once Close was called.
func (r *reader) Read() (datapath.Event, error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	for r.next == len(r.batch) {
		if err := r.fill(); err != nil {
			return datapath.Event{}, err
		}
	}
	r.next++
	return r.batch[r.next-1], nil
}

// fill drains the rings into the batch, or waits until there is something.
func (r *reader) fill() error {
	if len(r.batch) > 0 {
		time.Sleep(r.rest)
	}
	select {
	case <-r.closing:
		return os.ErrClosed
	default:
	}
	if err := r.drain(); err != nil || len(r.batch) > 0 {
		return err
	}
	var ready [3]unix.EpollEvent
	if _, err := unix.EpollWait(r.epoll, ready[:], -1); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for events: %w", err)
	}
	return nil
}

func (r *reader) drain() error {
	r.clock.refresh()
	r.batch, r.next = r.batch[:0], 0
	for _, ring := range r.rings {
		for range most {
			err := ring.ReadInto(&r.record)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return fmt.Errorf("read ring: %w", err)
			}
			if e, ok := r.decode(r.record.RawSample); ok {
				r.batch = append(r.batch, e)
			}
		}
	}
	byTime := func(a, b datapath.Event) int { return a.Time.Compare(b.Time) }
	if !slices.IsSortedFunc(r.batch, byTime) { // often it is, and events are large to copy
		slices.SortStableFunc(r.batch, byTime)
	}
	return nil
}

// Close makes Read return os.ErrClosed; unread events stay in the rings.
func (r *reader) Close() error {
	r.once.Do(func() {
		close(r.closing)
		_, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		r.reading.Lock() // Read is out
		r.release()
		r.reading.Unlock()
	})
	return nil
}

func (r *reader) release() {
	for _, ring := range r.rings {
		ring.Close()
	}
	for _, m := range r.maps {
		m.Close()
	}
	for _, fd := range []int{r.epoll, r.wake} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
