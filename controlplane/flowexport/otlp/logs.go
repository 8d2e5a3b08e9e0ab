package otlp

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/weirnet/weir/controlplane/flowexport"
	"github.com/weirnet/weir/controlplane/flowlog"
)

// scope is what log records say they come from.
const scope = "github.com/weirnet/weir"

// Logs is a flowexport.Target: each flow is a log record.
type Logs struct {
	Options
	exporter sdklog.Exporter // nil: made at the next Send
	answer   answer
	batch    batch
	logger   log.Logger
}

// NewLogs returns Logs that connect when they are first sent.
func NewLogs(o Options) *Logs {
	l := &Logs{Options: o}
	l.logger = sdklog.NewLoggerProvider(
		sdklog.WithProcessor(&l.batch), sdklog.WithResource(o.resource()), sdklog.WithAllowKeyDuplication(),
	).Logger(scope, log.WithInstrumentationVersion(o.Version))
	return l
}

// batch is the SDK's Processor that keeps what is emitted: queues, pauses and accounts are
// flowexport's.
type batch struct{ records []sdklog.Record }

func (*batch) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

func (b *batch) OnEmit(_ context.Context, r *sdklog.Record) error {
	b.records = append(b.records, *r)
	return nil
}

func (*batch) ForceFlush(context.Context) error { return nil }
func (*batch) Shutdown(context.Context) error   { return nil }

// Send implements flowexport.Target.
func (l *Logs) Send(ctx context.Context, records []*flowlog.Record) (settled int, err error) {
	if l.exporter == nil {
		if l.exporter, err = l.open(ctx); err != nil {
			l.exporter = nil
			return 0, err
		}
	}
	l.batch.records = l.batch.records[:0]
	now := time.Now()
	for _, r := range records {
		l.logger.Emit(ctx, logRecord(r, l.Node, l.Fields, now))
	}
	l.answer.reset()
	err = l.exporter.Export(ctx, l.batch.records)
	clear(l.batch.records)
	n, why := l.answer.refused(len(records))
	switch {
	case n > 0:
		return len(records) - n, &flowexport.RefusedError{N: n, Err: why}
	case err != nil:
		_ = l.Close() // the next attempt reads certificates and headers again
		return 0, err
	}
	return len(records), nil
}

// Close implements flowexport.Target.
func (l *Logs) Close() error {
	if l.exporter == nil {
		return nil
	}
	err := l.exporter.Shutdown(context.Background())
	l.exporter = nil
	return err
}

func (l *Logs) open(ctx context.Context) (sdklog.Exporter, error) {
	tls, err := l.tls()
	if err != nil {
		return nil, err
	}
	headers, err := l.headers()
	if err != nil {
		return nil, err
	}
	if l.Protocol == HTTP {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = tls
		opts := []otlploghttp.Option{
			otlploghttp.WithEndpoint(l.Endpoint.Host), otlploghttp.WithURLPath(l.Endpoint.Path + "/v1/logs"), otlploghttp.WithHeaders(headers),
			otlploghttp.WithRetry(otlploghttp.RetryConfig{}), otlploghttp.WithHTTPClient(&http.Client{Transport: transport{t, &l.answer}, Timeout: timeout}),
		}
		if tls == nil {
			opts = append(opts, otlploghttp.WithInsecure())
		}
		if l.Gzip {
			opts = append(opts, otlploghttp.WithCompression(otlploghttp.GzipCompression))
		}
		return otlploghttp.New(ctx, opts...)
	}
	opts := []otlploggrpc.Option{
		otlploggrpc.WithEndpoint(l.Endpoint.Host), otlploggrpc.WithHeaders(headers), otlploggrpc.WithTimeout(timeout),
		otlploggrpc.WithRetry(otlploggrpc.RetryConfig{}), otlploggrpc.WithDialOption(grpc.WithChainUnaryInterceptor(l.answer.intercept)),
	}
	if tls == nil {
		opts = append(opts, otlploggrpc.WithInsecure())
	} else {
		opts = append(opts, otlploggrpc.WithTLSCredentials(credentials.NewTLS(tls)))
	}
	if l.Gzip {
		opts = append(opts, otlploggrpc.WithCompressor("gzip"))
	}
	return otlploggrpc.New(ctx, opts...)
}
