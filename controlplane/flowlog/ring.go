package flowlog

import "sync"

// ring keeps the newest records. One writer, any number of readers; none of them waits
// for another: a reader that fell behind is told how many records it missed.
type ring struct {
	mu      sync.RWMutex
	kept    []*record // record seq is at seq % size once the ring is full
	size    uint64
	next    uint64  // sequence number of the next record
	told    *losses // what all records tell
	wake    chan struct{}
	waiting bool
	closed  bool
}

func newRing(size int) *ring {
	return &ring{size: uint64(size), told: &losses{}, wake: make(chan struct{})}
}

func (g *ring) add(r *record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r.seq, r.before = g.next, g.told
	g.next, g.told = g.next+1, g.told.and(r)
	if uint64(len(g.kept)) < g.size {
		g.kept = append(g.kept, r)
	} else {
		g.kept[r.seq%g.size] = r
	}
	g.wakeAll()
}

func (g *ring) wakeAll() {
	if g.waiting {
		close(g.wake)
		g.wake, g.waiting = make(chan struct{}), false
	}
}

// setClosed says whether more can come.
func (g *ring) setClosed(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = closed
	g.wakeAll()
}

// all returns what is kept, oldest first, and the place that follows.
func (g *ring) all() ([]*record, place) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]*record, 0, len(g.kept))
	for seq := g.oldest(); seq < g.next; seq++ {
		out = append(out, g.kept[seq%g.size])
	}
	return out, place{g.next, g.told}
}

// end is the place of the record that comes next.
func (g *ring) end() place {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return place{g.next, g.told}
}

func (g *ring) oldest() uint64 { return g.next - uint64(len(g.kept)) }

// after appends to buf, up to its capacity, the records from seq on. lost is how many of
// them are gone already. When there is none yet, wait is what to wait for before asking
// again; nil then means that none will come.
func (g *ring) after(seq uint64, buf []*record) (out []*record, lost uint64, wait <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if oldest := g.oldest(); seq < oldest {
		lost, seq = oldest-seq, oldest
	}
	for ; seq < g.next && len(buf) < cap(buf); seq++ {
		buf = append(buf, g.kept[seq%g.size])
	}
	if len(buf) == 0 && lost == 0 && !g.closed {
		g.waiting = true
		return nil, 0, g.wake
	}
	return buf, lost, nil
}

// measure is how many records are kept, how many can be, and the sequence number of the next.
func (g *ring) measure() (kept, size, next uint64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return uint64(len(g.kept)), g.size, g.next
}
