package policy_test

import (
	"fmt"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// BenchmarkRefusedBlocks is a node on which one tenant has many policies of 5,000 blocks,
// most of which do not fit: what everybody's next change has to wait for.
func BenchmarkRefusedBlocks(b *testing.B) {
	for _, n := range []int{1, 5, 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := newTenants()
			k.node.Limits.CIDRs = 8192
			for i := range n {
				np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "greedy", Name: fmt.Sprint("blocks", i)}}
				rule := networkingv1.NetworkPolicyIngressRule{}
				for j := range 5000 {
					cidr := fmt.Sprintf("%d.%d.%d.0/24", 20+i, j>>8, j&255)
					rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}})
				}
				np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{rule}
				k.cluster.NetworkPolicies[types.NamespacedName{Namespace: "greedy", Name: np.Name}] = np
			}
			k.compile()
			b.ReportAllocs()
			for b.Loop() {
				k.compile()
			}
		})
	}
}
