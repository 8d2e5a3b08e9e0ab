package export

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Sources are what metrics are made of, asked at each scrape.
type Sources struct {
	Status   func(context.Context) (api.Status, error)
	Policies func() []api.Policy
	Counters func() (datapath.Counters, error)
	Denials  func() ([]datapath.DenialCount, error)
	Rule     func(id uint32) (policy.Rule, bool)
	Records  func() []flowlog.Count
	Log      *slog.Logger
}

// Metrics are the node's, for Prometheus. All names begin with weir_, but for those of the
// Go runtime and the process.
type Metrics struct {
	registry *prometheus.Registry
	commits  *prometheus.HistogramVec
}

// NewMetrics makes the metrics of a node.
func NewMetrics(s Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		commits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weir_commit_duration_seconds", Help: "How long commits took, compilation and all.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"result"}),
	}
	m.commits.WithLabelValues("ok")
	m.commits.WithLabelValues("failed")
	m.registry.MustRegister(m.commits, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&collector{Sources: s, denied: newDenied(deniedMost)})
	return m
}

// Gatherer is for those who hand the metrics on in another form.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Committed notes a commit; it is an agent.Committed.
func (m *Metrics) Committed(took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.commits.WithLabelValues(result).Observe(took.Seconds())
}

// A metric is one that a scrape asks for.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func counter(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("weir_"+name, help, labels, nil), prometheus.CounterValue}
}

func gauge(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("weir_"+name, help, labels, nil), prometheus.GaugeValue}
}

var (
	buildInfo       = gauge("build_info", "1, with what the agent is.", "version", "goversion", "node")
	started         = gauge("agent_start_time_seconds", "When the agent began, in Unix time.")
	revisionDesired = gauge("policy_revision_desired", "The newest revision of what the source says.")
	revisionApplied = gauge("policy_revision_applied", "The revision that is enforced.")
	epoch           = gauge("policy_epoch", "The epoch in force: it counts the commits that changed a verdict.")
	policies        = gauge("policies", "Policies by what is enforced of them: as-written, last-good (an earlier version) or isolates (nothing but isolation).", "enforced")
	errorsNow       = gauge("errors", "Objects, or parts of them, that are not enforced as written; weir status names them.")
	warningsNow     = gauge("warnings", "Things that weir status warns of.")
	endpoints       = gauge("endpoints", "Pods' interfaces on this node.", "chained")
	unprotectedPods = gauge("unprotected_pods", "Pods of this node, as the API server has them, that no policy is enforced on; weir status names them.")
	mapEntries      = gauge("map_entries", "Entries of a kernel map in use.", "map")
	mapCapacity     = gauge("map_capacity_entries", "Entries of a kernel map that may be in use; beyond that objects are refused or flows dropped.", "map")

	flowsActive   = gauge("flows_active", "Entries in the flow table.")
	flows         = counter("flows_total", "Flows that began, ended or were revoked, as the kernel counts them.", "event")
	flowsJudged   = counter("flows_rejudged_total", "Flows that a commit had judged again, by whether anything had changed for them.", "changed")
	flowsPickedUp = counter("flows_picked_up_total", "TCP connections that were going on when they were first seen.")
	untracked     = counter("untracked_packets_total", "Packets let through without a flow.")
	records       = counter("flow_records_total", "Records of flows that the agent read, by sort.", "kind", "verdict", "direction", "protocol")

	dropped    = counter("dropped_packets_total", "Packets dropped, by reason.", "reason")
	denied     = counter("denied_packets_total", "Packets that policy denied, by the policy, or the policies whose isolation did it. What is past the bound on names is \"other\".", "namespace", "policy", "direction", "cause")
	suppressed = counter("denied_packets_suppressed_total", "Denied packets that were counted and have no record of their own.")
	uncounted  = counter("denied_packets_uncounted_total", "Denied packets that are counted by reason alone: the kernel's table of counts was full.")

	events = counter("flow_events_total", "Events that the kernel wrote, by ring.", "ring")
	lost   = counter("flow_events_lost_total", "Events that were lost because a kernel ring was full, by ring.", "ring")
	read   = counter("flow_events_read_total", "Events that this agent read.")

	spillBytes   = gauge("flow_spill_bytes", "Size of the flow records on disk.")
	spillWritten = counter("flow_spill_records_total", "Records spilled to disk.")
	spillLost    = counter("flow_spill_lost_total", "Records that could not be written to disk.")
	spillMissing = gauge("flow_spill_missing_events", "Events that an earlier agent had read and not spilled when it was killed.")
	spillDamaged = gauge("flow_spill_damaged_files", "Files of spilled records that were found damaged, or cut off by a kill.")

	readersOpen  = gauge("flow_readers", "Readers of the flow log, by name.", "reader")
	readersTaken = counter("flow_reader_records_total", "Records that readers took.", "reader")
	readersLost  = counter("flow_reader_lost_total", "Records that were overwritten before a reader took them.", "reader")
	readersCut   = counter("flow_readers_cut_total", "Readers cut off because they took nothing for too long.", "reader")

	exportSent     = counter("export_records_total", "Records handed over by an export.", "export")
	exportLost     = counter("export_lost_records_total", "Records lost to an export, by cause: queue (its target was away, or too slow), refused (by the target), end (the agent's), behind (overwritten in the log before the export came to them).", "export", "cause")
	exportQueued   = gauge("export_queued_records", "Records that wait for an export's target.", "export")
	exportFailures = counter("export_failures_total", "Attempts of an export that failed.", "export")
	exportUp       = gauge("export_up", "Whether the last attempt of an export succeeded.", "export")

	parked = counter("parked_packets_total", "First packets of pods not known yet that were kept to be judged again.")
	resent = counter("resent_packets_total", "Of those, how many were sent again once their pod was known.")
)

// collector asks its sources at each scrape.
type collector struct {
	Sources
	denied *deniedCounts
}

// Describe implements prometheus.Collector: what there is depends on the node.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector. A source that fails leaves its metrics out, and
// weir_scrape_success says so.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	e := emitter{out}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for source, f := range map[string]func(context.Context, emitter) error{
		"status": c.status, "counters": c.counters, "denials": c.denials,
	} {
		success := 1.0
		if err := f(ctx, e); err != nil {
			c.Log.Warn("metrics are incomplete", "source", source, "error", err)
			success = 0
		}
		e.add(scrapeSuccess, success, source)
	}
	for _, r := range c.Records() {
		e.add(records, float64(r.Records), r.Kind, r.Verdict, r.Direction, r.Protocol)
	}
}

var scrapeSuccess = gauge("scrape_success", "Whether a part of the metrics could be had.", "source")

type emitter struct{ out chan<- prometheus.Metric }

func (e emitter) add(m metric, value float64, labels ...string) {
	e.out <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

func (c *collector) status(ctx context.Context, e emitter) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	e.add(buildInfo, 1, s.Version, runtime.Version(), s.Node)
	e.add(started, float64(s.Started.UnixMilli())/1e3)
	e.add(revisionDesired, float64(s.Revision.Desired))
	e.add(revisionApplied, float64(s.Revision.Applied))
	e.add(epoch, float64(s.Epoch))
	e.add(errorsNow, float64(len(s.Errors)))
	e.add(warningsNow, float64(len(s.Warnings)))
	e.add(endpoints, float64(s.Chained), "true")
	e.add(endpoints, float64(s.Endpoints-s.Chained), "false")
	e.add(unprotectedPods, float64(s.Unprotected))
	for _, m := range s.Maps {
		e.add(mapEntries, float64(m.Used), m.Name)
		e.add(mapCapacity, float64(m.Most), m.Name)
	}
	e.add(flowsActive, float64(s.Flows.Active))
	e.add(parked, float64(s.Flows.Parked))
	e.add(resent, float64(s.Flows.Resent))
	enforced := map[string]int{api.AsWritten: 0, api.LastGood: 0, api.Isolates: 0}
	for _, p := range c.Policies() {
		enforced[p.Enforced]++
	}
	for how, n := range enforced {
		e.add(policies, float64(n), how)
	}
	if s.Flows.Log != nil {
		c.flowLog(e, s.Flows.Log)
	}
	for _, x := range s.Exports {
		c.export(e, x)
	}
	return nil
}

func (c *collector) export(e emitter, x api.ExportStatus) {
	e.add(exportSent, float64(x.Exported), x.Export)
	for cause, n := range x.Lost {
		e.add(exportLost, float64(n), x.Export, cause)
	}
	e.add(exportQueued, float64(x.Queued), x.Export)
	e.add(exportFailures, float64(x.Failures), x.Export)
	up := 1.0
	if x.Error != "" {
		up = 0
	}
	e.add(exportUp, up, x.Export)
}

func (c *collector) flowLog(e emitter, l *api.FlowLogStatus) {
	e.add(read, float64(l.Read))
	if s := l.Spill; s != nil {
		e.add(spillBytes, float64(s.Bytes))
		e.add(spillWritten, float64(s.Written))
		e.add(spillLost, float64(s.Lost))
		e.add(spillMissing, float64(s.Missing))
		e.add(spillDamaged, float64(s.Corrupt))
	}
	for _, r := range l.Readers {
		e.add(readersOpen, float64(r.Open), r.Name)
		e.add(readersTaken, float64(r.Taken), r.Name)
		e.add(readersLost, float64(r.Lost), r.Name)
		e.add(readersCut, float64(r.Cut), r.Name)
	}
}

func (c *collector) counters(_ context.Context, e emitter) error {
	n, err := c.Counters()
	if err != nil {
		return err
	}
	e.add(flows, float64(n.FlowsNew), "new")
	e.add(flows, float64(n.FlowsUpdated), "updated")
	e.add(flows, float64(n.FlowsEnded), "ended")
	e.add(flows, float64(n.FlowsRevoked), "revoked")
	e.add(flowsJudged, float64(n.FlowsRejudged), "true")
	e.add(flowsJudged, float64(n.FlowsRestamped), "false")
	e.add(flowsPickedUp, float64(n.FlowsPickedUp))
	e.add(untracked, float64(n.Untracked))
	e.add(suppressed, float64(n.DenialsSuppressed))
	e.add(uncounted, float64(n.DenialsUncounted))
	e.add(events, float64(n.EventsEmitted), flowlog.LostFlowEvents)
	e.add(events, float64(n.DenialsEmitted), flowlog.LostDenialEvents)
	e.add(lost, float64(n.EventsLost), flowlog.LostFlowEvents)
	e.add(lost, float64(n.DenialsLost), flowlog.LostDenialEvents)
	for r := datapath.ReasonPolicy; r < datapath.Reasons; r++ { // all, so that the first drop is an increase
		e.add(dropped, float64(n.Drops[r]), r.String())
	}
	return nil
}

func (c *collector) denials(_ context.Context, e emitter) error {
	counts, err := c.Denials()
	if err != nil {
		return err
	}
	for _, d := range c.denied.add(counts, c.Rule) {
		e.add(denied, float64(d.packets), d.namespace, d.policy, d.direction, d.cause)
	}
	return nil
}

// sorted are a map's entries in the order of less.
func sorted[K comparable, V any](m map[K]V, less func(a, b K) int) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, less)
	return keys
}
