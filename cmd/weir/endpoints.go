package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/controlplane/api"
)

func (a *app) endpoints() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "endpoints",
		Short: "The pods attached on this node",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), patience)
			defer cancel()
			list, err := a.client().Endpoints(ctx)
			if err != nil {
				return err
			}
			if a.output == outputJSON {
				return a.json(orEmpty(list))
			}
			return a.endpointTable(list)
		},
	}, outputTable, outputJSON)
}

func (a *app) endpointTable(list []api.Endpoint) error {
	if len(list) == 0 {
		return a.print("No pod is attached on this node.")
	}
	t := table{head: []string{"NUMBER", "POD", "ADDRESSES", "IDENTITY", "INTERFACE", "READY", "INGRESS", "EGRESS"}}
	for _, e := range list {
		ready := "no"
		if e.Ready {
			ready = "yes"
		}
		t.add(fmt.Sprint(e.Number), e.PodNamespace+"/"+e.PodName, orNone(e.Addresses), fmt.Sprint(e.Identity),
			e.HostIfName, ready, isolation(e.Ingress), isolation(e.Egress))
	}
	return a.table(t)
}

func isolation(p api.EndpointPolicy) string {
	switch {
	case p.Ruleset == 0:
		return "closed" // until its policy is enforced
	case !p.Isolated:
		return "open"
	}
	return "isolated by " + strings.Join(p.By, ",")
}

// orEmpty makes an absent list an empty one, for JSON.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
