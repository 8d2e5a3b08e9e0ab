package policy

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
)

// This file and its neighbours verdict_*.go are the reference: NetworkPolicy as its
// documentation has it, said in Go as plainly as it goes. They share no code with
// Compile but the Cluster they read.

// End is one end of a connection: a pod, an address, or a pod with its address.
type End struct {
	Pod  types.NamespacedName // zero: whoever has the address, as far as the API knows
	Addr netip.Addr           // zero: the pod's, of Tuple.Family, from its status
}

// Tuple is a connection somebody begins.
type Tuple struct {
	From, To End
	Protocol uint8  // IP protocol number
	Port     uint16 // destination port; 0 for protocols without ports
	Family   int    // 4 or 6; 0: the family of the addresses
}

// Verdicts.
const (
	Forwarded = "FORWARDED"
	Dropped   = "DROPPED"
)

// Answer is what the reference says. A side is nil when that end is no pod that
// policies apply to.
type Answer struct {
	Forwarded bool
	Egress    *Side
	Ingress   *Side
}

// RuleRef names a rule: for KindNetworkPolicy, Index is its place in spec.ingress or
// spec.egress; the other kinds have no name.
type RuleRef struct {
	Ref
	Index int `json:"index"`
}

func (r RuleRef) String() string {
	if r.Kind != KindNetworkPolicy {
		return r.Kind
	}
	return fmt.Sprintf("%s [%d]", r.Ref, r.Index)
}

// Side is what one direction says.
type Side struct {
	Verdict    string     `json:"verdict"`
	Rules      []RuleRef  `json:"rules"`       // all that allow; the first is the one the kernel names
	IsolatedBy []Ref      `json:"isolated_by"` // empty: not isolated
	NearMisses []NearMiss `json:"near_misses"` // of Explain
}

// party is an End that was looked up.
type party struct {
	pod     *Pod // nil: no pod that policies could mean
	address netip.Addr
	isNode  bool // it is the node itself
}

// Verdict says whether policy lets a connection begin, and why. Every pod of the
// cluster is judged, wherever it runs.
func Verdict(c *Cluster, n Node, t Tuple) Answer {
	return (&reference{cluster: c, node: n, tuple: t}).answer()
}

type reference struct {
	cluster  *Cluster
	node     Node
	tuple    Tuple
	from, to party
	explain  bool
}

func (r *reference) answer() Answer {
	r.from, r.to = r.party(r.tuple.From), r.party(r.tuple.To)
	var v Answer
	if r.from.pod != nil {
		v.Egress = r.egress()
	}
	if r.to.pod != nil {
		v.Ingress = r.ingress()
	}
	v.Forwarded = (v.Egress == nil || v.Egress.Verdict == Forwarded) && (v.Ingress == nil || v.Ingress.Verdict == Forwarded)
	return v
}

func (r *reference) egress() *Side {
	switch {
	case r.toItself():
		return always(KindSelf)
	case r.to.isNode && r.node.NodeEgressAllow && r.runsHere(r.from.pod):
		return always(KindNodeEgress)
	}
	return r.judge(r.from.pod, r.to, networkingv1.PolicyTypeEgress)
}

func (r *reference) ingress() *Side {
	switch {
	case r.toItself():
		return always(KindSelf)
	case r.from.isNode && r.runsHere(r.to.pod):
		return always(KindNode)
	}
	return r.judge(r.to.pod, r.from, networkingv1.PolicyTypeIngress)
}

func (r *reference) toItself() bool { return r.from.pod != nil && r.from.pod == r.to.pod }

func (r *reference) runsHere(pod *Pod) bool {
	return r.node.Name == "" || pod.NodeName == "" || pod.NodeName == r.node.Name
}

func always(kind string) *Side {
	return &Side{Verdict: Forwarded, Rules: []RuleRef{{Ref: Ref{Kind: kind}}}, IsolatedBy: []Ref{}, NearMisses: []NearMiss{}}
}

// judge is the heart: a pod that no policy isolates may do all; an isolated one may
// do what any rule of any policy that selects it allows.
func (r *reference) judge(subject *Pod, peer party, direction networkingv1.PolicyType) *Side {
	policies := r.isolating(subject, direction)
	if len(policies) == 0 {
		return always(KindNotIsolated)
	}
	side := &Side{Verdict: Dropped, Rules: []RuleRef{}, IsolatedBy: []Ref{}, NearMisses: []NearMiss{}}
	var allowing []allowed
	for i, np := range policies {
		side.IsolatedBy = append(side.IsolatedBy, refOf(np))
		if r.cluster.Refused[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] {
			side.NearMisses = append(side.NearMisses, refusedMiss(np))
			continue
		}
		for _, rule := range rulesOf(np, direction) {
			rule.order = i
			if how, ok := r.allows(rule, subject, peer); ok {
				allowing = append(allowing, how)
			} else if r.explain {
				side.NearMisses = append(side.NearMisses, r.nearMiss(rule, subject, peer))
			}
		}
	}
	slices.SortStableFunc(allowing, compareAllowed)
	for _, a := range allowing {
		side.Rules = append(side.Rules, RuleRef{Ref: refOf(a.rule.policy), Index: a.rule.index})
		side.Verdict = Forwarded
	}
	if side.NearMisses = nearest(side.NearMisses); side.Verdict == Forwarded || !r.explain {
		side.NearMisses = []NearMiss{}
	}
	return side
}

// isolating are the policies of the pod's namespace that select it for a direction,
// by name.
func (r *reference) isolating(pod *Pod, direction networkingv1.PolicyType) []*networkingv1.NetworkPolicy {
	var out []*networkingv1.NetworkPolicy
	for _, np := range r.cluster.NetworkPolicies {
		if np.Namespace == pod.Namespace && hasType(np, direction) && matches(&np.Spec.PodSelector, pod.Labels) {
			out = append(out, np)
		}
	}
	slices.SortFunc(out, func(a, b *networkingv1.NetworkPolicy) int {
		return compareNames(types.NamespacedName{Name: a.Name}, types.NamespacedName{Name: b.Name})
	})
	return out
}

func hasType(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return direction == networkingv1.PolicyTypeIngress || len(np.Spec.Egress) > 0
	}
	return slices.Contains(np.Spec.PolicyTypes, direction)
}

// flatRule is an ingress or egress rule: what both have in common.
type flatRule struct {
	policy *networkingv1.NetworkPolicy
	order  int // of its policy among those that select the subject
	index  int
	egress bool
	peers  []networkingv1.NetworkPolicyPeer
	ports  []networkingv1.NetworkPolicyPort
}

func rulesOf(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) []flatRule {
	var out []flatRule
	if direction == networkingv1.PolicyTypeEgress {
		for i, r := range np.Spec.Egress {
			out = append(out, flatRule{policy: np, index: i, egress: true, peers: r.To, ports: r.Ports})
		}
		return out
	}
	for i, r := range np.Spec.Ingress {
		out = append(out, flatRule{policy: np, index: i, peers: r.From, ports: r.Ports})
	}
	return out
}

func refOf(np *networkingv1.NetworkPolicy) Ref {
	return Ref{Kind: KindNetworkPolicy, Namespace: np.Namespace, Name: np.Name}
}

// party looks an End up: the node's own addresses first, then the pods'. A hostNetwork
// pod is its node.
func (r *reference) party(e End) party {
	if pod := r.cluster.Pods[e.Pod]; pod != nil {
		return r.podParty(pod, e.Addr)
	}
	p := party{address: e.Addr.Unmap(), isNode: r.ofNode(e.Addr)}
	if p.isNode || !e.Addr.IsValid() {
		return p
	}
	for _, name := range sortedNames(r.cluster.Pods) {
		pod := r.cluster.Pods[name]
		if slices.Contains(StatusAddresses(pod), p.address) {
			p.pod = pod
			return p
		}
	}
	return p
}

func (r *reference) podParty(pod *Pod, a netip.Addr) party {
	if !a.IsValid() {
		a = statusAddress(pod, r.tuple.Family)
	}
	if pod.HostNetwork {
		return party{address: a.Unmap(), isNode: r.ofNode(a)}
	}
	return party{pod: pod, address: a.Unmap()}
}

// statusAddress is the pod's of a family (0 = any); zero when the API has none.
func statusAddress(pod *Pod, family int) netip.Addr {
	for _, a := range pod.Addresses {
		if family == 0 || (family == 4) == a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

func (r *reference) ofNode(a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(r.node.Addresses, func(own netip.Addr) bool { return own.Unmap() == a.Unmap() })
}

// matches is Kubernetes' own reading of a selector; one it cannot read matches nothing.
func matches(s *metav1.LabelSelector, l map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(l))
}

// hasPorts reports whether policies can name the protocol.
func hasPorts(protocol uint8) bool {
	return protocol == datapath.TCP || protocol == datapath.UDP || protocol == datapath.SCTP
}
