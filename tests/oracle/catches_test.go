package oracle

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/tests/differential"
)

// TestFaultyEngineIsNoticed plants a fault in an engine: it reads other policies than those
// in force. What is printed is all answers and no more of the cluster than it takes.
func TestFaultyEngineIsNoticed(t *testing.T) {
	for name, fault := range map[string]func(*networkingv1.NetworkPolicy){
		"no exceptions": func(np *networkingv1.NetworkPolicy) {
			eachPeer(np, func(p *networkingv1.NetworkPolicyPeer) {
				if p.IPBlock != nil {
					p.IPBlock.Except = nil
				}
			})
		},
		"NotIn wants the key": func(np *networkingv1.NetworkPolicy) {
			for _, s := range selectors(np) {
				for _, e := range s.MatchExpressions {
					if e.Operator == metav1.LabelSelectorOpNotIn {
						s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOpExists})
					}
				}
			}
		},
		"ranges are one port": func(np *networkingv1.NetworkPolicy) {
			for i := range np.Spec.Ingress {
				for j := range np.Spec.Ingress[i].Ports {
					np.Spec.Ingress[i].Ports[j].EndPort = nil
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulty := differential.Judge{Name: "faulty", Take: func(c *policy.Cluster, n policy.Node) func(policy.Tuple) differential.Opinion {
				out := *c
				out.NetworkPolicies = map[types.NamespacedName]*networkingv1.NetworkPolicy{}
				for name, np := range c.NetworkPolicies {
					np = np.DeepCopy()
					fault(np)
					out.NetworkPolicies[name] = np
				}
				return takeKubeNetworkPolicies(&out, n)
			}}
			text := differential.Find(t, differential.Options{Seed: *seed, Sets: 30, Judges: []differential.Judge{cyclonus, faulty}})
			t.Log(text)
			if !strings.Contains(text, "faulty differs:") {
				t.Fatal("nobody noticed")
			}
			for _, said := range []string{"reference: ", "kernel: ", "cyclonus: ", "faulty: "} {
				if strings.Count(text, "\n  "+said) != 1 {
					t.Errorf("not one answer of %s", said)
				}
			}
			for part, most := range map[string]int{"kind: NetworkPolicy": 2, "kind: Pod": 2, "\n": 80,
				"\n  - from:": 1, "\n  - to:": 1, "  - ports:": 1, "operator:": 2, "cidr:": 1} {
				if n := strings.Count(text, part); n > most {
					t.Errorf("%d of %q are left of a failure that needs %d:\n%s", n, part, most, text)
				}
			}
		})
	}
}

func eachPeer(np *networkingv1.NetworkPolicy, f func(*networkingv1.NetworkPolicyPeer)) {
	for i := range np.Spec.Ingress {
		for j := range np.Spec.Ingress[i].From {
			f(&np.Spec.Ingress[i].From[j])
		}
	}
	for i := range np.Spec.Egress {
		for j := range np.Spec.Egress[i].To {
			f(&np.Spec.Egress[i].To[j])
		}
	}
}
