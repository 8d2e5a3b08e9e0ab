package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// complete makes the shell ask names for a flag's values.
func (a *app) complete(c *cobra.Command, flag string, names func(context.Context) []string) {
	_ = c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return names(ctx), cobra.ShellCompDirectiveNoFileComp
	})
}

func (a *app) podNames(ctx context.Context) []string {
	list, _ := a.client().Endpoints(ctx)
	var out []string
	for _, e := range list {
		out = append(out, e.PodNamespace+"/"+e.PodName)
	}
	slices.Sort(out)
	return out
}

func (a *app) policyNames(ctx context.Context) []string {
	list, _ := a.client().Policies(ctx)
	var out []string
	for _, p := range list {
		out = append(out, p.Namespace+"/"+p.Name)
	}
	slices.Sort(out)
	return out
}
