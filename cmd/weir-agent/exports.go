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
	"github.com/weirnet/weir/controlplane/flowexport"
	"github.com/weirnet/weir/controlplane/flowexport/jsonfile"
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

	// Of the above, checked.
	fileWants   flowlog.Filter
	fileFieldsM jsonfile.Fields
}

func (o *exportOptions) flags(f *pflag.FlagSet) {
	f.IntVar(&o.queue, "flow-export-queue", flowexport.QueueSize, "flows that wait for an export's target at most; more are lost to it, and counted")
	f.StringVar(&o.file, "flow-export-file", "", "file to write flows to, one JSON message a line as weir flows -o json has them (docs/export.md)")
	f.IntVar(&o.fileSize, "flow-export-file-size", 100, "MiB at which that file is put aside and another begun; 0 = never")
	f.IntVar(&o.fileKeep, "flow-export-file-keep", 5, "files put aside that are kept; 0 = all")
	f.DurationVar(&o.fileAge, "flow-export-file-age", 0, "how long files put aside are kept; 0 = until there are newer ones")
	f.StringArrayVar(&o.fileFilter, "flow-export-file-filter", nil, "which flows go to the file, as NAME=VALUE of a filter of weir flows, e.g. verdict=dropped; repeatable (default: all)")
	f.StringSliceVar(&o.fileFields, "flow-export-file-fields", nil, "fields of flows that are written, as Hubble names them, e.g. verdict,source.pod_name (default: all)")
}

func (o *exportOptions) check() error {
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
	if o.fileFieldsM, err = jsonfile.ParseFields(o.fileFields); err != nil {
		return usage("--flow-export-file-fields: %w", err)
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
		case "follow", "new", "since", "last":
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

// exports are the node's exporters.
type exports []*flowexport.Exporter

func (o *exportOptions) open(flows *flowlog.Log, log *slog.Logger) exports {
	var out exports
	if o.file != "" {
		out = append(out, flowexport.New(flows, flowexport.Config{
			Name: "file", Where: o.file, Filter: o.fileWants, Queue: o.queue, Log: log,
			Target: jsonfile.New(jsonfile.Options{
				Path: o.file, Size: int64(o.fileSize) << 20, Keep: o.fileKeep, Age: o.fileAge, Fields: o.fileFieldsM,
			}, flows),
		}))
	}
	return out
}

// run exports until ctx or the log is over.
func (x exports) run(ctx context.Context) {
	var all sync.WaitGroup
	for _, e := range x {
		all.Go(func() { e.Run(ctx) })
	}
	all.Wait()
}

// add completes a status.
func (x exports) add(s *api.Status) {
	for _, e := range x {
		status := e.Status()
		s.Exports = append(s.Exports, status)
		if status.Error != "" {
			s.Warnings = append(s.Warnings, fmt.Sprintf("flows are not exported to %s since %s: %s", status.Target, status.Since.UTC().Format(time.RFC3339), status.Error))
		}
	}
}
