package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
)

// scene is a Service web with a cluster IP of each family, and its slices.
type scene struct {
	service *corev1.Service
	slices  []*discoveryv1.EndpointSlice
	others  []*corev1.Service
	limits  datapath.Limits
}

func newScene() *scene {
	return &scene{service: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd96::1"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}}
}

// add adds a slice of web with one port and these endpoints.
func (s *scene) add(port int32, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: fmt.Sprintf("web-%d", len(s.slices)), Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: &port, Protocol: new(corev1.ProtocolTCP)}},
	}
	if len(endpoints) > 0 && strings.Contains(endpoints[0].Addresses[0], ":") {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
	s.slices = append(s.slices, slice)
	return slice
}

func (s *scene) compile() *Result {
	c := &Cluster{Services: map[types.NamespacedName]*corev1.Service{}, EndpointSlices: map[types.NamespacedName]*discoveryv1.EndpointSlice{}}
	for _, x := range append(s.others, s.service) {
		c.Services[types.NamespacedName{Namespace: x.Namespace, Name: x.Name}] = x
	}
	for _, x := range s.slices {
		c.EndpointSlices[types.NamespacedName{Namespace: x.Namespace, Name: x.Name}] = x
	}
	return Compile(c, Node{Name: "here", Limits: s.limits}, nil, NewAllocator())
}

// translated is each address and port with its backends, "" where connections are refused.
func (s *scene) translated() map[string]string {
	out := map[string]string{}
	for f, service := range s.compile().State.Services {
		var backends []string
		for _, b := range service.Backends {
			backends = append(backends, b.String())
		}
		out[fmt.Sprintf("%s %d", f.Addr, f.Port)] = strings.Join(backends, " ")
	}
	return out
}

func (s *scene) want(t *testing.T, want map[string]string) {
	t.Helper()
	if got := s.translated(); !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func at(address string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{address}}
}

func TestServiceAddressesAndPorts(t *testing.T) {
	s := newScene()
	s.service.Spec.ExternalIPs = []string{"192.0.2.7"}
	s.service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
		{IP: "192.0.2.8"}, {IP: "192.0.2.9", IPMode: new(corev1.LoadBalancerIPModeProxy)}, {IP: "192.0.2.10", IPMode: new(corev1.LoadBalancerIPModeVIP)}, {Hostname: "lb.example"},
	}
	s.service.Spec.Ports[0].NodePort = 30080
	s.service.Spec.Ports = append(s.service.Spec.Ports, corev1.ServicePort{Name: "sctp", Port: 9, Protocol: corev1.ProtocolSCTP})
	s.add(8080, at("10.0.0.2"), at("10.0.0.1"), at("10.0.0.2"))
	s.add(8081, at("10.0.0.3"))
	s.add(8080, at("fd00::1"))
	other := s.add(9090, at("10.0.0.9"))
	other.Ports[0].Name = new("metrics")
	s.add(9090, at("10.0.0.9")).Ports[0].Protocol = new(corev1.ProtocolUDP)
	s.add(9090, at("10.0.0.9")).Labels[discoveryv1.LabelServiceName] = "another"
	s.add(9090, at("10.0.0.9")).Ports[0].Port = nil
	four, six := "10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8081", "[fd00::1]:8080"
	s.want(t, map[string]string{"10.96.0.1 80": four, "fd96::1 80": six, "192.0.2.7 80": four, "192.0.2.8 80": four, "192.0.2.10 80": four})

	s.service.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
	s.want(t, map[string]string{"10.96.0.1 80": four, "fd96::1 80": six, "192.0.2.7 80": four})
}

func TestServicesThatAreNotTranslated(t *testing.T) {
	for name, change := range map[string]func(*corev1.Service){
		"headless":       func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} },
		"ExternalName":   func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
		"another proxy":  func(s *corev1.Service) { s.Labels = map[string]string{LabelServiceProxy: "mesh"} },
		"no address yet": func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil },
		"SCTP":           func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP },
	} {
		s := newScene()
		s.add(8080, at("10.0.0.1"))
		change(s.service)
		if got := s.translated(); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestServiceAffinity(t *testing.T) {
	s := newScene()
	s.service.Spec.ExternalIPs = []string{"192.0.2.7"}
	of := func(addr string) *datapath.Service {
		return s.compile().State.Services[datapath.Frontend{Addr: netip.MustParseAddr(addr), Protocol: datapath.TCP, Port: 80}]
	}
	plain := of("10.96.0.1")
	if plain.Affinity != 0 {
		t.Errorf("affinity %d without being asked for", plain.Affinity)
	}
	s.service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	if got := of("10.96.0.1"); got.Affinity != 10800 || got.ID != plain.ID {
		t.Errorf("%+v, want the API's default and the id of before", got)
	}
	s.service.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(7))}}
	if got := of("10.96.0.1"); got.Affinity != 7 {
		t.Errorf("affinity %d, want 7", got.Affinity)
	}
	if of("192.0.2.7").ID != plain.ID || of("fd96::1").ID == plain.ID {
		t.Error("affinity is of a port and family, whatever address is named")
	}
}

// Nobody's external address takes a cluster IP over, whatever the names.
func TestExternalAddressesComeLast(t *testing.T) {
	s := newScene()
	s.add(8080, at("10.0.0.1"))
	s.others = []*corev1.Service{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "a"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.66", ExternalIPs: []string{"10.96.0.1", "192.0.2.7"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "more", Port: 81}}},
	}}
	s.want(t, map[string]string{
		"10.96.0.1 80": "10.0.0.1:8080", "fd96::1 80": "",
		"10.96.0.66 80": "", "10.96.0.66 81": "", "10.96.0.1 81": "", "192.0.2.7 80": "", "192.0.2.7 81": "",
	})
}

// What does not fit is refused by object, and the others stay.
func TestServicesThatDoNotFit(t *testing.T) {
	for _, limits := range []datapath.Limits{{Services: 3}, {Backends: 5}} {
		s := newScene()
		s.limits = limits
		s.add(8080, at("10.0.0.1"), at("10.0.0.2"))
		s.others = []*corev1.Service{newScene().service}
		s.others[0].Name = "a"
		s.others[0].Spec.ClusterIPs = []string{"10.96.0.9", "fd96::9"}
		s.others[0].Spec.ClusterIP = "10.96.0.9"
		r := s.compile()
		if len(r.State.Services) != 2 || len(r.Errors) != 1 || r.Errors[0].Name != "web" || !strings.Contains(r.Errors[0].Message, "--map-size") {
			t.Errorf("%+v: %d translated, errors %v", limits, len(r.State.Services), r.Errors)
		}
		if size := r.State.Size(); size.Services > 3 || size.Backends > 5 {
			t.Errorf("%+v: %+v", limits, size)
		}
	}
}

// kubeProxys is the documented rule of kube-proxy, read off the API's description of
// conditions: an endpoint whose ready is not false gets connections; while no endpoint of
// those that may be used is ready, those that terminate and still serve do.
func kubeProxys(endpoints []discoveryv1.Endpoint, node string, localOnly bool) map[string]bool {
	isFalse := func(b *bool) bool { return b != nil && !*b }
	isTrue := func(b *bool) bool { return b != nil && *b }
	ready, draining := map[string]bool{}, map[string]bool{}
	for _, e := range endpoints {
		if localOnly && (e.NodeName == nil || *e.NodeName != node) {
			continue
		}
		if !isFalse(e.Conditions.Ready) {
			ready[e.Addresses[0]+":8080"] = true
		}
		if isTrue(e.Conditions.Terminating) && !isFalse(e.Conditions.Serving) {
			draining[e.Addresses[0]+":8080"] = true
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return draining
}

func TestBackendsAreKubeProxys(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	flag := func() *bool { return []*bool{nil, new(true), new(false), new(false)}[random.IntN(4)] }
	outcomes := map[string]int{}
	for range 20000 {
		s := newScene()
		local := random.IntN(2) == 0
		if local {
			s.service.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
		}
		s.service.Spec.ClusterIPs = s.service.Spec.ClusterIPs[:1]
		s.service.Spec.ExternalIPs = []string{"192.0.2.7"}
		var all []discoveryv1.Endpoint
		for range 1 + random.IntN(2) {
			var some []discoveryv1.Endpoint
			for range random.IntN(4) {
				e := at(fmt.Sprintf("10.0.0.%d", 1+random.IntN(9)))
				e.Conditions = discoveryv1.EndpointConditions{Ready: flag(), Serving: flag(), Terminating: flag()}
				e.NodeName = []*string{nil, new("here"), new("there")}[random.IntN(3)]
				some = append(some, e)
			}
			s.add(8080, some...)
			all = append(all, some...)
		}
		got := s.translated()
		for vip, localOnly := range map[string]bool{"10.96.0.1 80": local, "192.0.2.7 80": false} {
			want := strings.Join(slices.Sorted(maps.Keys(kubeProxys(all, "here", localOnly))), " ")
			if got[vip] != want {
				t.Fatalf("%s (local %v): %q, want %q of %+v", vip, localOnly, got[vip], want, all)
			}
			outcomes[fmt.Sprint(localOnly, want == "")]++
		}
	}
	if len(outcomes) != 4 {
		t.Errorf("not all was met: %v", outcomes)
	}
}

// BenchmarkServices compiles 5,000 Services of ten backends, none of which changed.
func BenchmarkServices(b *testing.B) {
	c := &Cluster{Services: map[types.NamespacedName]*corev1.Service{}, EndpointSlices: map[types.NamespacedName]*discoveryv1.EndpointSlice{}}
	for i := range 5000 {
		s := newScene()
		name := types.NamespacedName{Namespace: "shop", Name: fmt.Sprint("web", i)}
		s.service.Name, s.service.Spec.ClusterIP = name.Name, fmt.Sprintf("10.96.%d.%d", i>>8, i&255)
		s.service.Spec.ClusterIPs = nil
		var endpoints []discoveryv1.Endpoint
		for j := range 10 {
			endpoints = append(endpoints, at(fmt.Sprintf("10.%d.%d.%d", i>>8, i&255, j)))
		}
		slice := s.add(80, endpoints...)
		slice.Name, slice.Labels[discoveryv1.LabelServiceName] = name.Name, name.Name
		c.Services[name], c.EndpointSlices[name] = s.service, slice
	}
	ids, before := NewAllocator(), Before{}
	for b.Loop() {
		r := Recompile(before, c, Node{Name: "here"}, nil, ids)
		before = r.InForce()
	}
}
