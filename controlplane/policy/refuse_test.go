package policy

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/datapath"
)

// ranges adds n port ranges to a policy's first rule.
func ranges(np *networkingv1.NetworkPolicy, n int) {
	for i := range n {
		low, high := intstr.FromInt32(int32(1000+2*i)), int32(1001+2*i)
		np.Spec.Ingress[0].Ports = append(np.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Port: &low, EndPort: &high})
	}
}

// Too many wide groups together: the policy with the most isolates and allows
// nothing, the other goes on, and the reference says the same when it is told.
func TestTooManyRangesRefuseTheLargestPolicy(t *testing.T) {
	k := semanticsTalk(t, `{podSelector: {matchLabels: {app: a}}, ingress: [{ports: [{port: 80}]}]}`)
	k.answer(t, "apply\nkind: NetworkPolicy\nmetadata: {name: big, namespace: x}\nspec: {podSelector: {}, ingress: [{ports: [{port: 90}]}]}")
	big := types.NamespacedName{Namespace: "x", Name: "big"}
	ranges(k.cluster.NetworkPolicies[big], datapath.WideMax)
	ranges(k.cluster.NetworkPolicies[types.NamespacedName{Namespace: "x", Name: "p"}], 2)
	if r := Compile(k.cluster, k.node, k.locals, k.ids); len(r.Errors) != 0 {
		t.Fatalf("%d ranges, two of them twice, are %v", datapath.WideMax, r.Errors)
	}
	ranges(k.cluster.NetworkPolicies[big], datapath.WideMax+1)
	r := Compile(k.cluster, k.node, k.locals, k.ids)
	if len(r.Errors) != 1 || r.Errors[0].Name != "big" || !r.Enforced.Refused[big] {
		t.Fatalf("errors %v", r.Errors)
	}
	k.cluster = r.Enforced
	k.probe(t, r.State, "c>a:80/tcp", true)
	k.probe(t, r.State, "c>a:1001/tcp", true)
	k.probe(t, r.State, "c>a:90/tcp", false)
	k.probe(t, r.State, "c>b:90/tcp", false)
	k.probe(t, r.State, "b>c:80/tcp", true)
	_, rule, _ := r.State.Judge(r.State.Endpoints[2].Ingress, datapath.Peer{}, datapath.TCP, 90)
	if said, _ := k.ids.Rule(rule); said.Kind != KindRefused || len(said.IsolatedBy) != 1 || said.IsolatedBy[0].Name != "big" {
		t.Errorf("denied by %+v", said)
	}
}

// Thousands of exact ports are no scan at all.
func TestExactPortsAreNotScanned(t *testing.T) {
	k := semanticsTalk(t, `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`)
	np := k.cluster.NetworkPolicies[types.NamespacedName{Namespace: "x", Name: "p"}]
	for i := range 3000 {
		port := intstr.FromInt32(int32(i + 1))
		np.Spec.Ingress[0].Ports = append(np.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Port: &port})
	}
	r := Compile(k.cluster, k.node, k.locals, k.ids)
	if len(r.Errors) != 0 {
		t.Errorf("errors %v", r.Errors)
	}
	if n := len(r.State.Facts); n > 3 {
		t.Errorf("%d facts: the ports should share one set", n)
	}
}

// BenchmarkCompile is a node of 100 pods in a cluster of 10,000 with 500 policies.
func BenchmarkCompile(b *testing.B) {
	k := newTalk()
	for i := range 10_000 {
		pod := &Pod{}
		pod.Namespace, pod.Name = fmt.Sprint("ns", i%50), fmt.Sprint("p", i)
		pod.Labels = map[string]string{"app": fmt.Sprint("app", i%40), "hash": fmt.Sprint(i)}
		addr := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		pod.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
		k.cluster.Pods[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
		if i < 100 {
			k.attach(pod.Namespace+"/"+pod.Name, []string{addr})
		}
	}
	for i := range 500 {
		np := &networkingv1.NetworkPolicy{}
		np.Namespace, np.Name = fmt.Sprint("ns", i%50), fmt.Sprint("np", i)
		np.Spec.PodSelector.MatchLabels = map[string]string{"app": fmt.Sprint("app", i%40)}
		for j := range 10 {
			port, rule := intstr.FromInt32(int32(80+j)), networkingv1.NetworkPolicyIngressRule{}
			rule.Ports = []networkingv1.NetworkPolicyPort{{Port: &port}}
			for p := range 5 {
				peer := networkingv1.NetworkPolicyPeer{PodSelector: np.Spec.PodSelector.DeepCopy(), NamespaceSelector: np.Spec.PodSelector.DeepCopy()}
				peer.PodSelector.MatchLabels["app"] = fmt.Sprint("app", (i+p+j)%40)
				peer.NamespaceSelector.MatchLabels = map[string]string{NamespaceLabel: fmt.Sprint("ns", (i+p)%50)}
				rule.From = append(rule.From, peer)
			}
			np.Spec.Ingress = append(np.Spec.Ingress, rule)
		}
		k.cluster.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
	}
	b.ReportAllocs()
	for b.Loop() {
		Compile(k.cluster, k.node, k.locals, k.ids)
	}
}
