package main

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weirnet/weir/tests/bench/apiserver"
)

// synthetic is a cluster of a hundred pods a namespace, ten of each of ten applications. Its
// policies lie evenly in the namespaces; each has one application let in another by a port,
// but that every tenth names another namespace's and every twentieth a block of addresses.
type synthetic struct{ pods, policies int }

func (c synthetic) namespaces() int { return max(1, c.pods/100) }

func namespaceName(i int) string { return fmt.Sprintf("team-%d", i) }

func appName(i int) string { return fmt.Sprintf("app-%d", i%10) }

func podLabels(i int) map[string]string {
	return map[string]string{"app": appName(i), "tier": fmt.Sprint("tier-", i%3), "pod-template-hash": fmt.Sprintf("%08x", i*2654435761%(1<<32)), "version": fmt.Sprint("v", i%7)}
}

// pod is number i, on some other node.
func (c synthetic) pod(i int) *corev1.Pod {
	return apiserver.Pod(namespaceName(i%c.namespaces()), fmt.Sprintf("pod-%d", i), fmt.Sprintf("other-%d", i/100), podLabels(i/c.namespaces()), fmt.Sprintf("10.%d.%d.%d", 64+i>>16, i>>8&255, i&255))
}

// local is number i of this node's, before it has addresses.
func (c synthetic) local(i int) *corev1.Pod {
	return apiserver.Pod(namespaceName(i%c.namespaces()), fmt.Sprintf("local-%d", i), "node-a", podLabels(i/c.namespaces()))
}

// policy is number i; the port it names can be another.
func (c synthetic) policy(i, port int) *networkingv1.NetworkPolicy {
	k := i / c.namespaces()
	peer := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: app(appName(k + 1))}}
	switch {
	case i%20 == 7:
		peer = networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("172.%d.%d.0/24", 16+i>>8%16, i&255)}}
	case i%10 == 9:
		peer.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespaceName((i + 1) % c.namespaces())}}
	}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespaceName(i % c.namespaces()), Name: fmt.Sprintf("policy-%d", i)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: app(appName(k))}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{peer}, Ports: []networkingv1.NetworkPolicyPort{portOf("TCP", port)}}},
		},
	}
}

// newcomerApp is one of those that newcomers lets in; no pod of the cluster is of them.
func newcomerApp(i int) string { return fmt.Sprint("newcomer-", i) }

// newcomers is a policy of this node's second pod.
func (c synthetic) newcomers() *networkingv1.NetworkPolicy {
	p, apps := c.policy(1, 3000), []string{}
	for i := range 50 {
		apps = append(apps, newcomerApp(i))
	}
	p.Name, p.Spec.Ingress[0].From[0] = "newcomers", networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: apps}}}}
	return p
}

func (c synthetic) objects() map[string][]runtime.Object {
	out := map[string][]runtime.Object{}
	for i := range c.namespaces() {
		out["namespaces"] = append(out["namespaces"], apiserver.Namespace(namespaceName(i)))
	}
	for i := range c.pods {
		out["pods"] = append(out["pods"], c.pod(i))
	}
	for i := range c.policies {
		out["networkpolicies"] = append(out["networkpolicies"], c.policy(i, 1000+i%100))
	}
	return out
}
