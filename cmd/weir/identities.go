package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) identities() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "identities",
		Short: "The identities that policy tells apart, and their numbers on this node",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), patience)
			defer cancel()
			list, err := a.client().Identities(ctx)
			if err != nil {
				return err
			}
			if a.output == outputJSON {
				return a.json(orEmpty(list))
			}
			t := table{head: []string{"NUMBER", "KIND", "NAME", "PODS", "LABELS"}}
			for _, i := range list {
				t.add(fmt.Sprint(i.Number), i.Kind, i.Name, fmt.Sprint(i.Pods), orNone(i.Labels))
			}
			return a.table(t)
		},
	}, outputTable, outputJSON)
}
