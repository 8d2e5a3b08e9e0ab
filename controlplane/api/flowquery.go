package api

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirnet/weir/datapath"
)

// FlowQuery asks for flow records. The zero value means all that the log still holds.
// Values of one field are alternatives, fields must all match.
type FlowQuery struct {
	Follow bool          // go on with new ones; the answer ends when the log or the client does
	Since  time.Duration // not older; 0 = no bound
	Until  time.Duration // not newer; 0 = no bound
	Last   int           // the newest so many of those, oldest first; 0 = no bound
	New    bool          // none of those the log holds, only what comes (Last is ignored)

	Verdicts []string // forwarded, dropped
	Kinds    []string // new, update, ended, revoked, denied
	FlowEnd           // either end
	From, To FlowEnd  // who began it (of a denial: its sender); the other

	Policies   []string // namespace/name: a policy that allowed, denied or isolated
	Protocols  []string // tcp, udp, sctp, icmp (4 and 6), icmpv4, icmpv6, or a number
	Directions []string // egress, ingress: judged on that side by this node
	Reasons    []string // of drops, as FlowExtension.Reason says them

	// Not has filters by the name of their parameter: a record that one of them fits is
	// left out.
	Not map[string][]string
}

// FlowEnd is filters of an end of a flow.
type FlowEnd struct {
	Pods       []string // namespace/name, or namespace/ for all of it
	Namespaces []string // of its pod
	Labels     []string // label selector, as in app=web,tier!=db or k8s:app in (a, b) or reserved:world
	Workloads  []string // name or kind/name
	Services   []string // namespace/name, or namespace/ for all of it: whose address it is
	Identities []string // number
	Addresses  []string // address or CIDR
	Ports      []string // number
	Processes  []string // name, path of the executable, container id or pid: whose socket it is
}

// A flowParameter is a filter of a FlowQuery by its name in requests and on the command
// line.
type flowParameter struct {
	name  string
	of    func(*FlowQuery) *[]string
	check func(string) error
}

// endParameters are the filters of an end, by their names without from- and to-.
var endParameters = []struct {
	name  string
	of    func(*FlowEnd) *[]string
	check func(string) error
}{
	{"pod", func(e *FlowEnd) *[]string { return &e.Pods }, checkPod},
	{"namespace", func(e *FlowEnd) *[]string { return &e.Namespaces }, checkName},
	{"label", func(e *FlowEnd) *[]string { return &e.Labels }, checkNotEmpty},
	{"workload", func(e *FlowEnd) *[]string { return &e.Workloads }, checkWorkload},
	{"service", func(e *FlowEnd) *[]string { return &e.Services }, checkPod},
	{"identity", func(e *FlowEnd) *[]string { return &e.Identities }, checkIdentity},
	{"address", func(e *FlowEnd) *[]string { return &e.Addresses }, checkAddress},
	{"port", func(e *FlowEnd) *[]string { return &e.Ports }, checkPort},
	{"process", func(e *FlowEnd) *[]string { return &e.Processes }, checkNotEmpty},
}

var flowParameters = func() []flowParameter {
	all := []flowParameter{
		{"verdict", func(q *FlowQuery) *[]string { return &q.Verdicts }, oneOf("forwarded", "dropped")},
		{"kind", func(q *FlowQuery) *[]string { return &q.Kinds }, oneOf(FlowNew, FlowUpdate, FlowEnded, FlowRevoked, FlowDenied)},
		{"policy", func(q *FlowQuery) *[]string { return &q.Policies }, checkPolicy},
		{"protocol", func(q *FlowQuery) *[]string { return &q.Protocols }, checkProtocol},
		{"direction", func(q *FlowQuery) *[]string { return &q.Directions }, oneOf("egress", "ingress")},
		{"reason", func(q *FlowQuery) *[]string { return &q.Reasons }, checkReason},
	}
	for _, p := range endParameters {
		all = append(all,
			flowParameter{p.name, func(q *FlowQuery) *[]string { return p.of(&q.FlowEnd) }, p.check},
			flowParameter{FromEnd + p.name, func(q *FlowQuery) *[]string { return p.of(&q.From) }, p.check},
			flowParameter{ToEnd + p.name, func(q *FlowQuery) *[]string { return p.of(&q.To) }, p.check})
	}
	return all
}()

// Prefixes of parameters: of an end alone, and of what is left out.
const (
	FromEnd = "from-"
	ToEnd   = "to-"
	Not     = "not-"
)

// FlowFilters are the names of the filters, in the order they are listed in.
func FlowFilters() []string {
	names := make([]string, len(flowParameters))
	for i, p := range flowParameters {
		names[i] = p.name
	}
	return names
}

// FlowFilter is a filter of a query: one of its values has to fit.
type FlowFilter struct {
	Name   string
	Values []string
	Not    bool // or none
}

// Filters are those that q sets.
func (q *FlowQuery) Filters() []FlowFilter {
	var out []FlowFilter
	for _, p := range flowParameters {
		if values := *p.of(q); len(values) > 0 {
			out = append(out, FlowFilter{Name: p.name, Values: values})
		}
		if values := q.Not[p.name]; len(values) > 0 {
			out = append(out, FlowFilter{Name: p.name, Values: values, Not: true})
		}
	}
	return out
}

// ParseFlowQuery reads a request's parameters: follow=1, new=1, since=5m, until=1m, last=20,
// and the filters, each repeatable, each also as not-NAME. An error names the parameter and says what is allowed.
func ParseFlowQuery(v url.Values) (FlowQuery, error) {
	var q FlowQuery
	for _, name := range sortedKeys(v) {
		if err := q.set(name, v[name]); err != nil {
			return FlowQuery{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	if q.Since > 0 && q.Until >= q.Since {
		return FlowQuery{}, fmt.Errorf("until: %s ago is before since, %s ago: no record is in that range", q.Until, q.Since)
	}
	if err := q.impossible(); err != nil {
		return FlowQuery{}, err
	}
	return q, nil
}

// impossible says which filters no record can fit together.
func (q *FlowQuery) impossible() error {
	for _, p := range flowParameters {
		values, not := *p.of(q), q.Not[p.name]
		if len(values) > 0 && within(values, not) {
			return fmt.Errorf("%s: what is asked for is left out, too: no record can match", p.name)
		}
	}
	forwarded, dropped := within(q.Verdicts, []string{"forwarded"}), within(q.Verdicts, []string{"dropped"})
	switch {
	case forwarded && len(q.Reasons) > 0:
		return fmt.Errorf("reason: what is forwarded has none: no record can match")
	case forwarded && within(q.Kinds, []string{FlowDenied, FlowRevoked}):
		return fmt.Errorf("kind: what is %s is dropped, not forwarded: no record can match", strings.Join(q.Kinds, " or "))
	case dropped && within(q.Kinds, []string{FlowNew}):
		return fmt.Errorf("kind: what is new is forwarded, not dropped: no record can match")
	case within(q.Protocols, []string{"icmp", "icmpv4", "icmpv6", "1", "58"}) && len(q.Ports)+len(q.From.Ports)+len(q.To.Ports) > 0:
		return fmt.Errorf("port: %s has none: no record can match", strings.Join(q.Protocols, " or "))
	}
	for prefix, e := range map[string]*FlowEnd{FromEnd: &q.From, ToEnd: &q.To} {
		if len(e.Namespaces) > 0 && len(e.Pods) > 0 && !slices.ContainsFunc(e.Pods, func(pod string) bool {
			ns, _, _ := strings.Cut(pod, "/")
			return slices.Contains(e.Namespaces, ns)
		}) {
			return fmt.Errorf("%snamespace: %s is not of %s: no record can match", prefix, strings.Join(e.Pods, " or "), strings.Join(e.Namespaces, " or "))
		}
	}
	return nil
}

// within reports whether there are values, and all of them are of a set.
func within(values, of []string) bool {
	return len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool { return !slices.Contains(of, strings.ToLower(v)) && !slices.Contains(of, v) })
}

func (q *FlowQuery) set(name string, values []string) error {
	last := values[len(values)-1]
	switch name {
	case "follow":
		return setBool(&q.Follow, last)
	case "new":
		return setBool(&q.New, last)
	case "since":
		return setDuration(&q.Since, last)
	case "until":
		return setDuration(&q.Until, last)
	case "last":
		n, err := strconv.Atoi(last)
		if err != nil || n <= 0 {
			return fmt.Errorf("%q is not a number above 0", last)
		}
		q.Last = n
		return nil
	}
	filter, not := strings.CutPrefix(name, Not)
	for _, p := range flowParameters {
		if p.name == filter {
			return q.add(p, values, not)
		}
	}
	return fmt.Errorf("no such parameter")
}

func (q *FlowQuery) add(p flowParameter, values []string, not bool) error {
	for _, v := range values {
		if err := p.check(v); err != nil {
			return err
		}
	}
	if not {
		if q.Not == nil {
			q.Not = map[string][]string{}
		}
		q.Not[p.name] = append(q.Not[p.name], values...)
		return nil
	}
	*p.of(q) = append(*p.of(q), values...)
	return nil
}

func setDuration(to *time.Duration, s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is not a duration such as 30s, 5m or 2h", s)
	}
	*to = d
	return nil
}

// Values is the query as request parameters.
func (q FlowQuery) Values() url.Values {
	v := url.Values{}
	if q.Follow {
		v.Set("follow", "1")
	}
	if q.New {
		v.Set("new", "1")
	}
	if q.Since > 0 {
		v.Set("since", q.Since.String())
	}
	if q.Last > 0 {
		v.Set("last", strconv.Itoa(q.Last))
	}
	if q.Until > 0 {
		v.Set("until", q.Until.String())
	}
	for _, f := range q.Filters() {
		if f.Not {
			f.Name = Not + f.Name
		}
		v[f.Name] = append(v[f.Name], f.Values...)
	}
	return v
}

func sortedKeys(v url.Values) []string {
	keys := make([]string, 0, len(v))
	for k := range v {
		if len(v[k]) > 0 {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func setBool(b *bool, s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	*b = v
	return nil
}

func oneOf(allowed ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(allowed, strings.ToLower(s)) {
			return nil
		}
		return fmt.Errorf("%q is not one of %s", s, strings.Join(allowed, ", "))
	}
}

func checkPod(s string) error {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || strings.Contains(name, "/") {
		return fmt.Errorf("%q is not namespace/name (or namespace/ for all of it)", s)
	}
	if name == "" {
		return checkName(ns)
	}
	return canBe(s, ns, name)
}

func checkName(s string) error {
	if s == "" || strings.Contains(s, "/") {
		return fmt.Errorf("%q is not the name of a namespace", s)
	}
	return canBe(s, s)
}

// canBe: objects are called what Kubernetes lets them be.
func canBe(s string, names ...string) error {
	for _, n := range names {
		if strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
			return fmt.Errorf("%q is no name that an object can have: small letters, digits, dots and dashes", s)
		}
	}
	return nil
}

func checkNotEmpty(s string) error {
	if strings.TrimSpace(s) == "" {
		return fmt.Errorf("%q is empty", s)
	}
	return nil
}

func checkWorkload(s string) error {
	if kind, name, ok := strings.Cut(s, "/"); s == "" || ok && (kind == "" || name == "" || strings.Contains(name, "/")) {
		return fmt.Errorf("%q is not a name or kind/name, as in Deployment/web", s)
	}
	return nil
}

func checkIdentity(s string) error {
	if _, err := strconv.ParseUint(s, 10, 32); err != nil {
		return fmt.Errorf("%q is not an identity number; \"weir identities\" lists them", s)
	}
	return nil
}

func checkPolicy(s string) error {
	if ns, name, ok := strings.Cut(s, "/"); !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("%q is not namespace/name", s)
	}
	return canBe(s, strings.Split(s, "/")...)
}

func checkAddress(s string) error {
	_, err := ParseBlock(s)
	return err
}

// ParseBlock reads an address or a CIDR; an address is a block of one.
func ParseBlock(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a CIDR", s)
	}
	return p.Masked(), nil
}

func checkProtocol(s string) error {
	if len(FlowProtocols(s)) == 0 {
		return fmt.Errorf("%q is not one of tcp, udp, sctp, icmp, icmpv4, icmpv6 or a protocol number", s)
	}
	return nil
}

// FlowProtocols are the IP protocol numbers that a protocol's name in a FlowQuery means,
// none for a name that is none.
func FlowProtocols(name string) []uint8 {
	switch strings.ToLower(name) {
	case "tcp":
		return []uint8{6}
	case "udp":
		return []uint8{17}
	case "sctp":
		return []uint8{132}
	case "icmp":
		return []uint8{1, 58}
	case "icmpv4":
		return []uint8{1}
	case "icmpv6":
		return []uint8{58}
	}
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		return []uint8{uint8(n)}
	}
	return nil
}

func checkPort(s string) error {
	if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not a port number (1-65535)", s)
	}
	return nil
}

func checkReason(s string) error {
	for r := datapath.ReasonPolicy; r < datapath.Reasons; r++ {
		if r.String() == ReasonText(s) {
			return nil
		}
	}
	return fmt.Errorf("%q is no drop reason; \"weir status\" lists those that occurred", s)
}

// ReasonText is a drop reason as it was typed, in the words that records have: case
// does not matter, and dashes stand for spaces.
func ReasonText(typed string) string {
	return strings.NewReplacer("-", " ", "_", " ").Replace(strings.ToLower(typed))
}
