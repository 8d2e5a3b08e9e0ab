package export

import "sync/atomic"

// Export is something that records go to.
type Export interface {
	Account() *Account
}

// Account is what became of the records that an export was to hand on.
type Account struct {
	Name string // file, otlp, ipfix, spill

	Sent     atomic.Uint64 // records handed over
	Dropped  atomic.Uint64 // given up: the target was away for too long, or refused them
	Behind   atomic.Uint64 // overwritten in the log before the export came to them
	Failures atomic.Uint64 // attempts that failed
	Down     atomic.Bool   // the last attempt did
}

var (
	exportSent     = counter("export_records_total", "Records handed over by an export.", "export")
	exportLost     = counter("export_lost_records_total", "Records lost to an export: dropped (its target was away, or refused them) or behind (the log went on without it).", "export", "cause")
	exportFailures = counter("export_failures_total", "Attempts of an export that failed.", "export")
	exportUp       = gauge("export_up", "Whether the last attempt of an export succeeded.", "export")
)

func (a *Account) emit(e emitter) {
	e.add(exportSent, float64(a.Sent.Load()), a.Name)
	e.add(exportLost, float64(a.Dropped.Load()), a.Name, "dropped")
	e.add(exportLost, float64(a.Behind.Load()), a.Name, "behind")
	e.add(exportFailures, float64(a.Failures.Load()), a.Name)
	up := 1.0
	if a.Down.Load() {
		up = 0
	}
	e.add(exportUp, up, a.Name)
}
