package randomcluster

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestWorldsHaveEverything counts in how many clusters there is what engines may differ on:
// a comparison over worlds without it would tell nothing of it.
func TestWorldsHaveEverything(t *testing.T) {
	const worlds = 300
	count := map[string]int{}
	for seed := range int64(worlds) {
		w := New(rand.New(rand.NewSource(seed)))
		w.Edit()
		for what := range contents(w) {
			count[what]++
		}
	}
	for _, what := range []string{
		"operator In", "operator NotIn", "operator Exists", "operator DoesNotExist", "match labels", "long selector",
		"except over a pod", "excepts nested", "excepts apart", "family 4", "family 6", "bits beyond the prefix", "range outside",
		"no types", "types [Ingress]", "types [Egress]", "types [Ingress Egress]", "egress rules and no egress type",
		"denies all", "allows all", "contradicting twins", "any port", "range", "wide range", "named port", "TCP", "UDP", "SCTP",
		"name means two ports for the same labels", "one port of two names", "undeclared namespace", "no labels", "many labels",
		"host network", "finished",
	} {
		if count[what] < worlds/40 {
			t.Errorf("%s: in %d of %d clusters", what, count[what], worlds)
		}
	}
}

func contents(w *World) map[string]bool {
	has := contentsOfPods(w)
	for _, np := range w.Cluster.NetworkPolicies {
		has[fmt.Sprint("types ", np.Spec.PolicyTypes)] = true
		has["no types"] = has["no types"] || np.Spec.PolicyTypes == nil
		has["egress rules and no egress type"] = has["egress rules and no egress type"] ||
			len(np.Spec.Egress) > 0 && len(np.Spec.PolicyTypes) > 0 && !slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		has["denies all"] = has["denies all"] || len(np.Spec.Ingress)+len(np.Spec.Egress) == 0
		selectorHas(has, &np.Spec.PodSelector)
		for _, r := range np.Spec.Ingress {
			has["allows all"] = has["allows all"] || len(r.From)+len(r.Ports) == 0
			ruleHas(has, w, r.From, r.Ports)
		}
		for _, r := range np.Spec.Egress {
			ruleHas(has, w, r.To, r.Ports)
		}
		for _, other := range w.Cluster.NetworkPolicies {
			same := np.Namespace == other.Namespace && np.Spec.PodSelector.String() == other.Spec.PodSelector.String()
			has["contradicting twins"] = has["contradicting twins"] || same && len(np.Spec.Ingress) != len(other.Spec.Ingress)
		}
	}
	return has
}

func contentsOfPods(w *World) map[string]bool {
	has := map[string]bool{}
	for _, pod := range w.Cluster.Pods {
		has["undeclared namespace"] = has["undeclared namespace"] || w.Cluster.Namespaces[pod.Namespace] == nil
		has["no labels"] = has["no labels"] || len(pod.Labels) == 0
		has["many labels"] = has["many labels"] || len(pod.Labels) > 6
		has["host network"] = has["host network"] || pod.HostNetwork
		has["finished"] = has["finished"] || pod.Finished
		for _, p := range pod.Ports {
			for _, o := range pod.Ports {
				has["one port of two names"] = has["one port of two names"] || p.Name != o.Name && p.ContainerPort == o.ContainerPort && p.Protocol == o.Protocol
			}
			for _, other := range w.Cluster.Pods {
				for _, o := range other.Ports {
					alike := pod.Namespace == other.Namespace && fmt.Sprint(pod.Labels) == fmt.Sprint(other.Labels) && other != pod
					has["name means two ports for the same labels"] = has["name means two ports for the same labels"] ||
						alike && p.Name == o.Name && p.Protocol == o.Protocol && p.ContainerPort != o.ContainerPort
				}
			}
		}
	}
	return has
}

func selectorHas(has map[string]bool, s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	has["match labels"] = has["match labels"] || len(s.MatchLabels) > 0
	has["long selector"] = has["long selector"] || len(s.MatchLabels)+len(s.MatchExpressions) > 2
	for _, e := range s.MatchExpressions {
		has["operator "+string(e.Operator)] = true
	}
}

func ruleHas(has map[string]bool, w *World, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	for _, p := range peers {
		selectorHas(has, p.PodSelector)
		selectorHas(has, p.NamespaceSelector)
		if p.IPBlock != nil {
			blockHas(has, w, p.IPBlock)
		}
	}
	for _, p := range ports {
		switch {
		case p.Port == nil:
			has["any port"] = true
		case p.EndPort != nil:
			has["range"] = true
			has["wide range"] = has["wide range"] || *p.EndPort-p.Port.IntVal > 1000
		case p.Port.Type == intstr.String:
			has["named port"] = true
		}
		if p.Protocol != nil {
			has[string(*p.Protocol)] = true
		}
	}
}

func blockHas(has map[string]bool, w *World, b *networkingv1.IPBlock) {
	cidr := netip.MustParsePrefix(b.CIDR)
	has["family 4"], has["family 6"] = has["family 4"] || cidr.Addr().Is4(), has["family 6"] || cidr.Addr().Is6()
	has["bits beyond the prefix"] = has["bits beyond the prefix"] || cidr != cidr.Masked()
	has["range outside"] = has["range outside"] || cidr.Bits() > 0 && cidr.Overlaps(netip.MustParsePrefix("192.0.2.0/27"))
	for i, text := range b.Except {
		e := netip.MustParsePrefix(text)
		for _, p := range w.Places[:Pods] {
			has["except over a pod"] = has["except over a pod"] || e.Contains(p.Addrs[0]) || e.Contains(p.Addrs[1])
		}
		for _, other := range b.Except[:i] {
			o := netip.MustParsePrefix(other)
			has["excepts nested"] = has["excepts nested"] || e.Overlaps(o) && e != o
			has["excepts apart"] = has["excepts apart"] || !e.Overlaps(o)
		}
	}
}
