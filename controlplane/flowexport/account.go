package flowexport

import (
	"maps"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
)

// Causes of loss.
const (
	LostBehind  = "behind"  // overwritten in the log before they were read: flows that matched or not
	LostQueue   = "queue"   // the queue was full: the target is away or too slow
	LostRefused = "refused" // the target will not have them
	LostEnd     = "end"     // the agent ended before the target took them
)

// account is what became of the flows.
type account struct {
	taken, exported uint64
	failures        uint64 // attempts
	lost            map[string]uint64
	away            error     // why the target does not take any
	since           time.Time // when that began
	refusals        bool      // one was logged
	lostBefore      uint64    // when it went away
}

func (e *Exporter) taken() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count.taken++
}

func (e *Exporter) lose(cause string, n uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count.lose(cause, n)
}

func (a *account) lose(cause string, n uint64) {
	if n == 0 {
		return
	}
	if a.lost == nil {
		a.lost = map[string]uint64{}
	}
	a.lost[cause] += n
}

func (a *account) losses() (n uint64) {
	for _, lost := range a.lost {
		n += lost
	}
	return n
}

// settle counts the flows among records as exported, or as lost to a cause.
func (e *Exporter) settle(records []*flowlog.Record, lostTo string) {
	n := flows(records)
	e.mu.Lock()
	defer e.mu.Unlock()
	if lostTo != "" {
		e.count.lose(lostTo, n)
		return
	}
	e.count.exported += n
}

// away notes, and logs once, that the target takes nothing.
func (e *Exporter) away(err error) {
	e.mu.Lock()
	e.count.failures++
	first := e.count.away == nil
	e.count.away = err
	if first {
		e.count.since, e.count.lostBefore = time.Now(), e.count.losses()
	}
	e.mu.Unlock()
	if first {
		e.Log.Warn("flows are not exported: they wait, and are lost when the queue is full",
			"export", e.Name, "target", e.Where, "queue", e.Queue, "error", err)
	}
}

// back notes, and logs once, that it does again.
func (e *Exporter) back() {
	e.mu.Lock()
	was, since, lost := e.count.away, e.count.since, e.count.losses()-e.count.lostBefore
	e.count.away = nil
	e.mu.Unlock()
	if was != nil {
		e.Log.Info("flows are exported again", "export", e.Name, "target", e.Where, "after", time.Since(since).Round(time.Millisecond), "lost", lost)
	}
}

func (e *Exporter) refused(err *RefusedError) {
	e.mu.Lock()
	first := !e.count.refusals
	e.count.refusals = true
	e.mu.Unlock()
	if first {
		e.Log.Warn("flows were refused; more of this is only counted", "export", e.Name, "target", e.Where, "error", err)
	}
}

// Status is the account as the API has it.
func (e *Exporter) Status() api.ExportStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.count
	s := api.ExportStatus{
		Export: e.Name, Target: e.Where, Taken: a.taken, Exported: a.exported, Failures: a.failures,
		Lost: map[string]uint64{LostBehind: 0, LostQueue: 0, LostRefused: 0, LostEnd: 0},
	}
	maps.Copy(s.Lost, a.lost)
	s.Queued = a.taken - a.exported - (a.losses() - a.lost[LostBehind])
	if a.away != nil {
		s.Error, s.Since = a.away.Error(), &a.since
	}
	return s
}
