package main

import (
	"github.com/spf13/cobra"

	"github.com/weirnet/weir/controlplane/build"
)

func (a *app) version() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "version",
		Short: "The version of this command (status has the agent's)",
		RunE: func(*cobra.Command, []string) error {
			b := build.Read()
			if a.output == outputJSON {
				return a.json(b)
			}
			return a.print("weir " + b.String() + ", " + b.Go)
		},
	}, outputTable, outputJSON)
}
