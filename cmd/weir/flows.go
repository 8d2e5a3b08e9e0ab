package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

const (
	outputCompact = "compact"
	outputWide    = "wide"
	outputDict    = "dict"
)

var flowOutputs = []string{outputCompact, outputWide, outputJSON, outputDict}

// newest is how many flows are shown when nothing else bounds them.
const newest = 20

// filterUsage is what flags of filters say of themselves; those of one end are made of it.
var filterUsage = map[string]string{
	"verdict":   "forwarded or dropped",
	"kind":      "new, update, ended, revoked or denied",
	"policy":    "NAMESPACE/NAME of a policy that allowed, denied or isolated",
	"protocol":  "tcp, udp, sctp, icmp, icmpv4, icmpv6 or a number",
	"direction": "egress or ingress: judged on that side by this node",
	"reason":    "why it was dropped, as 'weir status' says it",
	"pod":       "NAMESPACE/NAME, or NAMESPACE/ for all of it",
	"namespace": "namespace of a pod",
	"label":     "label selector, such as app=web or 'tier in (a, b)'",
	"workload":  "NAME or KIND/NAME, such as Deployment/web",
	"service":   "NAMESPACE/NAME of the Service whose address it is, or that the pod had asked for",
	"identity":  "identity number ('weir identities' lists them)",
	"address":   "address or CIDR",
	"port":      "port",
	"process":   "name, path, container id or pid of the process whose socket it is",
}

// flowFlags are the flags of `weir flows`.
type flowFlags struct {
	follow       bool
	since, until string
	last         int
	top, by      string

	filters url.Values
	not     bool // the next filter is of what is left out
}

// filterFlag is a filter as a flag: where --not comes before it, what it fits is left out.
type filterFlag struct {
	flags *flowFlags
	name  string
}

func (f filterFlag) String() string { return "" }
func (f filterFlag) Type() string   { return "value" }

// Set implements pflag.Value.
func (f filterFlag) Set(value string) error {
	name := f.name
	if f.flags.not {
		name, f.flags.not = api.Not+name, false
	}
	f.flags.filters.Add(name, value)
	return nil
}

// notFlag turns the next filter round, as in Hubble's client.
type notFlag struct{ flags *flowFlags }

func (f notFlag) String() string   { return "false" }
func (f notFlag) Type() string     { return "bool" }
func (f notFlag) IsBoolFlag() bool { return true }

// Set implements pflag.Value.
func (f notFlag) Set(value string) error {
	v, err := strconv.ParseBool(value)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", value)
	}
	f.flags.not = v
	return nil
}

func (f *flowFlags) add(to *pflag.FlagSet) {
	f.filters = url.Values{}
	to.BoolVarP(&f.follow, "follow", "f", false, "go on with new ones until interrupted")
	to.StringVar(&f.since, "since", "", "not older than: a duration such as 30s or 2h, or a time such as 2026-11-24T12:00:00Z, 2026-11-24 or 15:04 (the last time it was that)")
	to.StringVar(&f.until, "until", "", "not newer than, likewise")
	to.IntVar(&f.last, "last", newest, "the newest so many")
	to.StringVar(&f.top, "top", "", "a table of who there is most of, by "+strings.Join(topKeys, ", "))
	to.StringVar(&f.by, "by", byFlows, "what --top counts: "+strings.Join(topCounts, ", "))
	to.Var(notFlag{f}, "not", "the next filter is of what is left out, as in --not --pod shop/web")
	to.Lookup("not").NoOptDefVal = "true"
	for _, name := range api.FlowFilters() {
		to.Var(filterFlag{f, name}, name, f.usage(name))
	}
	for alias, name := range map[string]string{"ip": "address", "from-ip": "from-address", "to-ip": "to-address"} {
		to.Var(filterFlag{f, name}, alias, "the same as --"+name)
		to.Lookup(alias).Hidden = true
	}
}

func (f *flowFlags) usage(name string) string {
	text, end := filterUsage[name], "either end"
	if text == "" {
		var of string
		if of, end = strings.TrimPrefix(name, api.FromEnd), "who began it"; of == name {
			of, end = strings.TrimPrefix(name, api.ToEnd), "the other end"
		}
		text = filterUsage[of]
	} else if filterUsage[name] != "" && !slices.Contains(api.FlowFilters(), api.FromEnd+name) {
		return text
	}
	return text + ", of " + end
}

// query is what the flags ask for.
func (f *flowFlags) query(changed func(string) bool, now time.Time) (q api.FlowQuery, err error) {
	if f.not {
		return q, usage("--not: no filter follows it")
	}
	if q, err = api.ParseFlowQuery(f.filters); err != nil {
		return q, usage("--%s", strings.Replace(err.Error(), api.Not, "not --", 1))
	}
	q.Follow, q.Last = f.follow, f.last
	if q.Since, err = ago(f.since, now); err != nil {
		return q, usage("--since: %w", err)
	}
	if q.Until, err = ago(f.until, now); err != nil {
		return q, usage("--until: %w", err)
	}
	since, last := changed("since"), changed("last")
	switch {
	case q.Since > 0 && q.Until >= q.Since:
		return q, usage("--until: %s is before --since %s: nothing is in that range", dated(f.until, q.Until, now), dated(f.since, q.Since, now))
	case q.Follow && q.Until > 0:
		return q, usage("--until: it has passed, there is nothing to follow")
	case last && q.Last < 0:
		return q, usage("--last: %d is below 0", q.Last)
	case last && q.Last == 0:
		q.New = true
	case !last && (since || f.top != ""):
		q.Last = 0
	}
	return q, f.checkTop(changed)
}

// dated adds the day to a time that was given without one.
func dated(text string, ago time.Duration, now time.Time) string {
	for _, layout := range []string{time.TimeOnly, "15:04"} {
		if _, err := time.Parse(layout, text); err == nil {
			return now.Add(-ago).Format("Jan _2 " + layout)
		}
	}
	return text
}

// ago is how long ago a duration or a time says; "" = 0.
func ago(text string, now time.Time) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		if d <= 0 {
			return 0, fmt.Errorf("%s is not above 0", text)
		}
		return d, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly, time.TimeOnly, "15:04"} {
		at, err := time.ParseInLocation(layout, text, now.Location())
		if err != nil {
			continue
		}
		if at.Year() == 0 { // when it was that time last
			today := time.Date(now.Year(), now.Month(), now.Day(), at.Hour(), at.Minute(), at.Second(), 0, now.Location())
			if at = today; !at.Before(now) {
				at = today.AddDate(0, 0, -1)
			}
		}
		if !at.Before(now) {
			return 0, fmt.Errorf("%s is not in the past", text)
		}
		return now.Sub(at), nil
	}
	return 0, fmt.Errorf("%q is neither a duration such as 30s, 5m or 2h nor a time such as 2026-11-24T12:00:00Z, 2026-11-24 or 15:04", text)
}

const flowsHelp = `The flows this node let through or stopped, and the rule that decided, oldest first; what was
before the agent started comes from disk (docs/observe.md).

Without --since and --last: the newest %d. --since and --until bound their time, --last takes the newest
of those (0: none, only what follows). -f goes on with new ones until interrupted. A filter given twice
takes either value; different filters must all fit; --not leaves out what the next one fits. A filter
of an end holds at either, --from-... at who began the flow, --to-... at the other.

-o json is one Hubble GetFlowsResponse a line. --top counts instead: on a terminal the table is live
unless --since, --until or --last bound it, elsewhere it is written once.`

func (a *app) flows() *cobra.Command {
	flags := &flowFlags{}
	c := a.verb(&cobra.Command{
		Use:   "flows",
		Short: "The flows this node let through or stopped, and the rule that decided",
		Long:  fmt.Sprintf(flowsHelp, newest),
		Example: `  weir flows -f --verdict dropped
  weir flows --since 2h --to-pod shop/db-0 --not --from-namespace shop
  weir flows --top policy --verdict dropped --by packets`,
		RunE: func(c *cobra.Command, _ []string) error {
			q, err := flags.query(c.Flags().Changed, time.Now())
			if err != nil {
				return err
			}
			if flags.top != "" {
				if a.output == outputDict || a.output == outputWide {
					return usage("--output: --top is a table, or with -o json an object; there is no %s of it", a.output)
				}
				q.Follow = q.Follow || a.width > 0 && a.output != outputJSON && !boundedBy(c.Flags().Changed)
				return a.showTop(c.Context(), flags, q, a.records(q))
			}
			return a.showFlows(c.Context(), q)
		},
	}, flowOutputs...)
	flags.add(c.Flags())
	c.Flags().SortFlags = false
	for _, prefix := range []string{"", api.FromEnd, api.ToEnd} {
		a.complete(c, prefix+"pod", a.podNames)
	}
	a.complete(c, "policy", a.policyNames)
	for name, values := range map[string][]string{"verdict": {"forwarded", "dropped"}, "direction": {"egress", "ingress"}, "top": topKeys, "by": topCounts} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return c
}

func boundedBy(changed func(string) bool) bool {
	return changed("since") || changed("until") || changed("last")
}

func (a *app) showFlows(ctx context.Context, q api.FlowQuery) error {
	show, shown := a.flowPrinter(false), 0
	err := a.askFlows(ctx, q, func(line []byte) error {
		shown++
		return show(line)
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

// askFlows is the client's Flows; a filter that the agent refuses is named as it was given.
func (a *app) askFlows(ctx context.Context, q api.FlowQuery, each func(line []byte) error) error {
	err := a.client().Flows(ctx, q.Values(), each)
	if refused := new(api.Error); errors.As(err, &refused) {
		if name, _, named := strings.Cut(refused.Message, ": "); named && slices.Contains(api.FlowFilters(), name) {
			return usage("--%s", refused.Message)
		}
	}
	return err
}

// flowPrinter writes a record's line as the user asked for; nodes says that records are of several.
func (a *app) flowPrinter(nodes bool) func(line []byte) error {
	if a.output == outputJSON {
		return func(line []byte) error { return a.print(string(format.SafeJSON(line))) }
	}
	wide, begun := &format.Wide{Style: a.style, Width: a.width, Node: nodes}, false
	text := func(m *observerpb.GetFlowsResponse) string {
		switch a.output {
		case outputDict:
			return format.Dict(m, a.style) + "\n" + "------------"
		case outputWide:
			return wide.Line(m)
		}
		if nodes {
			return format.Safe(m.GetNodeName()) + "  " + format.Compact(m, a.style)
		}
		return format.Compact(m, a.style)
	}
	return func(line []byte) error {
		m, err := format.Parse(line)
		if err != nil {
			return err
		}
		if a.output == outputWide && !begun {
			begun = true
			if err := a.print(wide.Head()); err != nil {
				return err
			}
		}
		return a.print(text(m))
	}
}
