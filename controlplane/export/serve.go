package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MetricsPath is where metrics are.
const MetricsPath = "/metrics"

// Handler answers scrapes, two at a time.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 2, Timeout: 10 * time.Second, ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true,
	}))
	return mux
}

// listenAgain is how long after an address was taken it is tried again.
const listenAgain = 10 * time.Second

// Serve answers scrapes at addr until ctx is over (nil). An address that is taken is logged
// once and tried again: enforcement does not depend on who looks.
func (m *Metrics) Serve(ctx context.Context, addr string, log *slog.Logger) error {
	for told := false; ctx.Err() == nil; {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err == nil {
			log.Info("metrics are served", "address", l.Addr(), "path", MetricsPath)
			return m.serve(ctx, l)
		}
		if !told {
			log.Error("metrics are not served: --metrics-listen is tried again until it works", "address", addr, "error", err)
			told = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenAgain):
		}
	}
	return nil
}

func (m *Metrics) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: m.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
