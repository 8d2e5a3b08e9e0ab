package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) policy() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Network policies: list them, explain a verdict", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(a.policyList(), a.policyExplain())
	return c
}

func (a *app) policyList() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "list",
		Short: "The policies as they are enforced",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), patience)
			defer cancel()
			list, err := a.client().Policies(ctx)
			switch {
			case err != nil:
				return err
			case a.output == outputJSON:
				return a.json(orEmpty(list))
			case len(list) == 0:
				return a.print("No policy is enforced: every pod may talk to every other.")
			}
			t := table{head: []string{"POLICY", "KIND", "TYPES", "SELECTS", "INGRESS RULES", "EGRESS RULES", "REVISION", "ENFORCED"}}
			for _, p := range list {
				t.add(p.Namespace+"/"+p.Name, p.Kind, orNone(p.Types), plural(p.Selects, "pod", "pods"),
					fmt.Sprint(p.Ingress), fmt.Sprint(p.Egress), fmt.Sprint(p.Revision), p.Enforced)
			}
			return a.table(t)
		},
	}, outputTable, outputJSON)
}
