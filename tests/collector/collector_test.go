// Package collector holds what Weir sends by OTLP against the receiver that OpenTelemetry
// collectors are built with.
package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/collector/client"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowexport"
	"github.com/weirnet/weir/controlplane/flowexport/otlp"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/tests/flowfeed"
)

var protocols = []string{otlp.GRPC, otlp.HTTP}

// sink is what stands behind the receiver.
type sink struct {
	mu       sync.Mutex
	logs     []plog.LogRecord
	resource map[string]any
	header   string // authorization
	metrics  map[string]pmetric.Metric
	err      error // the answer to logs
	forget   bool
}

func (*sink) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

func (s *sink) ConsumeLogs(ctx context.Context, l plog.Logs) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if h := client.FromContext(ctx).Metadata.Get("authorization"); len(h) > 0 {
		s.header = h[0]
	}
	if s.forget {
		return nil
	}
	for _, rl := range l.ResourceLogs().All() {
		s.resource = rl.Resource().Attributes().AsRaw()
		for _, sl := range rl.ScopeLogs().All() {
			for _, r := range sl.LogRecords().All() {
				c := plog.NewLogRecord()
				r.CopyTo(c)
				s.logs = append(s.logs, c)
			}
		}
	}
	return nil
}

func (s *sink) ConsumeMetrics(_ context.Context, m pmetric.Metrics) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics = map[string]pmetric.Metric{}
	for _, rm := range m.ResourceMetrics().All() {
		s.resource = rm.Resource().Attributes().AsRaw()
		for _, sm := range rm.ScopeMetrics().All() {
			for _, x := range sm.Metrics().All() {
				c := pmetric.NewMetric()
				x.CopyTo(c)
				s.metrics[x.Name()] = c
			}
		}
	}
	return nil
}

func (s *sink) answer(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *sink) all() []plog.LogRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]plog.LogRecord(nil), s.logs...)
}

// freeAddress is one that nobody listens at.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// collect starts a receiver; tls are its settings, if any.
func collect(t testing.TB, protocol, address string, tls map[string]any) (s *sink, stop func()) {
	t.Helper()
	server := map[string]any{"endpoint": address, "include_metadata": true}
	if tls != nil {
		server["tls"] = tls
	}
	f := otlpreceiver.NewFactory()
	config := f.CreateDefaultConfig()
	must(t, confmap.NewFromStringMap(map[string]any{"protocols": map[string]any{protocol: server}}).Unmarshal(config))
	s = &sink{}
	logs, err := f.CreateLogs(t.Context(), receivertest.NewNopSettings(f.Type()), config, s)
	must(t, err)
	metrics, err := f.CreateMetrics(t.Context(), receivertest.NewNopSettings(f.Type()), config, s)
	must(t, err)
	for _, c := range []component.Component{logs, metrics} {
		must(t, c.Start(t.Context(), componenttest.NewNopHost()))
	}
	stop = sync.OnceFunc(func() {
		for _, c := range []component.Component{logs, metrics} {
			if err := c.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func to(t testing.TB, scheme, protocol, address string) otlp.Options {
	t.Helper()
	u, err := otlp.ParseEndpoint(scheme+"://"+address, protocol)
	must(t, err)
	return otlp.Options{Endpoint: u, Protocol: protocol, Gzip: true, Node: flowfeed.Node, Version: "0.1.0"}
}

// export runs an exporter until the test is over.
func export(t *testing.T, feed *flowfeed.Feed, o otlp.Options) *flowexport.Exporter {
	t.Helper()
	e := flowexport.New(feed.Log, flowexport.Config{
		Name: "otlp", Where: o.Endpoint.String(), Target: otlp.NewLogs(o), Log: slog.New(slog.DiscardHandler), Queue: 1000, Linger: time.Millisecond, Retry: 20 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return e
}

func until(t *testing.T, e *flowexport.Exporter, what string, is func(api.ExportStatus) bool) api.ExportStatus {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := e.Status()
		if is(s) {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s: %+v", what, s)
		}
	}
}

func each(t *testing.T, test func(t *testing.T, protocol string)) {
	for _, p := range protocols {
		t.Run(p, func(t *testing.T) { test(t, p) })
	}
}

func TestFlowsAreLogRecords(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		address := freeAddress(t)
		s, _ := collect(t, protocol, address, nil)
		feed := flowfeed.New(t, 0)
		e := export(t, feed, to(t, "http", protocol, address))
		feed.Add(flowfeed.Began(40001), flowfeed.Ended(40001), flowfeed.Denied(40002))
		until(t, e, "three exported", func(s api.ExportStatus) bool { return s.Exported == 3 })
		got := s.all()
		if len(got) != 3 {
			t.Fatalf("%d records", len(got))
		}
		ended := map[string]any{
			"network.type": "ipv4", "network.transport": "tcp", "network.interface.name": "weir0000000000a",
			"source.address": "10.0.0.2", "source.port": int64(40001), "destination.address": "10.0.0.3", "destination.port": int64(6379),
			"source.k8s.namespace.name": "shop", "source.k8s.pod.name": "web-1", "source.k8s.workload.kind": "Deployment", "source.k8s.workload.name": "web",
			"destination.k8s.namespace.name": "shop", "destination.k8s.pod.name": "db-0",
			"process.pid": int64(812), "process.comm": "curl", "process.executable.path": "/usr/bin/curl", "process.executable.name": "curl", "process.creation.time": "2026-11-24T11:59:00.123Z",
			"weir.kind": "ended", "weir.verdict": "FORWARDED", "weir.path": "bpf", "weir.epoch": int64(12), "weir.end": "fin", "weir.duration": 2.5,
			"weir.packets.sent": int64(7), "weir.packets.received": int64(5), "weir.bytes.sent": int64(700), "weir.bytes.received": int64(5000),
			"weir.tcp.flags.sent": "SYN, ACK, FIN, PSH", "weir.tcp.flags.received": "SYN, ACK, FIN, PSH", "weir.tcp.source.rtt": 0.00025, "weir.tcp.source.retransmits": int64(3),
			"weir.egress.verdict": "FORWARDED", "weir.egress.rule.kind": "not-isolated",
			"weir.ingress.verdict": "FORWARDED", "weir.ingress.rule.kind": "NetworkPolicy", "weir.ingress.rule.namespace": "shop", "weir.ingress.rule.name": "db", "weir.ingress.rule.index": int64(0),
		}
		same(t, got[1], ended)
		denied := map[string]any{"weir.kind": "denied", "weir.verdict": "DROPPED", "weir.reason": "policy", "weir.ingress.verdict": "DROPPED", "weir.ingress.rule.kind": "default-deny", "weir.ingress.isolated_by": []any{"shop/db"}}
		for name, want := range denied {
			if have := got[2].Attributes().AsRaw()[name]; fmt.Sprint(have) != fmt.Sprint(want) {
				t.Errorf("%s is %v, want %v", name, have, want)
			}
		}
		for i, want := range []struct{ severity, body string }{
			{"INFO", "FORWARDED shop/web-1:40001 -> shop/db-0:6379 tcp new"},
			{"INFO", "FORWARDED shop/web-1:40001 -> shop/db-0:6379 tcp ended"},
			{"WARN", "DROPPED shop/web-1:40002 -> shop/db-0:6379 tcp denied: policy"},
		} {
			r := got[i]
			if r.SeverityText() != want.severity || r.Body().AsString() != want.body || r.EventName() != otlp.EventFlow || !r.Timestamp().AsTime().Equal(flowfeed.At) {
				t.Errorf("%d: %s %q %s %s", i, r.SeverityText(), r.Body().AsString(), r.EventName(), r.Timestamp())
			}
		}
		if s.resource["k8s.node.name"] != flowfeed.Node || s.resource["service.name"] != "weir-agent" || s.resource["service.version"] != "0.1.0" {
			t.Errorf("resource %v", s.resource)
		}
	})
}

// What is asked for comes, and nothing else; what is lost is told whole.
func TestSomeFieldsOfFlows(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		address := freeAddress(t)
		s, _ := collect(t, protocol, address, nil)
		feed := flowfeed.New(t, 0)
		o := to(t, "http", protocol, address)
		var err error
		o.Fields, err = otlp.ParseFields([]string{"weir.verdict", "weir.reason", "source.k8s.pod", "weir.ingress.isolated_by"})
		must(t, err)
		e := export(t, feed, o)
		feed.Add(flowfeed.Denied(40001))
		feed.KernelLoses(3, 0)
		feed.Add(flowfeed.Ended(40002))
		until(t, e, "two exported", func(s api.ExportStatus) bool { return s.Exported == 2 })
		got := s.all()
		if len(got) != 3 {
			t.Fatalf("%d records", len(got))
		}
		for i, want := range []string{
			"weir.flow WARN  map[source.k8s.pod.name:web-1 weir.ingress.isolated_by:[shop/db] weir.reason:policy weir.verdict:DROPPED]",
			"weir.lost ERROR flow records were lost here map[weir.lost.cause:flow_events weir.lost.records:3]",
			"weir.flow INFO  map[source.k8s.pod.name:web-1 weir.verdict:FORWARDED]",
		} {
			r := got[i]
			if have := fmt.Sprint(r.EventName(), " ", r.SeverityText(), " ", r.Body().AsString(), " ", r.Attributes().AsRaw()); have != want {
				t.Errorf("got %s\nwant %s", have, want)
			}
		}
		if !got[0].Timestamp().AsTime().Equal(flowfeed.At) {
			t.Errorf("time %s", got[0].Timestamp())
		}
	})
}

// same holds all attributes but the record's id, which must be there.
func same(t *testing.T, r plog.LogRecord, want map[string]any) {
	t.Helper()
	got := r.Attributes().AsRaw()
	if id, _ := got["log.record.uid"].(string); len(id) != 36 {
		t.Errorf("log.record.uid is %q", id)
	}
	delete(got, "log.record.uid")
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
	for name, v := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("there is %s = %v", name, v)
		}
	}
}

// A collector that is away, and one that takes nothing for a while, lose nothing that the
// queue has room for; the rest is counted, and named in the stream.
func TestCollectorIsAway(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		address := freeAddress(t)
		feed := flowfeed.New(t, 0)
		e := export(t, feed, to(t, "http", protocol, address))
		feed.Flows(1500)
		away := until(t, e, "failures", func(s api.ExportStatus) bool { return s.Failures > 1 && s.Taken == 1500 })
		if !strings.Contains(away.Error, "refused") || away.Exported != 0 || away.Lost["queue"]+away.Queued != 1500 {
			t.Fatalf("%+v", away)
		}
		s, stop := collect(t, protocol, address, nil)
		until(t, e, "all that was kept", func(s api.ExportStatus) bool { return s.Exported == away.Queued && s.Error == "" })
		s.answer(errors.New("busy")) // to the exporter: not now
		feed.Flows(10)
		until(t, e, "a failure", func(s api.ExportStatus) bool { return s.Failures > away.Failures && s.Error != "" })
		s.answer(nil)
		until(t, e, "all", func(s api.ExportStatus) bool { return s.Exported == away.Queued+10 })
		stop()
		var flows, lost uint64
		for _, r := range s.all() {
			if r.EventName() == otlp.EventLost {
				n, _ := r.Attributes().Get("weir.lost.records")
				cause, _ := r.Attributes().Get("weir.lost.cause")
				if lost += uint64(n.Int()); cause.Str() != flowlog.LostExportQueue {
					t.Errorf("cause %q", cause.Str())
				}
				continue
			}
			flows++
		}
		if flows != away.Queued+10 || lost != away.Lost["queue"] {
			t.Errorf("%d flows and %d lost came, %+v", flows, lost, away)
		}
	})
}

// What a collector refuses for good is counted, and holds up nothing.
func TestCollectorRefuses(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		address := freeAddress(t)
		s, _ := collect(t, protocol, address, nil)
		s.answer(consumererror.NewPermanent(errors.New("too long")))
		feed := flowfeed.New(t, 0)
		e := export(t, feed, to(t, "http", protocol, address))
		feed.Flows(20)
		until(t, e, "all refused", func(s api.ExportStatus) bool { return s.Lost["refused"] == 20 })
		s.answer(nil)
		feed.Flows(5)
		after := until(t, e, "others taken", func(s api.ExportStatus) bool { return s.Exported == 5 })
		if after.Failures != 0 || after.Queued != 0 || len(s.all()) != 5 {
			t.Errorf("%+v, %d came", after, len(s.all()))
		}
	})
}

// Certificates are checked both ways, and read again: what was wrong may be put right
// without a restart.
func TestCertificates(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		address := freeAddress(t)
		ca, stranger := newCA(t), newCA(t)
		serverCert, serverKey := ca.issue(t, time.Hour)
		s, _ := collect(t, protocol, address, map[string]any{"cert_file": serverCert, "key_file": serverKey, "client_ca_file": ca.file, "reload_interval": "1ns"})

		dir := t.TempDir()
		o := to(t, "https", protocol, address)
		o.CA, o.Cert, o.Key, o.HeadersFile = filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "headers")
		feed := flowfeed.New(t, 0)
		e := export(t, feed, o)
		feed.Flows(3)
		fails := func(what, with string) {
			t.Helper()
			until(t, e, what, func(s api.ExportStatus) bool { return strings.Contains(s.Error, with) })
		}
		put := func(from, as string) {
			t.Helper()
			b, err := os.ReadFile(from)
			must(t, err)
			must(t, os.WriteFile(as+".new", b, 0o600))
			must(t, os.Rename(as+".new", as))
		}
		fails("no files", o.CA)
		put(stranger.file, o.CA)
		fails("no certificate", o.Cert)
		cert, key := ca.issue(t, -time.Hour)
		put(key, o.Key)
		put(cert, o.Cert)
		fails("own certificate expired", o.Cert+" expired at ")
		cert, key = ca.issue(t, time.Hour)
		put(key, o.Key)
		put(cert, o.Cert)
		fails("no headers", o.HeadersFile)
		must(t, os.WriteFile(o.HeadersFile, []byte("# secret\nAuthorization Bearer abc\n"), 0o600))
		fails("bad headers", o.HeadersFile+":2: not a line NAME: VALUE")
		must(t, os.WriteFile(o.HeadersFile, []byte("# secret\nAuthorization: Bearer abc\n"), 0o600))
		fails("unknown authority", "certificate signed by unknown authority")
		put(ca.file, o.CA)
		until(t, e, "all exported", func(s api.ExportStatus) bool { return s.Exported == 3 && s.Error == "" })
		if s.header != "Bearer abc" {
			t.Errorf("header %q", s.header)
		}
	})
}

// A collector whose own certificate has expired gets nothing.
func TestCollectorsCertificateExpired(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		address := freeAddress(t)
		ca := newCA(t)
		cert, key := ca.issue(t, -time.Minute)
		s, _ := collect(t, protocol, address, map[string]any{"cert_file": cert, "key_file": key})
		o := to(t, "https", protocol, address)
		o.CA = ca.file
		feed := flowfeed.New(t, 0)
		e := export(t, feed, o)
		feed.Flows(3)
		until(t, e, "a failure", func(s api.ExportStatus) bool { return strings.Contains(s.Error, "certificate has expired") })
		if len(s.all()) > 0 {
			t.Error("it got something")
		}
	})
}

func TestMetrics(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		address := freeAddress(t)
		r := prometheus.NewRegistry()
		count := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_dropped_packets_total", Help: "Packets."}, []string{"reason"})
		took := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_commit_duration_seconds", Buckets: []float64{1, 2}})
		r.MustRegister(count, took)
		count.WithLabelValues("policy").Add(42)
		took.Observe(1.5)
		m := otlp.NewMetrics(to(t, "http", protocol, address), r, 50*time.Millisecond, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); m.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		status := func(what string, is func(api.ExportStatus) bool) {
			t.Helper()
			for end := time.Now().Add(20 * time.Second); !is(m.Status()); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("not within 20 s: %s: %+v", what, m.Status())
				}
			}
		}
		status("a failure", func(s api.ExportStatus) bool { return s.Failures > 0 && strings.Contains(s.Error, "refused") })
		s, _ := collect(t, protocol, address, nil)
		status("success", func(s api.ExportStatus) bool { return s.Exported > 0 && s.Error == "" })
		s.mu.Lock()
		defer s.mu.Unlock()
		sum := s.metrics["weir_dropped_packets_total"].Sum()
		if sum.DataPoints().Len() != 1 || !sum.IsMonotonic() || sum.AggregationTemporality() != pmetric.AggregationTemporalityCumulative {
			t.Fatalf("%+v", sum)
		}
		p := sum.DataPoints().At(0)
		if reason, _ := p.Attributes().Get("reason"); p.DoubleValue() != 42 || reason != pcommon.NewValueStr("policy") && reason.Str() != "policy" {
			t.Errorf("%v %v", p.DoubleValue(), p.Attributes().AsRaw())
		}
		if h := s.metrics["weir_commit_duration_seconds"].Histogram().DataPoints().At(0); h.Count() != 1 || h.Sum() != 1.5 || h.BucketCounts().At(1) != 1 {
			t.Errorf("%+v", h)
		}
		if s.resource["k8s.node.name"] != flowfeed.Node {
			t.Errorf("resource %v", s.resource)
		}
	})
}
