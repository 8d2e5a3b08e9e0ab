package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/spf13/cobra"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

const (
	outputCompact = "compact"
	outputDict    = "dict"
)

// newest is how many flows are shown when nothing else bounds them.
const newest = 20

// flowFilters are the flags that go to the agent as they are.
var flowFilters = []struct{ name, usage string }{
	{"verdict", "forwarded or dropped"},
	{"kind", "new, ended, revoked or denied"},
	{"pod", "NAMESPACE/NAME of either end, or NAMESPACE/ for all of it"},
	{"address", "address or CIDR of either end"},
	{"policy", "NAMESPACE/NAME of a policy that allowed, denied or isolated"},
	{"protocol", "tcp, udp, sctp, icmp, icmpv4, icmpv6 or a number"},
	{"port", "port of either end"},
	{"direction", "egress or ingress: judged on that side by this node"},
	{"reason", "why it was dropped, as 'weir status' says it"},
}

func (a *app) flows() *cobra.Command {
	var follow bool
	var since time.Duration
	var last int
	filters := make([][]string, len(flowFilters))
	c := a.verb(&cobra.Command{
		Use:   "flows",
		Short: "The flows this node let through or stopped, and the rule that decided",
		Long: fmt.Sprintf(`The flows this node let through or stopped, and the rule that decided, oldest first.

Without --since and --last: the newest %d. --since bounds how old they may be, --last takes the newest
of those (0: none, only what follows). -f goes on with new ones until interrupted. A filter given twice
takes either value; different filters must all fit. -o json is one Hubble GetFlowsResponse a line.`, newest),
		RunE: func(c *cobra.Command, _ []string) error {
			v := url.Values{}
			for i, f := range flowFilters {
				if len(filters[i]) > 0 {
					v[f.name] = filters[i]
				}
			}
			q, err := api.ParseFlowQuery(v)
			if err != nil {
				return usage("--%w", err)
			}
			q.Follow, q.Since, q.Last = follow, since, last
			changed := func(name string) bool { return c.Flags().Changed(name) }
			if err := bound(&q, changed("since"), changed("last")); err != nil {
				return err
			}
			return a.showFlows(c.Context(), q)
		},
	}, outputCompact, outputJSON, outputDict)
	f := c.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on with new ones until interrupted")
	f.DurationVar(&since, "since", 0, "not older than, such as 30s or 5m")
	f.IntVar(&last, "last", newest, "the newest so many")
	for i, filter := range flowFilters {
		f.StringArrayVar(&filters[i], filter.name, nil, filter.usage)
	}
	a.complete(c, "pod", a.podNames)
	a.complete(c, "policy", a.policyNames)
	return c
}

// bound sets how many records are asked for.
func bound(q *api.FlowQuery, since, last bool) error {
	switch {
	case since && q.Since <= 0:
		return usage("--since: %s is not above 0", q.Since)
	case last && q.Last < 0:
		return usage("--last: %d is below 0", q.Last)
	case last && q.Last == 0:
		q.New = true
	case since && !last:
		q.Last = 0
	}
	return nil
}

func (a *app) showFlows(ctx context.Context, q api.FlowQuery) error {
	text, shown := a.flowText(), 0
	err := a.client().Flows(ctx, q.Values(), func(line []byte) error {
		shown++
		text, err := text(line)
		if err != nil {
			return err
		}
		return a.print(text)
	})
	switch {
	case q.Follow && errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return nil // interrupted, as it is meant to end
	case err == nil && q.Follow:
		return errors.New("the agent ended the stream: it stopped")
	case err == nil && shown == 0 && a.width > 0:
		return a.print("No such flow in the log.")
	}
	return err
}

// flowText turns a record's line into what the user asked for.
func (a *app) flowText() func([]byte) (string, error) {
	text := format.Compact
	switch a.output {
	case outputJSON:
		return func(line []byte) (string, error) { return string(format.SafeJSON(line)), nil }
	case outputDict:
		text = func(m *observerpb.GetFlowsResponse, s format.Style) string {
			return format.Dict(m, s) + "\n" + "------------"
		}
	}
	return func(line []byte) (string, error) {
		m, err := format.Parse(line)
		if err != nil {
			return "", err
		}
		return text(m, a.style), nil
	}
}
