package policy_test

import (
	"fmt"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/randomcluster"
)

// Clusters, by pods and policies.
var sizes = [][2]int{{1000, 100}, {10_000, 1000}, {100_000, 10_000}}

// BenchmarkIncremental is what one change costs, and everything at once.
func BenchmarkIncremental(b *testing.B) {
	for _, size := range sizes {
		l := randomcluster.NewLarge(size[0], size[1], 110)
		b.Run(fmt.Sprintf("pods=%d/start", size[0]), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				policy.NewIncremental(policy.Before{}, l.Cluster, l.Node, l.Locals, policy.NewAllocator())
			}
		})
		e := newLargeEdits(size)
		for _, change := range e.changes() {
			b.Run(fmt.Sprintf("pods=%d/%s", size[0], change.name), func(b *testing.B) {
				b.ReportAllocs()
				touched := 0
				for b.Loop() {
					for _, ch := range [2]policy.Changes{change.there, change.back} {
						touched += count(e.apply(b, ch).Delta)
					}
				}
				b.ReportMetric(float64(touched)/float64(2*b.N), "keys/op")
			})
		}
	}
}

func count(d *datapath.Delta) int {
	return len(d.Peers) + len(d.Facts) + len(d.Rulesets) + len(d.Masks) + len(d.Frontends) + len(d.Services)
}

// largeEdits is a large cluster and changes to it.
type largeEdits struct {
	*randomcluster.Large
	ids   *policy.Allocator
	inc   *policy.Incremental
	space int // namespaces
	pods  int
}

type namedChange struct {
	name        string
	there, back policy.Changes
}

func newLargeEdits(size [2]int) *largeEdits {
	e := &largeEdits{Large: randomcluster.NewLarge(size[0], size[1], 110), ids: policy.NewAllocator(), pods: size[0], space: size[0] / randomcluster.PodsOfNamespace}
	e.inc, _ = policy.NewIncremental(policy.Before{}, e.Cluster, e.Node, e.Locals, e.ids)
	e.ids.Forget()
	return e
}

func (e *largeEdits) apply(t testing.TB, ch policy.Changes) *policy.Step {
	s := e.inc.Apply(e.Node, e.Locals, ch)
	if s == nil {
		t.Fatal("it took a whole compilation")
	}
	e.ids.Forget()
	return s
}

// changes of one object each, and back: of objects that concern pods of this node.
func (e *largeEdits) changes() []namedChange {
	here := e.Cluster.Pods[e.Locals[0].Pod]
	np := randomcluster.LargePolicy(0, e.space) // it selects the first pod here
	old := e.Cluster.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}]
	other := old.DeepCopy()
	other.Spec.Ingress[0].Ports[0].Port.IntVal = 9090
	added := old.DeepCopy()
	added.Name = "added"
	byKey := func(key string) *networkingv1.NetworkPolicy {
		np := old.DeepCopy()
		np.Name, np.Spec.PodSelector.MatchLabels = key, map[string]string{key: "none"}
		return np
	}
	policies := func(np *networkingv1.NetworkPolicy, was bool) policy.Changes {
		ch := policy.Changes{NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{types.NamespacedName{Namespace: np.Namespace, Name: np.Name}: np}}
		if was {
			ch.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = nil
		}
		return ch
	}
	pods := func(all ...*policy.Pod) policy.Changes {
		ch := policy.Changes{Pods: map[types.NamespacedName]*policy.Pod{}}
		for _, p := range all {
			ch.Pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = p
		}
		return ch
	}
	gone := func(ch policy.Changes) policy.Changes {
		out := policy.Changes{Pods: map[types.NamespacedName]*policy.Pod{}}
		for n := range ch.Pods {
			out.Pods[n] = nil
		}
		return out
	}
	fresh := randomcluster.LargePod(e.pods+e.space, e.space) // in a namespace with pods here
	fresh.Namespace = here.Namespace
	remote := e.Cluster.Pods[types.NamespacedName{Namespace: here.Namespace, Name: fmt.Sprint("pod-", e.space)}]
	relabelled := remote.Clone()
	relabelled.Labels["app"] = "app9"
	var events []*policy.Pod
	for i := range 100 {
		events = append(events, randomcluster.LargePod(e.pods+1000+i*7, e.space))
	}
	return []namedChange{
		{"policy-added", policies(added, false), policies(added, true)},
		{"policy-changed", policies(other, false), policies(old, false)},
		{"policy-deleted", policies(old, true), policies(old, false)},
		{"pod-added", pods(fresh), gone(pods(fresh))},
		{"pod-relabelled", pods(relabelled), pods(remote)},
		{"key-of-no-pod", policies(byKey("self"), false), policies(byKey("self"), true)},
		{"key-of-all-pods", policies(byKey("pod-template-hash"), false), policies(byKey("pod-template-hash"), true)},
		{"100-pod-events", pods(events...), gone(pods(events...))},
	}
}
