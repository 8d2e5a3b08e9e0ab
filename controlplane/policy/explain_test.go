package policy

import (
	"net/netip"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestNearMissOfOneLabel: what is said of a label is all that the rule wants of it, and that
// nothing can be so where that is the case; of the rule's peers one that can be comes first.
func TestNearMissOfOneLabel(t *testing.T) {
	is := func(key string, op metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: values}
	}
	const in, notIn, exists, absent = metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist
	pods := func(match map[string]string, es ...metav1.LabelSelectorRequirement) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: match, MatchExpressions: es}}
	}
	spaces := func(es ...metav1.LabelSelectorRequirement) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: es}}
	}
	for _, c := range []struct {
		want  string
		peers []networkingv1.NetworkPolicyPeer
	}{
		{"pod label app=a, not app=b", []networkingv1.NetworkPolicyPeer{pods(map[string]string{"app": "b"})}},
		{"pod label app=a, rule wants app in (b)", []networkingv1.NetworkPolicyPeer{pods(nil, is("app", in, "b"))}},
		{"pod label app=a, rule wants app not in (a) and app in (a, b)", []networkingv1.NetworkPolicyPeer{pods(nil, is("app", notIn, "a"), is("app", in, "a", "b"))}},
		{"pod label app=a, rule wants app=b and app to be there", []networkingv1.NetworkPolicyPeer{pods(map[string]string{"app": "b"}, is("app", exists))}},
		{"pod label app=a, rule wants app not in (a) and app in (a), and nothing is that", []networkingv1.NetworkPolicyPeer{pods(nil, is("app", notIn, "a"), is("app", in, "a"))}},
		{"pod has no label tier, rule wants tier to be there and tier not to be there, and nothing is that",
			[]networkingv1.NetworkPolicyPeer{pods(nil, is("tier", exists), is("tier", absent))}},
		{"namespace label kubernetes.io/metadata.name=x, rule wants kubernetes.io/metadata.name not to be there, and nothing is that",
			[]networkingv1.NetworkPolicyPeer{spaces(is(NamespaceLabel, absent))}},
		{"pod label app=a, not app=b; pod has no label tier, rule wants tier to be there", []networkingv1.NetworkPolicyPeer{
			pods(nil, is("app", notIn, "a"), is("app", in, "a")), pods(map[string]string{"app": "b"}, is("tier", exists))}},
	} {
		from, to := types.NamespacedName{Namespace: "x", Name: "from"}, types.NamespacedName{Namespace: "x", Name: "to"}
		pod := func(n types.NamespacedName, labels map[string]string) *Pod {
			return &Pod{Namespace: n.Namespace, Name: n.Name, Labels: labels}
		}
		cluster := &Cluster{
			Pods: map[types.NamespacedName]*Pod{from: pod(from, map[string]string{"app": "a"}), to: pod(to, nil)},
			NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{{Namespace: "x", Name: "np"}: {
				ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "np"},
				Spec:       networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: c.peers}}},
			}},
		}
		got := Explain(cluster, Node{}, Tuple{From: End{Pod: from}, To: End{Pod: to}, Protocol: 6, Port: 80}).Ingress.NearMisses
		if len(got) != 1 || got[0].Reason != c.want {
			t.Errorf("said %+v, want %q", got, c.want)
		}
	}
}

// TestNearMissOfBlocks: of a rule's blocks the nearest is named, and of rules the nearer first.
func TestNearMissOfBlocks(t *testing.T) {
	block := func(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
	}
	type rule = []networkingv1.NetworkPolicyPeer
	for _, c := range []struct {
		from  string
		rules []rule
		want  []string
	}{
		{"10.77.0.2", []rule{{block("192.168.0.0/16"), block("10.77.0.0/24", "10.77.0.2/32")}}, []string{"address 10.77.0.2 is in the exception 10.77.0.2/32 of 10.77.0.0/24"}},
		{"10.77.0.2", []rule{{block("10.77.0.3/32"), block("10.0.0.0/8", "10.64.0.0/10")}}, []string{"address 10.77.0.2 is in the exception 10.64.0.0/10 of 10.0.0.0/8"}},
		{"10.77.0.2", []rule{{block("fd00::/8"), block("192.168.0.0/16"), block("10.77.1.0/24"), block("10.0.0.0/16")}}, []string{"address 10.77.0.2 is not in 10.77.1.0/24"}},
		{"10.77.0.2", []rule{{block("a4d::/16"), block("240.0.0.0/4")}}, []string{"address 10.77.0.2 is not in 240.0.0.0/4"}}, // 0a4d are its first bits
		{"fd00:1::5", []rule{{block("10.0.0.0/8"), block("::/1"), block("fd00:2::/32"), block("fd00:1::4/128")}}, []string{"address fd00:1::5 is not in fd00:1::4/128"}},
		{"10.77.0.2", []rule{{block("fd00::/8")}, {block("192.168.0.0/16")}, {block("10.77.0.0/24", "10.77.0.0/30")}, {block("10.77.1.0/24")}}, []string{
			"address 10.77.0.2 is in the exception 10.77.0.0/30 of 10.77.0.0/24", "address 10.77.0.2 is not in 10.77.1.0/24",
			"address 10.77.0.2 is not in 192.168.0.0/16", "address 10.77.0.2 is not in fd00::/8"}},
	} {
		to, np := types.NamespacedName{Namespace: "x", Name: "to"}, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "np"}}
		for _, peers := range c.rules {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers})
		}
		cluster := &Cluster{
			Pods:            map[types.NamespacedName]*Pod{to: {Namespace: "x", Name: "to"}},
			NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{{Namespace: "x", Name: "np"}: np},
		}
		var said []string
		for _, m := range Explain(cluster, Node{}, Tuple{From: End{Addr: netip.MustParseAddr(c.from)}, To: End{Pod: to}, Protocol: 6, Port: 80}).Ingress.NearMisses {
			said = append(said, m.Reason)
		}
		if !slices.Equal(said, c.want) {
			t.Errorf("from %s it says\n%q, want\n%q", c.from, said, c.want)
		}
	}
}
