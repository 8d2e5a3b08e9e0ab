package oracle

import (
	"maps"
	"slices"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/differential"
)

var cyclonus = differential.Judge{Name: "cyclonus", Take: takeCyclonus}

func takeCyclonus(c *policy.Cluster, n policy.Node) func(policy.Tuple) differential.Opinion {
	var policies []*networkingv1.NetworkPolicy
	for _, np := range c.NetworkPolicies {
		policies = append(policies, withoutNotIn(withoutMatchLabels(defaulted(np)))...)
	}
	compiled := matcher.BuildNetworkPolicies(false, policies)
	peer := func(p party) *matcher.TrafficPeer {
		if p.pod == nil {
			return &matcher.TrafficPeer{IP: p.addr}
		}
		return &matcher.TrafficPeer{IP: p.addr, Internal: &matcher.InternalPeer{
			Namespace: p.pod.Namespace, NamespaceLabels: namespaceLabels(c, p.pod.Namespace), PodLabels: p.pod.Labels}}
	}
	return func(t policy.Tuple) (o differential.Opinion) {
		from, to := parties(c, t)
		traffic := &matcher.Traffic{Source: peer(from), Destination: peer(to), ResolvedPort: int(t.Port), Protocol: protocol(t)}
		// It knows one name of a port; any of them may be what a rule has.
		for _, name := range portNames(to.pod, t) {
			traffic.ResolvedPortName = name
			r := compiled.IsTrafficAllowed(traffic)
			o[datapath.Egress].Allows = o[datapath.Egress].Allows || r.Egress.IsAllowed()
			o[datapath.Ingress].Allows = o[datapath.Ingress].Allows || r.Ingress.IsAllowed()
		}
		silence(&o, n, from, to)
		return o
	}
}

// portNames that a tuple's port has in the pod that it leads to, and none.
func portNames(pod *policy.Pod, t policy.Tuple) []string {
	out := []string{""}
	if pod != nil {
		for _, p := range pod.Ports {
			if p.ContainerPort == int32(t.Port) && p.Protocol == protocol(t) {
				out = append(out, p.Name)
			}
		}
	}
	return out
}

// withoutMatchLabels says them as expressions: cyclonus takes an absent label for an empty one.
func withoutMatchLabels(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	np = np.DeepCopy()
	for _, s := range selectors(np) {
		for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{
				Key: k, Operator: metav1.LabelSelectorOpIn, Values: []string{s.MatchLabels[k]}})
		}
		s.MatchLabels = nil
	}
	return np
}

func selectors(np *networkingv1.NetworkPolicy) []*metav1.LabelSelector {
	out := []*metav1.LabelSelector{&np.Spec.PodSelector}
	add := func(peers []networkingv1.NetworkPolicyPeer) {
		for _, p := range peers {
			for _, s := range []*metav1.LabelSelector{p.PodSelector, p.NamespaceSelector} {
				if s != nil {
					out = append(out, s)
				}
			}
		}
	}
	for _, r := range np.Spec.Ingress {
		add(r.From)
	}
	for _, r := range np.Spec.Egress {
		add(r.To)
	}
	return out
}

// withoutNotIn says a policy in other words: cyclonus' NotIn does not match where the
// key is absent, Kubernetes' does, so each becomes Exists and NotIn, or DoesNotExist.
func withoutNotIn(np *networkingv1.NetworkPolicy) (out []*networkingv1.NetworkPolicy) {
	np = np.DeepCopy()
	for i := range np.Spec.Ingress {
		np.Spec.Ingress[i].From = splitPeers(np.Spec.Ingress[i].From)
	}
	for i := range np.Spec.Egress {
		np.Spec.Egress[i].To = splitPeers(np.Spec.Egress[i].To)
	}
	for _, s := range split(&np.Spec.PodSelector) {
		one := np.DeepCopy()
		one.Spec.PodSelector = *s
		out = append(out, one)
	}
	return out
}

func splitPeers(peers []networkingv1.NetworkPolicyPeer) (out []networkingv1.NetworkPolicyPeer) {
	for _, p := range peers {
		for _, pods := range split(p.PodSelector) {
			for _, namespaces := range split(p.NamespaceSelector) {
				out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: pods, NamespaceSelector: namespaces, IPBlock: p.IPBlock})
			}
		}
	}
	return out
}

func split(s *metav1.LabelSelector) []*metav1.LabelSelector {
	if s == nil {
		return []*metav1.LabelSelector{nil}
	}
	out := []*metav1.LabelSelector{{MatchLabels: s.MatchLabels}}
	for _, e := range s.MatchExpressions {
		var next []*metav1.LabelSelector
		for _, o := range out {
			add := func(es ...metav1.LabelSelectorRequirement) {
				c := o.DeepCopy()
				c.MatchExpressions = append(c.MatchExpressions, es...)
				next = append(next, c)
			}
			if e.Operator != metav1.LabelSelectorOpNotIn {
				add(e)
				continue
			}
			add(metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOpExists}, e)
			add(metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOpDoesNotExist})
		}
		out = next
	}
	return out
}
