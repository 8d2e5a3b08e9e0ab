package otlp

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc/credentials"

	"github.com/weirnet/weir/controlplane/api"
)

// Metrics sends the numbers that Prometheus would scrape, under the same names.
type Metrics struct {
	Options
	Interval time.Duration
	Log      *slog.Logger

	reader   *metric.ManualReader
	exporter metric.Exporter // nil: made at the next attempt

	mu     sync.Mutex
	status api.ExportStatus
}

// NewMetrics returns Metrics that do nothing until they are run.
func NewMetrics(o Options, from prometheus.Gatherer, interval time.Duration, log *slog.Logger) *Metrics {
	m := &Metrics{Options: o, Interval: interval, Log: log}
	m.reader = metric.NewManualReader(metric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(from))))
	metric.NewMeterProvider(metric.WithReader(m.reader), metric.WithResource(o.resource()))
	m.status = api.ExportStatus{Export: "otlp-metrics", Target: o.Endpoint.String(), Lost: map[string]uint64{}}
	return m
}

// Run sends all metrics once an interval, and a last time when ctx is over. What failed is
// not sent again: the next are the newer ones.
func (m *Metrics) Run(ctx context.Context) {
	t := time.NewTicker(m.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			m.note(m.send(last))
			m.close()
			return
		case <-t.C:
			m.note(m.send(ctx))
		}
	}
}

func (m *Metrics) send(ctx context.Context) error {
	var data metricdata.ResourceMetrics
	if err := m.reader.Collect(ctx, &data); err != nil {
		return err
	}
	if m.exporter == nil {
		exporter, err := m.open(ctx)
		if err != nil {
			return err
		}
		m.exporter = exporter
	}
	err := m.exporter.Export(ctx, &data)
	if err != nil {
		m.close() // the next attempt reads certificates and headers again
	}
	return err
}

func (m *Metrics) close() {
	if m.exporter != nil {
		_ = m.exporter.Shutdown(context.Background())
		m.exporter = nil
	}
}

// note counts an attempt, and logs when they begin to fail and to succeed.
func (m *Metrics) note(err error) {
	m.mu.Lock()
	was := m.status.Error
	m.status.Taken++
	if err == nil {
		m.status.Exported++
		m.status.Error, m.status.Since = "", nil
	} else {
		m.status.Failures++
		m.status.Lost["away"]++
		m.status.Error = err.Error()
		if was == "" {
			now := time.Now()
			m.status.Since = &now
		}
	}
	m.mu.Unlock()
	switch {
	case err != nil && was == "":
		m.Log.Warn("metrics are not exported", "export", "otlp-metrics", "target", m.Endpoint, "error", err)
	case err == nil && was != "":
		m.Log.Info("metrics are exported again", "export", "otlp-metrics", "target", m.Endpoint)
	}
}

// Status is how often all metrics were sent.
func (m *Metrics) Status() api.ExportStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Lost = map[string]uint64{"away": m.status.Lost["away"]}
	return s
}

func (m *Metrics) open(ctx context.Context) (metric.Exporter, error) {
	tls, err := m.tls()
	if err != nil {
		return nil, err
	}
	headers, err := m.headers()
	if err != nil {
		return nil, err
	}
	if m.Protocol == HTTP {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = tls
		opts := []otlpmetrichttp.Option{
			otlpmetrichttp.WithEndpoint(m.Endpoint.Host), otlpmetrichttp.WithURLPath(m.Endpoint.Path + "/v1/metrics"), otlpmetrichttp.WithHeaders(headers),
			otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{}), otlpmetrichttp.WithHTTPClient(&http.Client{Transport: t, Timeout: timeout}),
		}
		if tls == nil {
			opts = append(opts, otlpmetrichttp.WithInsecure())
		}
		if m.Gzip {
			opts = append(opts, otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression))
		}
		return otlpmetrichttp.New(ctx, opts...)
	}
	opts := []otlpmetricgrpc.Option{
		otlpmetricgrpc.WithEndpoint(m.Endpoint.Host), otlpmetricgrpc.WithHeaders(headers), otlpmetricgrpc.WithTimeout(timeout),
		otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{}),
	}
	if tls == nil {
		opts = append(opts, otlpmetricgrpc.WithInsecure())
	} else {
		opts = append(opts, otlpmetricgrpc.WithTLSCredentials(credentials.NewTLS(tls)))
	}
	if m.Gzip {
		opts = append(opts, otlpmetricgrpc.WithCompressor("gzip"))
	}
	return otlpmetricgrpc.New(ctx, opts...)
}
