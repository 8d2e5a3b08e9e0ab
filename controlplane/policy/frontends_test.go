package policy

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
)

// What this node's NAT turns to the node itself no hook would see again: such a Service is
// no frontend, and packets to it are judged on the address they name.
func TestServiceServedByThisNodeIsNoFrontend(t *testing.T) {
	service := func(name, ip string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 443, Protocol: corev1.ProtocolTCP}}},
		}
	}
	slice := func(name, address string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{address}}},
		}
	}
	name := func(n string) types.NamespacedName { return types.NamespacedName{Namespace: "shop", Name: n} }
	c := &Cluster{
		Services:       map[types.NamespacedName]*corev1.Service{name("api"): service("api", "10.96.0.1"), name("web"): service("web", "10.96.0.2")},
		EndpointSlices: map[types.NamespacedName]*discoveryv1.EndpointSlice{name("api-1"): slice("api", "192.0.2.1"), name("web-1"): slice("web", "10.0.0.9")},
	}
	n := Node{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	got := Compile(c, n, nil, NewAllocator()).State.Frontends
	for ip, want := range map[string]bool{"10.96.0.1": false, "10.96.0.2": true} {
		if _, ok := got[datapath.Frontend{Addr: netip.MustParseAddr(ip), Protocol: datapath.TCP, Port: 443}]; ok != want {
			t.Errorf("%s is a frontend: %v, want %v", ip, ok, want)
		}
	}
}
