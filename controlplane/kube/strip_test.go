package kube

import (
	"math/rand"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/tests/randomcluster"
)

func ptr[T any](v T) *T { return &v }

// noise is what an API server and a kubelet put around what we use.
func noise(m metav1.ObjectMeta) metav1.ObjectMeta {
	m.ResourceVersion, m.Generation = "17", 3
	m.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:status":{}}`)}}}
	m.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}"}
	m.CreationTimestamp = metav1.NewTime(time.Unix(1, 0))
	m.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-1"}}
	return m
}

// TestStripChangesNoVerdict compiles random clusters as the API would hold them, whole and
// stripped.
func TestStripChangesNoVerdict(t *testing.T) {
	for seed := range int64(60) {
		w := randomcluster.New(rand.New(rand.NewSource(seed)))
		full, bare := *w.Cluster, *w.Cluster
		bare.NetworkPolicies = map[types.NamespacedName]*networkingv1.NetworkPolicy{}
		for k, p := range w.Cluster.NetworkPolicies {
			p = p.DeepCopy()
			p.ObjectMeta = noise(p.ObjectMeta)
			bare.NetworkPolicies[k] = stripNetworkPolicy(p)
		}
		bare.Namespaces = map[string]*corev1.Namespace{}
		for k, n := range w.Cluster.Namespaces {
			bare.Namespaces[k] = stripNamespace(n)
		}
		full.Services, full.EndpointSlices = services(), endpointSlices()
		bare.Services, bare.EndpointSlices = map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*discoveryv1.EndpointSlice{}
		for k, s := range full.Services {
			bare.Services[k] = stripService(s)
		}
		for k, s := range full.EndpointSlices {
			bare.EndpointSlices[k] = stripEndpointSlice(s)
		}
		a, b := policy.Compile(&full, w.Node, w.Locals, policy.NewAllocator()), policy.Compile(&bare, w.Node, w.Locals, policy.NewAllocator())
		a.Enforced, b.Enforced = nil, nil
		if !sameResult(a, b) {
			t.Fatalf("seed %d: another result:\n%+v\n%+v", seed, a, b)
		}
		if len(a.State.Frontends) < 5 {
			t.Fatalf("seed %d: only %d frontends: the services do not count", seed, len(a.State.Frontends))
		}
	}
}

// sameResult compares what a Result shows; it also remembers the objects themselves.
func sameResult(a, b *policy.Result) bool {
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range x.NumField() {
		if x.Type().Field(i).IsExported() && !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			return false
		}
	}
	return true
}

func services() map[types.NamespacedName]*corev1.Service {
	return map[types.NamespacedName]*corev1.Service{
		{Namespace: "x", Name: "web"}: {ObjectMeta: noise(metav1.ObjectMeta{Namespace: "x", Name: "web"}), Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"a": "b"}, ClusterIP: "10.96.0.9", ClusterIPs: []string{"10.96.0.9", "fd96::9"},
			ExternalIPs: []string{"192.0.2.99"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}},
		}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
			{IP: "192.0.2.80"}, {IP: "192.0.2.81", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example"},
		}}}},
		{Namespace: "x", Name: "limited"}: {ObjectMeta: noise(metav1.ObjectMeta{Namespace: "x", Name: "limited"}), Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.11", Ports: []corev1.ServicePort{{Port: 443}}, LoadBalancerSourceRanges: []string{"192.0.2.0/24"},
			SessionAffinity: corev1.ServiceAffinityClientIP, InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyLocal),
			SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(9))}},
		}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.82"}}}}},
		{Namespace: "x", Name: "foreign"}: {ObjectMeta: noise(metav1.ObjectMeta{
			Namespace: "x", Name: "foreign", Labels: map[string]string{policy.LabelServiceProxy: "mesh"},
		}), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.12", Ports: []corev1.ServicePort{{Port: 443}}}},
		{Namespace: "x", Name: "here"}: {Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Ports: []corev1.ServicePort{{Port: 443}}}},
		{Namespace: "x", Name: "out"}:  {Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}},
	}
}

func endpointSlices() map[types.NamespacedName]*discoveryv1.EndpointSlice {
	return map[types.NamespacedName]*discoveryv1.EndpointSlice{
		{Namespace: "x", Name: "web-1"}: {
			ObjectMeta:  noise(metav1.ObjectMeta{Namespace: "x", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}),
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: ptr(int32(8080)), Protocol: ptr(corev1.ProtocolTCP)}},
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}, Zone: ptr("z")},
				{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false), Terminating: ptr(true)}},
			},
		},
		{Namespace: "x", Name: "here-1"}: {
			ObjectMeta:  noise(metav1.ObjectMeta{Namespace: "x", Name: "here-1", Labels: map[string]string{discoveryv1.LabelServiceName: "here", "a": "b"}}),
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.17"}, TargetRef: &corev1.ObjectReference{Name: "p"}}},
		},
	}
}

func TestStripLeavesNoise(t *testing.T) {
	n := &corev1.Node{
		ObjectMeta: noise(metav1.ObjectMeta{Name: "n", UID: "u"}),
		Spec:       corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24"}, Taints: make([]corev1.Taint, 1)},
		Status: corev1.NodeStatus{Images: make([]corev1.ContainerImage, 50), Conditions: make([]corev1.NodeCondition, 5), Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.1"},
			{Type: corev1.NodeExternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "fd00::1"},
		}},
	}
	wantNode := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", CreationTimestamp: n.CreationTimestamp}, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "fd00::1"}}},
	}
	if got := stripNode(n); !reflect.DeepEqual(got, wantNode) {
		t.Errorf("node\n got %+v\nwant %+v", got, wantNode)
	}
}
