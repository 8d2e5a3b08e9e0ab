package flowlog

import (
	"maps"
	"slices"
	"time"
)

// Rate is how many records a second came in the last minute, or in what is kept of it.
func (l *Log) Rate() float64 {
	kept, end := l.ring.all()
	now := l.opts.Now()
	from := now.Add(-time.Minute)
	count := 0
	for _, r := range slices.Backward(kept) {
		if r.event.Time.Before(from) {
			break
		}
		count++
	}
	switch {
	case count == 0:
		return 0
	case count == len(kept) && end.next > uint64(count): // some of the minute's are gone
		from = kept[0].event.Time
	case l.begun.After(from):
		from = l.begun
	}
	return float64(count) / max(now.Sub(from).Seconds(), 1e-3)
}

// Begun is when the log was made.
func (l *Log) Begun() time.Time { return l.begun }

// namespaceTime is how long a namespace counts as one that has flows.
const namespaceTime = time.Hour

// Namespaces are those whose pods had flows in the last hour, in order.
func (l *Log) Namespaces() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.opts.Now().Add(-namespaceTime)
	maps.DeleteFunc(l.namespaces, func(_ string, at time.Time) bool { return at.Before(old) })
	return slices.Sorted(maps.Keys(l.namespaces))
}

// noteNamespaces of a record; l.mu is held.
func (l *Log) noteNamespaces(r *record) {
	for _, p := range r.parties {
		if p.IsPod() && l.namespaces[p.Namespace].Before(r.event.Time) {
			l.namespaces[p.Namespace] = r.event.Time
		}
	}
}
