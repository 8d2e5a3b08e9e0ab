package policy

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
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
		pod := func(n types.NamespacedName, labels map[string]string) *corev1.Pod {
			return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, Labels: labels}}
		}
		cluster := &Cluster{
			Pods: map[types.NamespacedName]*corev1.Pod{from: pod(from, map[string]string{"app": "a"}), to: pod(to, nil)},
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
