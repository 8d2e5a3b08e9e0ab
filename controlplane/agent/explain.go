package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// question is what Explain was asked.
type question struct {
	from, to string
	protocol uint8
	port     uint16
}

// Explain implements api.Node: the reference verdict on what is applied now.
func (a *Agent) Explain(from, to, port string, family int) (api.Explanation, error) {
	q := question{from: from, to: to}
	var err error
	if q.protocol, q.port, err = parsePort(port); err != nil {
		return api.Explanation{}, &api.Error{Code: api.CodeInvalid, Message: err.Error()}
	}
	a.live.RLock()
	defer a.live.RUnlock()
	a.mu.Lock()
	t := a.applied
	a.mu.Unlock()
	if t.result == nil {
		return api.Explanation{}, &api.Error{Code: api.CodeTryLater, Message: "nothing is enforced yet"}
	}
	tuples, err := t.tuples(q, family)
	if err != nil {
		return api.Explanation{}, &api.Error{Code: api.CodeInvalid, Message: err.Error()}
	}
	answer := policy.Explain(t.cluster, t.node, tuples[0])
	e := api.Explanation{
		Verdict: verdictOf(answer), Family: tuples[0].Family,
		Egress: explainSide(answer.Egress), Ingress: explainSide(answer.Ingress),
	}
	e.LastGood = t.lastGood(e.Egress, e.Ingress)
	for _, end := range []string{from, to} {
		if !t.has(end, tuples[0].Family) {
			e.Note = fmt.Sprintf("%s has no IPv%d address: nothing can be sent; this is what policy says of its labels", end, tuples[0].Family)
		}
	}
	if len(tuples) == 2 {
		if other := policy.Verdict(t.cluster, t.node, tuples[1]); other.Forwarded != answer.Forwarded {
			e.Note = fmt.Sprintf("IPv%d differs: %s", tuples[1].Family, verdictOf(other))
		}
	}
	return e, nil
}

// lastGood are those of the policies that sides name of which an earlier version is enforced.
func (t *attempt) lastGood(sides ...*api.Side) (out []api.Ref) {
	for _, s := range sides {
		if s == nil {
			continue
		}
		named := slices.Clone(s.IsolatedBy)
		for _, r := range s.Rules {
			named = append(named, r.Ref)
		}
		for _, m := range s.NearMisses {
			named = append(named, m.Ref)
		}
		for _, r := range named {
			if r.Name != "" && !slices.Contains(out, r) && enforcedOf(t.result, nameOf(policy.Ref(r))) == api.LastGood {
				out = append(out, r)
			}
		}
	}
	return out
}

// tuples are the question in the family asked for, or in each in which both ends have
// an address, IPv4 first.
func (t *attempt) tuples(q question, family int) ([]policy.Tuple, error) {
	families := []int{family}
	if family == 0 {
		families = t.families(q)
	}
	var out []policy.Tuple
	for _, f := range families {
		from, err := policy.ParseEnd(t.cluster, t.locals, q.from, f)
		if err != nil {
			return nil, fmt.Errorf("from: %w", err)
		}
		to, err := policy.ParseEnd(t.cluster, t.locals, q.to, f)
		if err != nil {
			return nil, fmt.Errorf("to: %w", err)
		}
		t := policy.Tuple{From: from, To: to, Protocol: q.protocol, Port: q.port, Family: f}
		if t.Protocol == protocolICMP && f == 6 {
			t.Protocol = protocolICMPv6
		}
		out = append(out, t)
	}
	return out, nil
}

func (t *attempt) families(q question) []int {
	if q.protocol == protocolICMPv6 {
		return []int{6}
	}
	out := slices.DeleteFunc([]int{4, 6}, func(f int) bool { return !t.has(q.from, f) || !t.has(q.to, f) })
	if len(out) > 0 {
		return out
	}
	for _, text := range []string{q.from, q.to} { // an end without addresses has either family
		if addr, err := netip.ParseAddr(text); err == nil && !addr.Unmap().Is4() {
			return []int{6}
		}
	}
	return []int{4}
}

// has reports whether an end has an address of the family.
func (t *attempt) has(text string, family int) bool {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr.Unmap().Is4() == (family == 4)
	}
	e, err := policy.ParseEnd(t.cluster, t.locals, text, family)
	return err == nil && e.Addr.IsValid()
}

const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

var protocols = map[string]uint8{
	"tcp": datapath.TCP, "udp": datapath.UDP, "sctp": datapath.SCTP, "icmp": protocolICMP, "icmpv6": protocolICMPv6,
}

// parsePort reads "80/tcp", "80" (TCP), "icmp", or the number of a protocol without
// ports as "47/ip".
func parsePort(text string) (protocol uint8, port uint16, err error) {
	bad := fmt.Errorf("port %q: write 80/tcp, 53/udp, 5000/sctp, icmp, icmpv6, or PROTOCOL/ip", text)
	number, name, slash := strings.Cut(strings.ToLower(text), "/")
	if protocol, ok := protocols[number]; ok && !slash && protocol != datapath.TCP && protocol != datapath.UDP && protocol != datapath.SCTP {
		return protocol, 0, nil
	}
	if !slash {
		name = "tcp"
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return 0, 0, bad
	}
	if name == "ip" && n < 256 {
		return uint8(n), 0, nil
	}
	protocol, ok := protocols[name]
	if !ok || n == 0 || protocol == protocolICMP || protocol == protocolICMPv6 {
		return 0, 0, bad
	}
	return protocol, uint16(n), nil
}

func verdictOf(a policy.Answer) string {
	if a.Forwarded {
		return policy.Forwarded
	}
	return policy.Dropped
}

func explainSide(s *policy.Side) *api.Side {
	if s == nil {
		return nil
	}
	out := &api.Side{Verdict: s.Verdict, Rules: []api.RuleRef{}, IsolatedBy: []api.Ref{}, NearMisses: []api.NearMiss{}}
	for _, r := range s.Rules {
		out.Rules = append(out.Rules, explainRule(r))
	}
	for _, by := range s.IsolatedBy {
		out.IsolatedBy = append(out.IsolatedBy, api.Ref(by))
	}
	for _, m := range s.NearMisses {
		out.NearMisses = append(out.NearMisses, api.NearMiss{RuleRef: explainRule(m.RuleRef), Reason: m.Reason})
	}
	return out
}

func explainRule(r policy.RuleRef) api.RuleRef {
	return api.RuleRef{Ref: api.Ref(r.Ref), Index: r.Index}
}
