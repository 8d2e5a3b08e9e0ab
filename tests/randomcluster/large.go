package randomcluster

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Large is a cluster as they are in practice, of a size: namespaces of a hundred pods with
// ten policies each, made by ten Deployments, and a node with some of its pods.
type Large struct {
	Cluster *policy.Cluster
	Node    policy.Node
	Locals  []policy.Local
}

// PodsOfNamespace are how many of Large's pods share a namespace, and LargeApps how many
// Deployments they come from.
const (
	PodsOfNamespace = 100
	LargeApps       = 10
)

// NewLarge makes one; the first of its pods, spread over the namespaces, are local.
func NewLarge(pods, policies, locals int) *Large {
	l := &Large{
		Cluster: &policy.Cluster{
			Namespaces:      map[string]*corev1.Namespace{},
			Pods:            map[types.NamespacedName]*policy.Pod{},
			NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
			Services:        map[types.NamespacedName]*corev1.Service{},
			EndpointSlices:  map[types.NamespacedName]*discoveryv1.EndpointSlice{},
		},
		Node: policy.Node{
			Name: "here", Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.1")},
			ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		},
	}
	namespaces := max(1, pods/PodsOfNamespace)
	for i := range namespaces {
		name := fmt.Sprintf("ns%d", i)
		l.Cluster.Namespaces[name] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{"team": fmt.Sprintf("team%d", i%20), policy.NamespaceLabel: name},
		}}
	}
	for i := range pods {
		pod := LargePod(i, namespaces)
		name := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
		l.Cluster.Pods[name] = pod
		if every := pods / locals; i%every == 0 && len(l.Locals) < locals {
			n := uint32(len(l.Locals) + 1)
			l.Locals = append(l.Locals, policy.Local{Pod: name, Number: n, Endpoint: datapath.Endpoint{
				Ifindex: 100 + n, NetnsCookie: uint64(n), Addr4: pod.Addresses[0],
			}})
		}
	}
	for i := range policies {
		np := LargePolicy(i, namespaces)
		l.Cluster.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
	}
	for i := range pods / 20 {
		l.addService(i, namespaces)
	}
	return l
}

// LargePod is pod i of a Large with so many namespaces.
func LargePod(i, namespaces int) *policy.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: fmt.Sprintf("ns%d", i%namespaces), Name: fmt.Sprintf("pod-%d", i),
		UID: types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)),
		Labels: map[string]string{
			"app": fmt.Sprintf("app%d", i/namespaces%LargeApps), "tier": fmt.Sprintf("tier%d", i/namespaces%3),
			"pod-template-hash": fmt.Sprintf("%x", i/namespaces%LargeApps*7919),
		},
	}}
	pod.Spec.NodeName = fmt.Sprintf("node%d", i/100)
	pod.Spec.Containers = []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
	pod.Status.PodIP = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()
	return policy.PodOf(pod)
}

// LargePolicy is policy i: it lets its namespace, another team's tier and a block reach an app.
func LargePolicy(i, namespaces int) *networkingv1.NetworkPolicy {
	tcp, port, name := corev1.ProtocolTCP, intstr.FromInt32(8080), intstr.FromString("http")
	app := fmt.Sprintf("app%d", i/namespaces%LargeApps)
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: fmt.Sprintf("ns%d", i%namespaces), Name: fmt.Sprintf("policy-%d", i),
		UID: types.UID(fmt.Sprintf("00000000-0000-0000-0001-%012d", i)),
	}}
	select1 := func(k, v string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}
	}
	np.Spec.PodSelector = *select1("app", app)
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
		{From: []networkingv1.NetworkPolicyPeer{
			{PodSelector: select1("app", fmt.Sprintf("app%d", (i/namespaces+1)%LargeApps))},
			{NamespaceSelector: select1("team", fmt.Sprintf("team%d", i%20)), PodSelector: select1("tier", fmt.Sprintf("tier%d", i%3))},
		}, Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}}},
		{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("172.16.%d.0/24", i%200)}}}},
	}
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{
		{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}, Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &name}}},
		{To: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: select1(policy.NamespaceLabel, "kube-system")}}},
	}
	return np
}

func (l *Large) addService(i, namespaces int) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", i%namespaces), Name: fmt.Sprintf("svc-%d", i)}}
	s.Spec.ClusterIP = netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}).String()
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}
	l.Cluster.Services[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] = s
	name, port := "http", int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for k := range 5 {
		p := i*20 + k
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{netip.AddrFrom4([4]byte{10, byte(p >> 16), byte(p >> 8), byte(p)}).String()}})
	}
	l.Cluster.EndpointSlices[types.NamespacedName{Namespace: slice.Namespace, Name: slice.Name}] = slice
}
