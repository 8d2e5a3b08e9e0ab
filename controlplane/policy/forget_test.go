package policy_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Edits without end do not make the tables grow. What is in use keeps its numbers, what went
// last keeps its name, and no number ever stands for something else.
func TestEditsAreForgotten(t *testing.T) {
	k := newTenants()
	size := func() int {
		text, err := json.Marshal(k.ids)
		if err != nil {
			t.Fatal(err)
		}
		return len(text)
	}
	good := func(r *policy.Result) datapath.Endpoint { return r.State.Endpoints[1] }
	was := good(k.compile())
	meant := map[uint32]policy.Rule{}
	blocks := map[identity.Number]string{}
	largest, last := 0, uint32(0)
	for i := range 300 {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "greedy", Name: "np", UID: types.UID(fmt.Sprint(i))}}
		for j := range 100 {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{
				{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.0/24", i%200, j)}},
				{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{fmt.Sprint("k", i): fmt.Sprint(j)}}},
			}})
		}
		k.cluster.NetworkPolicies[types.NamespacedName{Namespace: "greedy", Name: "np"}] = np
		pod := *k.cluster.Pods[types.NamespacedName{Namespace: "greedy", Name: "p"}]
		pod.Labels = map[string]string{fmt.Sprint("k", i): "0"}
		k.cluster.Pods[types.NamespacedName{Namespace: "greedy", Name: "p"}] = &pod
		r := k.compile()
		k.ids.Forget()
		if now := good(r); now != was {
			t.Fatalf("edit %d of another tenant's policy: %+v, was %+v", i, now, was)
		}
		for _, set := range r.State.Rulesets {
			for _, g := range set.Groups {
				for _, id := range g.Rules {
					rule, ok := k.ids.Rule(id)
					if before, seen := meant[id]; !ok || seen && !reflect.DeepEqual(before, rule) {
						t.Fatalf("rule %d is %+v, was %+v", id, rule, before)
					}
					meant[id], last = rule, max(last, id)
				}
			}
		}
		for cidr, n := range r.Blocks {
			if before, seen := blocks[n]; seen && before != cidr.String() {
				t.Fatalf("block %d is %s, was %s", n, cidr, before)
			}
			blocks[n] = cidr.String()
		}
		largest = max(largest, size())
	}
	if largest > 3<<20 {
		t.Errorf("the tables grew to %d bytes", largest)
	}
	if _, ok := k.ids.Rule(last); !ok {
		t.Error("the newest rule has no name")
	}
	if _, ok := k.ids.Rule(datapath.RuleFirst + 3); ok {
		t.Error("an old one has, after 30,000 others")
	}

	text, err := json.Marshal(k.ids)
	if err != nil {
		t.Fatal(err)
	}
	again := policy.NewAllocator()
	if err := json.Unmarshal(text, again); err != nil {
		t.Fatal(err)
	}
	before := k.compile().State.Text()
	k.ids = again
	if now := k.compile().State.Text(); now != before {
		t.Errorf("after a restart:\n%s\nbefore:\n%s", now, before)
	}
	k.ids.Forget()
}
