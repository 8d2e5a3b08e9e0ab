package flowlog

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
)

// Where records of flows are lost, in the words of status and metrics.
const (
	LostFlowEvents   = "flow_events"   // the kernel's ring of new and ended flows was full
	LostDenialEvents = "denial_events" // that of denied packets
	LostAgent        = "agent"         // an agent was killed that had read them
	LostExportQueue  = "export_queue"  // an export's target was away, or too slow
)

// lossSources are Hubble's words for them, for lost_events messages.
var lossSources = map[string]flowpb.LostEventSource{
	LostFlowEvents:   flowpb.LostEventSource_PERF_EVENT_RING_BUFFER,
	LostDenialEvents: flowpb.LostEventSource_PERF_EVENT_RING_BUFFER,
	LostExportQueue:  flowpb.LostEventSource_OBSERVER_EVENTS_QUEUE,
	LostAgent:        flowpb.LostEventSource_OBSERVER_EVENTS_QUEUE,
	"":               flowpb.LostEventSource_HUBBLE_RING_BUFFER,
}

// Count is how many records there were of a sort.
type Count struct {
	Kind      string // api.FlowNew and so on
	Verdict   string // FORWARDED, DROPPED
	Direction string // egress, ingress, none
	Protocol  string // tcp, udp, sctp, icmp, other
	Records   uint64
}

// tallies counts records as they come: few enough to be an array, so that counting costs
// nothing and no name can make them grow.
type tallies [len(kindList)][len(verdictList)][len(directionList)][len(protocolList)]uint64

var (
	kindList      = [...]datapath.EventKind{datapath.EventNew, datapath.EventEnded, datapath.EventRevoked, datapath.EventDenied, datapath.EventUpdate, 0}
	verdictList   = [...]string{flowpb.Verdict_FORWARDED.String(), flowpb.Verdict_DROPPED.String()}
	directionList = [...]string{datapath.Egress.String(), datapath.Ingress.String(), "none"}
	protocolList  = [...]string{"tcp", "udp", "sctp", "icmp", "other"}
)

func (t *tallies) add(r *record) {
	kind, verdict := len(kindList)-1, 0
	if i := slices.Index(kindList[:], r.event.Kind); i >= 0 {
		kind = i
	}
	if r.event.Dropped {
		verdict = 1
	}
	t[kind][verdict][min(int(r.direction()), len(directionList)-1)][protocolIndex(r.event.Protocol)]++
}

func protocolIndex(p uint8) int {
	switch p {
	case datapath.TCP:
		return 0
	case datapath.UDP:
		return 1
	case datapath.SCTP:
		return 2
	case protocolICMPv4, protocolICMPv6:
		return 3
	}
	return 4
}

// Counts are the records so far by sort; sorts that never came are left out.
func (l *Log) Counts() []Count {
	l.mu.Lock()
	t := l.tallies
	l.mu.Unlock()
	var out []Count
	for k := range t {
		for v := range t[k] {
			for d := range t[k][v] {
				for p, n := range t[k][v][d] {
					if n > 0 {
						kind := cmp.Or(kindName(kindList[k]), "other")
						out = append(out, Count{kind, verdictList[v], directionList[d], protocolList[p], n})
					}
				}
			}
		}
	}
	return out
}

// account is who read how much, by name: it stays when a reader has gone.
type account struct {
	mu      sync.Mutex
	readers map[string]*api.FlowReader
}

// accountsMost bounds the names; past it readers count as "other".
const accountsMost = 64

func (a *account) change(name string, f func(*api.FlowReader)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.readers == nil {
		a.readers = map[string]*api.FlowReader{}
	}
	r := a.readers[name]
	if r == nil && len(a.readers) >= accountsMost {
		name = "other"
		r = a.readers[name]
	}
	if r == nil {
		r = &api.FlowReader{Name: name}
		a.readers[name] = r
	}
	f(r)
}

// Status is the log's part of the account: records read from the kernel, and what became of them.
func (l *Log) Status() api.FlowLogStatus {
	kept, size, next := l.ring.measure()
	s := api.FlowLogStatus{Read: l.read.Load(), Records: next, Kept: kept, Size: size, Readers: []api.FlowReader{}, Spill: l.history.status()}
	l.account.mu.Lock()
	defer l.account.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(l.account.readers)) {
		s.Readers = append(s.Readers, *l.account.readers[name])
	}
	return s
}

// watchLosses puts a lost-events record into the ring when the kernel had no room for events.
func (l *Log) watchLosses() (look func(), err error) {
	before, err := l.opts.Counters()
	if err != nil {
		return nil, err
	}
	var one sync.Mutex
	return func() {
		one.Lock()
		defer one.Unlock()
		now, err := l.opts.Counters()
		if err != nil {
			slog.Warn("lost flow events are not told in the log for now", "err", err)
			return
		}
		l.tellLost(LostFlowEvents, now.EventsLost, before.EventsLost)
		l.tellLost(LostDenialEvents, now.DenialsLost, before.DenialsLost)
		before = now
	}, nil
}

func (l *Log) tellLost(cause string, now, before uint64) {
	if now <= before {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if cause == LostDenialEvents {
		l.suppressed.debt += now - before
	}
	l.ring.add(&record{lost: now - before, cause: cause, read: l.read.Load(), denials: l.denied, event: datapath.Event{Time: l.opts.Now()}})
}

// lossInterval is how soon the stream says that the kernel lost events.
const lossInterval = time.Second
