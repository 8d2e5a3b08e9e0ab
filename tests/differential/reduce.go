package differential

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
)

// reduction gives a cluster with one thing less; no cluster stays none.
type reduction func(*policy.Cluster) *policy.Cluster

// reductions of a repro, the largest first: policies, pods, namespaces, parts of policies,
// labels and ports of the two pods that it is about.
func reductions(c *repro) (out []reduction) {
	policies := map[types.NamespacedName]bool{}
	for _, cluster := range []*policy.Cluster{c.before, c.after} {
		if cluster != nil {
			for name := range cluster.NetworkPolicies {
				policies[name] = true
			}
		}
	}
	for _, name := range names(policies) {
		out = append(out, func(c *policy.Cluster) *policy.Cluster { return withPolicy(c, name, nil) })
	}
	ends := []types.NamespacedName{c.failure.from.Pod, c.failure.to.Pod}
	for _, name := range names(c.after.Pods) {
		if !slices.Contains(ends, name) {
			out = append(out, func(c *policy.Cluster) *policy.Cluster { return withPod(c, name, nil) })
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.after.Namespaces)) {
		out = append(out, func(c *policy.Cluster) *policy.Cluster { return withNamespace(c, name, nil) })
	}
	for _, name := range names(c.after.NetworkPolicies) {
		for _, less := range lesser(c.after.NetworkPolicies[name]) {
			out = append(out, only(c.after, func(c *policy.Cluster) *policy.Cluster { return withPolicy(c, name, less) }))
		}
	}
	for _, name := range ends {
		if pod := c.after.Pods[name]; pod != nil {
			for _, less := range lesserPods(pod) {
				out = append(out, only(c.after, func(c *policy.Cluster) *policy.Cluster { return withPod(c, name, less) }))
			}
		}
		if ns := c.after.Namespaces[name.Namespace]; ns != nil {
			for _, key := range slices.Sorted(maps.Keys(ns.Labels)) {
				less := ns.DeepCopy()
				delete(less.Labels, key)
				out = append(out, only(c.after, func(c *policy.Cluster) *policy.Cluster { return withNamespace(c, name.Namespace, less) }))
			}
		}
	}
	return out
}

// only leaves other clusters than of as they are.
func only(of *policy.Cluster, f reduction) reduction {
	return func(c *policy.Cluster) *policy.Cluster {
		if c != of {
			return c
		}
		return f(c)
	}
}

func names[V any](m map[types.NamespacedName]V) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(m), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
}

func withPolicy(c *policy.Cluster, name types.NamespacedName, np *networkingv1.NetworkPolicy) *policy.Cluster {
	if c == nil {
		return nil
	}
	out := *c
	out.NetworkPolicies = with(c.NetworkPolicies, name, np)
	return &out
}

func withPod(c *policy.Cluster, name types.NamespacedName, pod *policy.Pod) *policy.Cluster {
	if c == nil {
		return nil
	}
	out := *c
	out.Pods = with(c.Pods, name, pod)
	return &out
}

func withNamespace(c *policy.Cluster, name string, ns *corev1.Namespace) *policy.Cluster {
	if c == nil {
		return nil
	}
	out := *c
	out.Namespaces = with(c.Namespaces, name, ns)
	return &out
}

// with is a copy of m in which k is v, or, if that is nil, is not.
func with[K comparable, V any](m map[K]*V, k K, v *V) map[K]*V {
	m = maps.Clone(m)
	if v == nil {
		delete(m, k)
	} else {
		m[k] = v
	}
	return m
}

func lesserPods(pod *policy.Pod) (out []*policy.Pod) {
	for _, key := range slices.Sorted(maps.Keys(pod.Labels)) {
		less := pod.Clone()
		delete(less.Labels, key)
		out = append(out, less)
	}
	for p := range pod.Ports {
		less := pod.Clone()
		less.Ports = slices.Delete(less.Ports, p, p+1)
		out = append(out, less)
	}
	return out
}

// lesser are the policy without one rule, peer, port, exception, requirement or value each.
func lesser(np *networkingv1.NetworkPolicy) (out []*networkingv1.NetworkPolicy) {
	// Every slice in the order that a copy has it, too: the n-th can be cut in a copy.
	for n := range cuts(np) {
		for i := range cuts(np)[n].length {
			less := np.DeepCopy()
			cuts(less)[n].delete(i)
			out = append(out, less)
		}
	}
	return out
}

// cut is a list that an entry can be taken out of.
type cut struct {
	length int
	delete func(i int)
}

// listOf is a cut unless fewer than least would be left.
func listOf[T any](list *[]T, least int) cut {
	n := len(*list)
	if n <= least {
		n = 0
	}
	return cut{n, func(i int) { *list = slices.Delete(*list, i, i+1) }}
}

func labelsOf(s *metav1.LabelSelector) cut {
	keys := slices.Sorted(maps.Keys(s.MatchLabels))
	return cut{len(keys), func(i int) { delete(s.MatchLabels, keys[i]) }}
}

func selectorCuts(s *metav1.LabelSelector) []cut {
	if s == nil {
		return nil
	}
	out := []cut{labelsOf(s), listOf(&s.MatchExpressions, 0)}
	for i := range s.MatchExpressions {
		out = append(out, listOf(&s.MatchExpressions[i].Values, 1))
	}
	return out
}

func cuts(np *networkingv1.NetworkPolicy) []cut {
	out := []cut{listOf(&np.Spec.Ingress, 0), listOf(&np.Spec.Egress, 0), listOf(&np.Spec.PolicyTypes, 1)}
	for i := range np.Spec.Ingress {
		out = append(out, listOf(&np.Spec.Ingress[i].From, 0), listOf(&np.Spec.Ingress[i].Ports, 0))
		out = append(out, peerCuts(np.Spec.Ingress[i].From)...)
	}
	for i := range np.Spec.Egress {
		out = append(out, listOf(&np.Spec.Egress[i].To, 0), listOf(&np.Spec.Egress[i].Ports, 0))
		out = append(out, peerCuts(np.Spec.Egress[i].To)...)
	}
	return append(out, selectorCuts(&np.Spec.PodSelector)...)
}

func peerCuts(peers []networkingv1.NetworkPolicyPeer) (out []cut) {
	for i := range peers {
		out = append(out, selectorCuts(peers[i].PodSelector)...)
		out = append(out, selectorCuts(peers[i].NamespaceSelector)...)
		if peers[i].IPBlock != nil {
			out = append(out, listOf(&peers[i].IPBlock.Except, 0))
		}
	}
	return out
}
