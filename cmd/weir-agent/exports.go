package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/build"
	"github.com/weirnet/weir/controlplane/export"
	"github.com/weirnet/weir/controlplane/flowexport"
	"github.com/weirnet/weir/controlplane/flowexport/jsonfile"
	"github.com/weirnet/weir/controlplane/flowexport/otlp"
	"github.com/weirnet/weir/controlplane/flowlog"
)

// exportOptions are the flags of whoever gets the node's flows.
type exportOptions struct {
	queue      int
	file       string
	fileSize   int
	fileKeep   int
	fileAge    time.Duration
	fileFilter []string
	fileFields []string

	otlp         string
	otlpProtocol string
	otlpCA       string
	otlpCert     string
	otlpKey      string
	otlpHeaders  string
	otlpCompress string
	otlpFlows    bool
	otlpFilter   []string
	otlpFields   []string
	otlpMetrics  bool
	otlpInterval time.Duration

	// Of the above, checked.
	fileWants, otlpWants flowlog.Filter
	fileOf               jsonfile.Fields
	otlpOf               otlp.Fields
	otlpURL              *url.URL
}

func (o *exportOptions) flags(f *pflag.FlagSet) {
	f.IntVar(&o.queue, "flow-export-queue", flowexport.QueueSize, "flows that wait for an export's target at most; more are lost to it, and counted")
	f.StringVar(&o.file, "flow-export-file", "", "file to write flows to, one JSON message a line as weir flows -o json has them (docs/export.md)")
	f.IntVar(&o.fileSize, "flow-export-file-size", 100, "MiB at which that file is put aside and another begun; 0 = never")
	f.IntVar(&o.fileKeep, "flow-export-file-keep", 5, "files put aside that are kept; 0 = all")
	f.DurationVar(&o.fileAge, "flow-export-file-age", 0, "how long files put aside are kept; 0 = until there are newer ones")
	f.StringArrayVar(&o.fileFilter, "flow-export-file-filter", nil, "which flows go to the file, as NAME=VALUE of a filter of weir flows, e.g. verdict=dropped; repeatable (default: all)")
	f.StringSliceVar(&o.fileFields, "flow-export-file-fields", nil, "fields of flows that are written, as Hubble names them, e.g. verdict,source.pod_name (default: all)")
	f.StringVar(&o.otlp, "otlp-endpoint", "", "URL of an OpenTelemetry collector to send flows and metrics to, e.g. https://collector:4317 (docs/export.md)")
	f.StringVar(&o.otlpProtocol, "otlp-protocol", otlp.GRPC, "how: grpc or http")
	f.StringVar(&o.otlpCA, "otlp-tls-ca", "", "PEM file with the authorities of its certificate (default: the system's); read again after a failure")
	f.StringVar(&o.otlpCert, "otlp-tls-cert", "", "PEM file with this node's certificate, for a collector that asks for one")
	f.StringVar(&o.otlpKey, "otlp-tls-key", "", "PEM file with its key")
	f.StringVar(&o.otlpHeaders, "otlp-headers-file", "", "file of headers that go with each request, a line NAME: VALUE each; read again after a failure")
	f.StringVar(&o.otlpCompress, "otlp-compression", "gzip", "gzip or none")
	f.BoolVar(&o.otlpFlows, "otlp-flows", true, "send flows, as log records")
	f.StringArrayVar(&o.otlpFilter, "otlp-flow-filter", nil, "which, as for --flow-export-file-filter; repeatable (default: all)")
	f.StringSliceVar(&o.otlpFields, "otlp-flow-fields", nil, "attributes of flows that are sent, or what their names begin with, and body, e.g. weir.verdict,source.k8s (default: all)")
	f.BoolVar(&o.otlpMetrics, "otlp-metrics", true, "send metrics, those of --metrics-listen")
	f.DurationVar(&o.otlpInterval, "otlp-metrics-interval", time.Minute, "how often")
}

func (o *exportOptions) check() error {
	if err := o.checkOTLP(); err != nil {
		return err
	}
	if o.queue < 1 {
		return usage("--flow-export-queue %d must be above 0", o.queue)
	}
	if o.file != "" && !filepath.IsAbs(o.file) {
		return usage("--flow-export-file %q must be an absolute path", o.file)
	}
	if o.fileSize < 0 || o.fileKeep < 0 || o.fileAge < 0 {
		return usage("--flow-export-file-size, -keep and -age must not be below 0")
	}
	var err error
	if o.fileWants, err = exportFilter(o.fileFilter); err != nil {
		return usage("--flow-export-file-filter: %w", err)
	}
	if o.fileOf, err = jsonfile.ParseFields(o.fileFields); err != nil {
		return usage("--flow-export-file-fields: %w", err)
	}
	return nil
}

func (o *exportOptions) checkOTLP() error {
	if o.otlpProtocol != otlp.GRPC && o.otlpProtocol != otlp.HTTP {
		return usage("--otlp-protocol %q is neither grpc nor http", o.otlpProtocol)
	}
	if o.otlpCompress != "gzip" && o.otlpCompress != "none" {
		return usage("--otlp-compression %q is neither gzip nor none", o.otlpCompress)
	}
	if (o.otlpCert == "") != (o.otlpKey == "") {
		return usage("--otlp-tls-cert and --otlp-tls-key need each other")
	}
	if o.otlpInterval < time.Second {
		return usage("--otlp-metrics-interval %s must be a second or more", o.otlpInterval)
	}
	var err error
	if o.otlpWants, err = exportFilter(o.otlpFilter); err != nil {
		return usage("--otlp-flow-filter: %w", err)
	}
	if o.otlpOf, err = otlp.ParseFields(o.otlpFields); err != nil {
		return usage("--otlp-flow-fields: %w", err)
	}
	if o.otlp == "" {
		return nil
	}
	if o.otlpURL, err = otlp.ParseEndpoint(o.otlp, o.otlpProtocol); err != nil {
		return usage("--otlp-endpoint: %w", err)
	}
	if o.otlpURL.Scheme == "http" && o.otlpCA+o.otlpCert != "" {
		return usage("--otlp-endpoint %q is without TLS: certificates need https", o.otlp)
	}
	return nil
}

// exportFilter is one filter of NAME=VALUE texts: values of one name are alternatives.
func exportFilter(texts []string) (flowlog.Filter, error) {
	v := url.Values{}
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || value == "" {
			return flowlog.Filter{}, fmt.Errorf("%q is not NAME=VALUE, such as verdict=dropped", text)
		}
		switch name {
		case "follow", "new", "since", "until", "last":
			return flowlog.Filter{}, fmt.Errorf("%s has no meaning here: all that comes is exported", name)
		}
		v.Add(name, value)
	}
	q, err := api.ParseFlowQuery(v)
	if err != nil {
		return flowlog.Filter{}, err
	}
	return new(flowlog.Log).QueryFilter(q)
}

// exports are who gets what the node knows.
type exports []exporter

type exporter interface {
	Run(context.Context)
	Status() api.ExportStatus
}

func (o *exportOptions) flows(log *flowlog.Log, node string, to *slog.Logger) exports {
	var out exports
	if log.Off() != nil {
		return nil
	}
	if o.file != "" {
		out = append(out, flowexport.New(log, flowexport.Config{
			Name: "file", Where: o.file, Filter: o.fileWants, Queue: o.queue, Log: to,
			Target: jsonfile.New(jsonfile.Options{
				Path: o.file, Size: int64(o.fileSize) << 20, Keep: o.fileKeep, Age: o.fileAge, Fields: o.fileOf,
			}, log),
		}))
	}
	if o.otlpURL != nil && o.otlpFlows {
		otlp.SetLog(to)
		out = append(out, flowexport.New(log, flowexport.Config{
			Name: "otlp", Where: o.otlpURL.String(), Filter: o.otlpWants, Queue: o.queue, Log: to, Linger: time.Second,
			Target: otlp.NewLogs(o.collector(node)),
		}))
	}
	return out
}

func (o *exportOptions) metrics(from *export.Metrics, node string, to *slog.Logger) exports {
	if o.otlpURL == nil || !o.otlpMetrics {
		return nil
	}
	otlp.SetLog(to)
	return exports{otlp.NewMetrics(o.collector(node), from.Gatherer(), o.otlpInterval, to)}
}

func (o *exportOptions) collector(node string) otlp.Options {
	return otlp.Options{
		Endpoint: o.otlpURL, Protocol: o.otlpProtocol, CA: o.otlpCA, Cert: o.otlpCert, Key: o.otlpKey,
		HeadersFile: o.otlpHeaders, Gzip: o.otlpCompress == "gzip", Fields: o.otlpOf, Node: node, Version: build.Read().String(),
	}
}

// run exports until ctx or the log is over.
func (x exports) run(ctx context.Context) {
	var all sync.WaitGroup
	for _, e := range x {
		all.Go(func() { e.Run(ctx) })
	}
	all.Wait()
}

// exportFlags say where each was asked for.
var exportFlags = map[string]string{"file": "--flow-export-file", "otlp": "--otlp-endpoint", "otlp-metrics": "--otlp-endpoint"}

// add completes a status.
func (x exports) add(s *api.Status) {
	for _, e := range x {
		status := e.Status()
		s.Exports = append(s.Exports, status)
		if status.Error != "" {
			s.Warnings = append(s.Warnings, fmt.Sprintf("export %s (%s): %s takes nothing since %s: %s", status.Export, exportFlags[status.Export], status.Target, status.Since.UTC().Format(time.RFC3339), status.Error))
		}
	}
}
