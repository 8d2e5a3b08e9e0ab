package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

// question is what explain is asked.
type question struct {
	from, to, port string
	family         int
}

func (a *app) policyExplain() *cobra.Command {
	var q question
	c := a.verb(&cobra.Command{
		Use:   "explain --from END --to END --port PORT",
		Short: "Why a connection is allowed or denied",
		Long: `Why a connection is allowed or denied: which policies isolate its pods, which rules allow it,
and which nearly do. An END is NAMESPACE/POD or an address; a PORT is 80/tcp, 53/udp, 5000/sctp, icmp or icmpv6.
The exit status is 0 whatever the verdict.`,
		Example: "  weir policy explain --from shop/web-1 --to shop/db-0 --port 6379/tcp",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := q.check(); err != nil {
				return err
			}
			return a.explain(c.Context(), q)
		},
	}, outputTable, outputJSON)
	c.Flags().StringVar(&q.from, "from", "", "who begins it: NAMESPACE/POD or an address")
	c.Flags().StringVar(&q.to, "to", "", "who is meant: NAMESPACE/POD or an address")
	c.Flags().StringVar(&q.port, "port", "", "port at the receiver: NUMBER/PROTOCOL")
	c.Flags().IntVar(&q.family, "family", 0, "4 or 6 (default: IPv4 where both ends have it)")
	a.complete(c, "from", a.podNames)
	a.complete(c, "to", a.podNames)
	return c
}

func (q question) check() error {
	for _, end := range []struct{ flag, value string }{{"--from", q.from}, {"--to", q.to}} {
		if err := checkEnd(end.value); err != nil {
			return usage("%s: %w", end.flag, err)
		}
	}
	if !isPort(q.port) {
		return usage("--port: %q is not a port such as 80/tcp, 53/udp, 5000/sctp, nor icmp or icmpv6", q.port)
	}
	if q.family != 0 && q.family != 4 && q.family != 6 {
		return usage("--family: %d is neither 4 nor 6", q.family)
	}
	return nil
}

func checkEnd(s string) error {
	if s == "" {
		return fmt.Errorf("missing: say NAMESPACE/POD or an address")
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if ns, name, ok := strings.Cut(s, "/"); ok && ns != "" && name != "" && !strings.Contains(name, "/") {
		return nil
	}
	return fmt.Errorf("%q is neither NAMESPACE/POD nor an address", s)
}

func isPort(s string) bool {
	number, protocol, slash := strings.Cut(strings.ToLower(s), "/")
	n, err := strconv.ParseUint(number, 10, 16)
	switch {
	case number == "icmp" || number == "icmpv6":
		return !slash
	case !slash:
		protocol = "tcp"
	}
	switch protocol {
	case "tcp", "udp", "sctp":
		return err == nil && n > 0
	case "ip":
		return err == nil && n < 256
	}
	return false
}

func (a *app) explain(ctx context.Context, q question) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	e, err := a.client().Explain(ctx, q.from, q.to, q.port, q.family)
	switch {
	case err != nil:
		return err
	case a.output == outputJSON:
		return a.json(e)
	}
	lines := []string{fmt.Sprintf("%s -> %s port %s, IPv%d: %s", format.Safe(q.from), format.Safe(q.to), format.Safe(q.port), e.Family, a.verdict(e.Verdict))}
	lines = append(lines, a.side("egress", q.from, e.Egress)...)
	lines = append(lines, a.side("ingress", q.to, e.Ingress)...)
	if len(e.LastGood) > 0 {
		lines = append(lines, "")
	}
	for _, r := range e.LastGood {
		lines = append(lines, a.style.Warn(format.Safe(r.Namespace+"/"+r.Name)+" is enforced in its last good version: see weir status"))
	}
	if e.Note != "" {
		lines = append(lines, "", a.style.Warn(format.Safe(e.Note)))
	}
	return a.print(lines...)
}

const forwarded = "FORWARDED"

func (a *app) verdict(v string) string {
	if v == forwarded {
		return a.style.Good(v)
	}
	return a.style.Bad(format.Safe(v))
}

// side tells one direction's part.
func (a *app) side(direction, end string, s *api.Side) []string {
	head := fmt.Sprintf("\n%s of %s: ", direction, format.Safe(end))
	if s == nil {
		return []string{head + "not judged, it is no pod of ours"}
	}
	lines := []string{head + a.verdict(s.Verdict)}
	if len(s.IsolatedBy) > 0 {
		lines = append(lines, "  isolated by "+refs(s.IsolatedBy))
	}
	switch {
	case s.Verdict != forwarded:
		return append(lines, misses(s.NearMisses, direction)...)
	case len(s.IsolatedBy) == 0 && len(s.Rules) == 0:
		return append(lines, "  not isolated: no policy selects the pod for "+direction)
	}
	for _, r := range s.Rules {
		lines = append(lines, "  allowed by "+ruleText(r, direction))
	}
	return lines
}

func misses(near []api.NearMiss, direction string) []string {
	if len(near) == 0 {
		return []string{"  and none of those policies has a rule for it"}
	}
	lines := []string{"  and no rule allows it; the nearest:"}
	for _, m := range near {
		lines = append(lines, "    "+ruleText(m.RuleRef, direction)+": "+format.Safe(m.Reason))
	}
	return lines
}

func refs(list []api.Ref) string {
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = format.Safe(r.Namespace + "/" + r.Name)
	}
	return strings.Join(names, ", ")
}

// ruleWords say rules that belong to no policy.
var ruleWords = map[string]string{
	"not-isolated": "default: not isolated",
	"node":         "rule: the node reaches its own pods",
	"node-egress":  "rule: a pod reaches its own node (--node-egress=allow)",
	"self":         "rule: a pod reaches itself",
}

func ruleText(r api.RuleRef, direction string) string {
	if r.Name != "" {
		return format.Safe(fmt.Sprintf("%s/%s %s[%d]", r.Namespace, r.Name, direction, r.Index))
	}
	if words, ok := ruleWords[r.Kind]; ok {
		return words
	}
	return format.Safe(r.Kind)
}
