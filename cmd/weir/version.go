package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build is what this binary was made from.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Time     string `json:"time,omitempty"`     // of that revision
	Modified bool   `json:"modified,omitempty"` // the source had changes on top of it
	Go       string `json:"go"`
}

func (a *app) version() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "version",
		Short: "The version of this command (status has the agent's)",
		RunE: func(*cobra.Command, []string) error {
			b := readBuild()
			if a.output == outputJSON {
				return a.json(b)
			}
			line := "weir " + b.Version
			if b.Revision != "" {
				line += " (" + b.Revision[:min(12, len(b.Revision))] + ")"
			}
			return a.print(line + ", " + b.Go)
		},
	}, outputTable, outputJSON)
}

func readBuild() build {
	b := build{Version: "unknown", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}
