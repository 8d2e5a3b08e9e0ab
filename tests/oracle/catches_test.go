package oracle

import (
	"slices"
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
			text := differential.Find(t, differential.Options{Seed: 1, Sets: 30, Judges: []differential.Judge{cyclonus, faulty}})
			t.Log(text)
			_, text, _ = strings.Cut(text, "\nShrunk: ")
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

// TestFaultyExplanationIsNoticed has the reviewer see other explanations than were given.
func TestFaultyExplanationIsNoticed(t *testing.T) {
	for name, fault := range map[string]func(*policy.Side){
		"one of two rules": func(s *policy.Side) {
			if len(s.Rules) > 1 {
				s.Rules = s.Rules[1:]
			}
		},
		"one of two policies": func(s *policy.Side) {
			if len(s.IsolatedBy) > 1 {
				s.IsolatedBy = s.IsolatedBy[1:]
			}
		},
		"another value":            inWords(" in (", " in (other"),
		"another port":             inWords("rule has 80/", "rule has 81/"),
		"the label has that value": inWords("pod label app=a, ", "pod label app=b, "),
		"too little":               inWords("; port ", "; "),
		"no near miss":             func(s *policy.Side) { s.NearMisses = s.NearMisses[:max(len(s.NearMisses)-1, 0)] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulty := func(c *policy.Cluster, n policy.Node) func(policy.Tuple, policy.Answer) error {
				say := review(&counts{})(c, n)
				return func(tuple policy.Tuple, a policy.Answer) error {
					for _, s := range []**policy.Side{&a.Egress, &a.Ingress} {
						if *s != nil {
							other := **s
							other.NearMisses = slices.Clone(other.NearMisses)
							fault(&other)
							*s = &other
						}
					}
					return say(tuple, a)
				}
			}
			text := differential.Find(t, differential.Options{Seed: 1, Sets: 30, Review: faulty})
			t.Log(text)
			if !strings.Contains(text, "explanation differs:") {
				t.Error("nobody noticed")
			}
		})
	}
}

func inWords(is, said string) func(*policy.Side) {
	return func(s *policy.Side) {
		for i := range s.NearMisses {
			s.NearMisses[i].Reason = strings.ReplaceAll(s.NearMisses[i].Reason, is, said)
		}
	}
}
