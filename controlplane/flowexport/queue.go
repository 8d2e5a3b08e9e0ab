package flowexport

import (
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/controlplane/flowlog"
)

// queue holds records up to its size. add never waits; what is missing between two records
// is one record of lost events for each cause, beyond the size.
type queue struct {
	mu     sync.Mutex
	wake   chan struct{} // holds a token when there may be something to take
	size   int
	items  []*flowlog.Record
	flows  int // of items
	lost   [len(gaps)]uint64
	closed bool
}

// gaps are the causes of loss on the way to a target: the kernel's rings, an earlier agent, the log,
// the queue.
var gaps = [...]string{flowlog.LostFlowEvents, flowlog.LostDenialEvents, flowlog.LostAgent, "", flowlog.LostExportQueue}

func newQueue(size int) *queue { return &queue{size: size, wake: make(chan struct{}, 1)} }

// add reports whether there was room.
func (q *queue) add(r *flowlog.Record) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.wakeUp()
	if q.flows >= q.size {
		q.missed(1, flowlog.LostExportQueue)
		return false
	}
	q.tellLost()
	q.items = append(q.items, r)
	q.flows++
	return true
}

// addLost says how many records are lost to a cause before the next that is added.
func (q *queue) addLost(n uint64, cause string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.missed(n, cause)
	q.wakeUp()
}

func (q *queue) missed(n uint64, cause string) { q.lost[slices.Index(gaps[:], cause)] += n }

// tellLost puts what was lost since the last record into its place.
func (q *queue) tellLost() {
	for i, n := range q.lost {
		if n > 0 {
			q.items = append(q.items, flowlog.LostRecord(n, gaps[i], time.Now()))
		}
	}
	q.lost = [len(gaps)]uint64{}
}

func (q *queue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close says that no more will be added.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wakeUp()
}

// next waits for records, and once there is one no longer than linger for most of them. It
// returns nil once the queue is closed and empty.
func (q *queue) next(most int, linger time.Duration) []*flowlog.Record {
	var over <-chan time.Time
	for {
		n, closed := q.length()
		switch {
		case n == 0 && closed:
			return nil
		case n >= most || n > 0 && closed:
			return q.take(most)
		case n > 0 && over == nil:
			t := time.NewTimer(linger)
			defer t.Stop()
			over = t.C
		}
		select {
		case <-q.wake:
		case <-over:
			return q.take(most)
		}
	}
}

func (q *queue) length() (n int, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = len(q.items)
	for _, lost := range q.lost {
		n += int(min(lost, 1))
	}
	return n, q.closed
}

func (q *queue) take(most int) []*flowlog.Record {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) <= most {
		q.tellLost()
	}
	n := min(most, len(q.items))
	out := make([]*flowlog.Record, n)
	copy(out, q.items)
	q.flows -= int(flows(out))
	rest := copy(q.items, q.items[n:])
	clear(q.items[rest:])
	q.items = q.items[:rest]
	return out
}

// flows are the records that are none of lost events.
func flows(records []*flowlog.Record) (n uint64) {
	for _, r := range records {
		if lost, _ := r.Lost(); lost == 0 {
			n++
		}
	}
	return n
}
