package flowlog

// losses are what records of lost events tell, in all; it is not changed.
type losses struct {
	records uint64                // of lost events
	by      [len(tellable)]uint64 // events
}

// tellable are the causes that a log has records of.
var tellable = [...]string{LostFlowEvents, LostDenialEvents, LostAgent}

// and is l with what r tells; most records tell nothing.
func (l *losses) and(r *record) *losses {
	for i, cause := range tellable {
		if r.lost > 0 && r.cause == cause {
			sum := *l
			sum.records++
			sum.by[i] += r.lost
			return &sum
		}
	}
	return l
}

// place is where a reader is in a ring.
type place struct {
	next uint64 // record
	told *losses
}

// after is the place that follows r.
func after(r *record) place { return place{r.seq + 1, r.before.and(r)} }

// missed stands for the records between p and next, whoever reads them having come too late for n:
// what those of lost events among them told, each cause for itself, then how many others they were.
func (p place) missed(n uint64, next *record) (out []*record) {
	denied := next.denials
	if next.isDenial() {
		denied--
	}
	gap := func(lost uint64, cause string) {
		if lost > 0 {
			out = append(out, &record{seq: next.seq - 1, lost: lost, cause: cause, read: next.read, denials: denied})
		}
	}
	for i, cause := range tellable {
		gap(next.before.by[i]-p.told.by[i], cause)
	}
	gap(n-(next.before.records-p.told.records), "")
	return out
}
