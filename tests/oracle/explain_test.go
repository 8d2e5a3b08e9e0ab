package oracle

import (
	"fmt"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/differential"
)

// The engines say of a policy alone whether it isolates a pod, and of a rule alone whether it
// allows: what an explanation names must be exactly that.

var judges = []differential.Judge{cyclonus, kubeNetworkPolicies}

// reviewer holds explanations of one cluster's tuples to the engines.
type reviewer struct {
	cluster  *policy.Cluster
	node     policy.Node
	policies []*networkingv1.NetworkPolicy // by namespace and name, defaulted
	alone    map[alone]engines
	isolates map[isolation]bool
	tested   map[change]bool
	counts   *counts
}

// alone is a policy with one rule; with none if index < 0.
type alone struct {
	policy    *networkingv1.NetworkPolicy
	direction datapath.Direction
	index     int
}

type isolation struct {
	policy    *networkingv1.NetworkPolicy
	direction datapath.Direction
	subject   types.NamespacedName
}

// engines are all judges, over one cluster.
type engines []func(policy.Tuple) differential.Opinion

func take(c *policy.Cluster, n policy.Node) (out engines) {
	for _, j := range judges {
		out = append(out, j.Take(c, n))
	}
	return out
}

// allow is what they say of one direction, or that they do not agree.
func (e engines) allow(t policy.Tuple, d datapath.Direction) (bool, error) {
	first := e[0](t)[d].Allows
	for i, say := range e[1:] {
		if say(t)[d].Allows != first {
			return false, fmt.Errorf("%s says %v, %s does not", judges[0].Name, first, judges[i+1].Name)
		}
	}
	return first, nil
}

func review(n *counts) differential.Review {
	return func(c *policy.Cluster, node policy.Node) func(policy.Tuple, policy.Answer) error {
		r := &reviewer{cluster: c, node: node, counts: n, alone: map[alone]engines{}, isolates: map[isolation]bool{}, tested: map[change]bool{}}
		for _, np := range c.NetworkPolicies {
			r.policies = append(r.policies, defaulted(np))
		}
		slices.SortFunc(r.policies, func(a, b *networkingv1.NetworkPolicy) int {
			return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
		})
		return r.review
	}
}

func (r *reviewer) review(t policy.Tuple, a policy.Answer) error {
	from, to := parties(r.cluster, t)
	var silent differential.Opinion
	silence(&silent, r.node, from, to)
	for d, s := range [...]*policy.Side{a.Egress, a.Ingress} {
		if s == nil {
			continue
		}
		subject, peer := from, to
		if datapath.Direction(d) == datapath.Ingress {
			subject, peer = to, from
		}
		if silent[d].Silent != "" {
			if len(s.IsolatedBy) != 0 || len(s.Rules) != 1 || s.Rules[0].Kind == policy.KindNetworkPolicy {
				return fmt.Errorf("%s: a policy is named, and it is %s", datapath.Direction(d), silent[d].Silent)
			}
			continue
		}
		if err := r.side(&side{r, t, datapath.Direction(d), subject, peer}, s); err != nil {
			return fmt.Errorf("%s: %w", datapath.Direction(d), err)
		}
	}
	return nil
}

// side is one direction of a tuple.
type side struct {
	*reviewer
	tuple         policy.Tuple
	direction     datapath.Direction
	subject, peer party
}

func (r *reviewer) side(s *side, said *policy.Side) error {
	isolating := []policy.Ref{}
	allowing := map[policy.RuleRef]bool{}
	denying := map[policy.RuleRef]*networkingv1.NetworkPolicy{}
	for _, np := range r.policies {
		if isolates, err := s.isolatedBy(np); err != nil {
			return err
		} else if !isolates {
			continue
		}
		ref := policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: np.Namespace, Name: np.Name}
		isolating = append(isolating, ref)
		for i := range s.rules(np) {
			allows, err := r.engines(alone{np, s.direction, i}).allow(s.tuple, s.direction)
			if err != nil {
				return fmt.Errorf("%s rule %d: %w", ref, i, err)
			}
			if allows {
				allowing[policy.RuleRef{Ref: ref, Index: i}] = true
			} else {
				denying[policy.RuleRef{Ref: ref, Index: i}] = np
			}
		}
	}
	if !slices.Equal(said.IsolatedBy, isolating) {
		return fmt.Errorf("isolated by %v is said, the engines say %v", said.IsolatedBy, isolating)
	}
	if len(isolating) == 0 {
		if len(said.Rules) != 1 || said.Rules[0].Kind != policy.KindNotIsolated {
			return fmt.Errorf("not isolated, and %v is said", said.Rules)
		}
		return nil
	}
	if len(said.Rules) != len(allowing) || slices.ContainsFunc(said.Rules, func(ref policy.RuleRef) bool { return !allowing[ref] }) {
		return fmt.Errorf("allowed by %v is said, the engines say %v", said.Rules, allowing)
	}
	r.counts.add("sides", 1)
	r.counts.add("deciding rules", len(allowing))
	if said.Verdict != policy.Dropped {
		return nil
	}
	return s.nearMisses(said.NearMisses, denying)
}

func (s *side) rules(np *networkingv1.NetworkPolicy) []rule { return rulesOf(np, s.direction) }

// isolatedBy: a policy without rules denies whom it selects.
func (s *side) isolatedBy(np *networkingv1.NetworkPolicy) (bool, error) {
	key := isolation{np, s.direction, types.NamespacedName{Namespace: s.subject.pod.Namespace, Name: s.subject.pod.Name}}
	isolates, known := s.isolates[key]
	if !known {
		allows, err := s.engines(alone{np, s.direction, -1}).allow(s.tuple, s.direction)
		if err != nil {
			return false, fmt.Errorf("%s/%s without rules: %w", np.Namespace, np.Name, err)
		}
		isolates = !allows
		s.isolates[key] = isolates
	}
	return isolates, nil
}

func (r *reviewer) engines(a alone) engines {
	e := r.alone[a]
	if e == nil {
		e = take(withOnly(r.cluster, a.only()), r.node)
		r.alone[a] = e
	}
	return e
}

func withOnly(c *policy.Cluster, np *networkingv1.NetworkPolicy) *policy.Cluster {
	out := *c
	out.NetworkPolicies = map[types.NamespacedName]*networkingv1.NetworkPolicy{{Namespace: np.Namespace, Name: np.Name}: np}
	return &out
}

func (a alone) only() *networkingv1.NetworkPolicy {
	np := a.policy.DeepCopy()
	in, out := np.Spec.Ingress, np.Spec.Egress
	np.Spec.Ingress, np.Spec.Egress = nil, nil
	switch {
	case a.index < 0:
	case a.direction == datapath.Egress:
		np.Spec.Egress = out[a.index : a.index+1]
	default:
		np.Spec.Ingress = in[a.index : a.index+1]
	}
	return np
}

// rule of either direction.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func rulesOf(np *networkingv1.NetworkPolicy, d datapath.Direction) (out []rule) {
	if d == datapath.Egress {
		for _, r := range np.Spec.Egress {
			out = append(out, rule{r.To, r.Ports})
		}
		return out
	}
	for _, r := range np.Spec.Ingress {
		out = append(out, rule{r.From, r.Ports})
	}
	return out
}
