// Package otlp hands flows to an OpenTelemetry collector as log records, and the node's
// metrics as metrics, by the OpenTelemetry SDK. It is the only user of that.
package otlp

import (
	"log/slog"

	"go.opentelemetry.io/otel"
)

// SetLog makes the SDK say there what it has nobody else to tell.
func SetLog(log *slog.Logger) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry", "error", err) }))
}
