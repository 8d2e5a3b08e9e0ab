package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// parsed is a policy as the compiler works with it.
type parsed struct {
	name     types.NamespacedName
	ref      Ref
	uid      string
	subject  identity.Selector
	isolates [2]bool // by direction
	rules    [2][]*parsedRule
	refused  bool
}

// parsedRule allows peers on ports.
type parsedRule struct {
	owner     *parsed
	index     int
	direction datapath.Direction
	peers     []identity.Peer
	ports     []parsedPort
	spec      any    // as it is written: what its id stands for, besides its place
	key       string // of its id; empty: not asked for yet
}

// parsedPort is ports of a protocol: by number, or by name.
type parsedPort struct {
	protocol  uint8
	low, high uint16
	name      string
}

var allPorts = parsedPort{protocol: datapath.Any, high: 65535}

// parser collects what one policy has wrong.
type parser struct {
	ref      Ref
	problems []Problem
}

func (p *parser) problem(field, format string, args ...any) {
	p.problems = append(p.problems, Problem{Ref: p.ref, Field: field, Message: fmt.Sprintf(format, args...)})
}

func parsePolicy(np *networkingv1.NetworkPolicy) (*parsed, []Problem) {
	p := &parser{ref: Ref{Kind: KindNetworkPolicy, Namespace: np.Namespace, Name: np.Name}}
	out := p.head(np)
	for i, r := range np.Spec.Ingress {
		out.add(datapath.Ingress, p.rule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports), i, r)
	}
	for i, r := range np.Spec.Egress {
		out.add(datapath.Egress, p.rule(fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports), i, r)
	}
	out.refused = len(p.problems) > 0
	return out, p.problems
}

// parseSubject is a policy that isolates the pods it selects and allows nothing.
func parseSubject(np *networkingv1.NetworkPolicy) *parsed {
	p := &parser{ref: Ref{Kind: KindNetworkPolicy, Namespace: np.Namespace, Name: np.Name}}
	out := p.head(np)
	out.refused = true
	return out
}

func (p *parser) head(np *networkingv1.NetworkPolicy) *parsed {
	return &parsed{
		name:     types.NamespacedName{Namespace: np.Namespace, Name: np.Name},
		ref:      p.ref,
		uid:      string(np.UID),
		subject:  p.selector("spec.podSelector", &np.Spec.PodSelector),
		isolates: isolates(np),
	}
}

// isolates is by direction; without policyTypes ingress always, egress if it has rules.
func isolates(np *networkingv1.NetworkPolicy) (out [2]bool) {
	if len(np.Spec.PolicyTypes) == 0 {
		out[datapath.Ingress], out[datapath.Egress] = true, len(np.Spec.Egress) > 0
	}
	for _, t := range np.Spec.PolicyTypes {
		out[datapath.Ingress] = out[datapath.Ingress] || t == networkingv1.PolicyTypeIngress
		out[datapath.Egress] = out[datapath.Egress] || t == networkingv1.PolicyTypeEgress
	}
	return out
}

func (o *parsed) add(d datapath.Direction, r *parsedRule, index int, spec any) {
	if !o.isolates[d] {
		return // rules of a direction that policyTypes does not name mean nothing
	}
	r.owner, r.direction, r.index, r.spec = o, d, index, spec
	o.rules[d] = append(o.rules[d], r)
}

func (p *parser) rule(field, side string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) *parsedRule {
	r := &parsedRule{}
	for i := range peers {
		if peer, ok := p.peer(fmt.Sprintf("%s.%s[%d]", field, side, i), &peers[i]); ok {
			r.peers = append(r.peers, peer)
		}
	}
	if len(peers) == 0 {
		r.peers = []identity.Peer{identity.Any()}
	}
	for i := range ports {
		if port, ok := p.port(fmt.Sprintf("%s.ports[%d]", field, i), &ports[i]); ok {
			r.ports = append(r.ports, port)
		}
	}
	if len(ports) == 0 {
		r.ports = []parsedPort{allPorts}
	}
	return r
}

func (p *parser) peer(field string, peer *networkingv1.NetworkPolicyPeer) (identity.Peer, bool) {
	pods := identity.NewSelector()
	if peer.PodSelector != nil {
		pods = p.selector(field+".podSelector", peer.PodSelector)
	}
	switch {
	case peer.IPBlock != nil:
		return p.block(field+".ipBlock", peer.IPBlock)
	case peer.NamespaceSelector != nil:
		return identity.InNamespaces(p.selector(field+".namespaceSelector", peer.NamespaceSelector), pods), true
	case peer.PodSelector != nil:
		return identity.InNamespace(p.ref.Namespace, pods), true
	}
	p.problem(field, "a peer must have podSelector, namespaceSelector or ipBlock")
	return identity.Peer{}, false
}

func (p *parser) block(field string, b *networkingv1.IPBlock) (identity.Peer, bool) {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		p.problem(field+".cidr", "%q is no CIDR: write ADDRESS/LENGTH", b.CIDR)
		return identity.Peer{}, false
	}
	var except []netip.Prefix
	for i, text := range b.Except {
		e, err := netip.ParsePrefix(text)
		if err != nil {
			p.problem(fmt.Sprintf("%s.except[%d]", field, i), "%q is no CIDR: write ADDRESS/LENGTH", text)
			return identity.Peer{}, false
		}
		except = append(except, e)
	}
	return identity.InBlock(cidr, except...), true
}

func (p *parser) port(field string, port *networkingv1.NetworkPolicyPort) (parsedPort, bool) {
	out := parsedPort{protocol: datapath.TCP, high: 65535}
	if port.Protocol != nil {
		n, ok := protocolNumber(*port.Protocol)
		if !ok {
			p.problem(field+".protocol", "%q: only TCP, UDP and SCTP can be named", *port.Protocol)
			return out, false
		}
		out.protocol = n
	}
	switch {
	case port.Port == nil:
	case port.Port.Type == intstr.String:
		out.name = port.Port.StrVal
	default:
		out.low, out.high = uint16(port.Port.IntVal), uint16(port.Port.IntVal)
		if port.EndPort != nil {
			out.high = uint16(*port.EndPort)
		}
	}
	return out, true
}

var operators = map[metav1.LabelSelectorOperator]identity.Operator{
	metav1.LabelSelectorOpIn:           identity.In,
	metav1.LabelSelectorOpNotIn:        identity.NotIn,
	metav1.LabelSelectorOpExists:       identity.Exists,
	metav1.LabelSelectorOpDoesNotExist: identity.NotExists,
}

func (p *parser) selector(field string, s *metav1.LabelSelector) identity.Selector {
	var out []identity.Requirement
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		out = append(out, identity.Requirement{Key: k, Operator: identity.In, Values: []string{s.MatchLabels[k]}})
	}
	for i, e := range s.MatchExpressions {
		op, ok := operators[e.Operator]
		if !ok {
			p.problem(fmt.Sprintf("%s.matchExpressions[%d].operator", field, i), "%q: must be In, NotIn, Exists or DoesNotExist", e.Operator)
		}
		r := identity.Requirement{Key: e.Key, Operator: op}
		if op == identity.In || op == identity.NotIn {
			r.Values = e.Values
		}
		out = append(out, r)
	}
	return identity.NewSelector(out...)
}

// selects reports whether the policy applies to a pod: never to one that uses its
// node's network.
func (o *parsed) selects(pod *Pod) bool {
	return pod.Namespace == o.name.Namespace && !pod.HostNetwork && o.subject.Matches(pod.Labels)
}
