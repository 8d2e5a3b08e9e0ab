package kube

import (
	"encoding/json"
	"net/netip"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/controlplane/policy"
)

// believed is the address that the pod shop/web of node a has after node from announced one.
func believed(t *testing.T, from string, pod func(*corev1.Pod), say func(*Announced)) string {
	t.Helper()
	s := newStores()
	node := func(name, cidr string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: "1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{cidr, "fd00::/64"}}}
	}
	web := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1", ResourceVersion: "1"}, Spec: corev1.PodSpec{NodeName: "a"}}
	other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "api", UID: "u2", ResourceVersion: "1"}, Spec: corev1.PodSpec{NodeName: "a"},
		Status: corev1.PodStatus{PodIP: "10.0.1.6", PodIPs: []corev1.PodIP{{IP: "10.0.1.6"}}}}
	gone := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "job", UID: "u3", ResourceVersion: "1"}, Spec: corev1.PodSpec{NodeName: "a"},
		Status: corev1.PodStatus{Phase: corev1.PodSucceeded, PodIP: "10.0.1.7", PodIPs: []corev1.PodIP{{IP: "10.0.1.7"}}}}
	pod(web)
	said := Announced{Namespace: "shop", Name: "web", UID: "u1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.7")}}
	say(&said)
	text, err := json.Marshal([]Announced{said})
	if err != nil {
		t.Fatal(err)
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: "kube-system", Name: leasePrefix + from, ResourceVersion: "1", Annotations: map[string]string{announcedKey: string(text)},
	}}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", ResourceVersion: "1"}}
	for _, err := range []error{
		s.nodes.Add(node("a", "10.0.1.0/24")), s.nodes.Add(node("b", "10.0.2.0/24")), s.namespaces.Add(namespace), s.pods.Add(web), s.pods.Add(other), s.pods.Add(gone), s.leases.Add(lease),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Lock()
	defer s.Unlock()
	c, _ := s.takeChanges("b")
	if had := s.pods.get(shopWeb); !had.Equal(policy.PodOf(web)) {
		t.Errorf("the store's own object has %v now", had.Addresses)
	}
	return c.Pods[shopWeb].Object().Status.PodIP
}

var shopWeb = Announced{Namespace: "shop", Name: "web"}.key()

// A node is believed about its own new pods and its own addresses, and nothing else.
func TestAnnounced(t *testing.T) {
	same, plain := func(*Announced) {}, func(*corev1.Pod) {}
	for name, c := range map[string]struct {
		from string
		pod  func(*corev1.Pod)
		say  func(*Announced)
		want string
	}{
		"a new pod":                       {"a", plain, same, "10.0.1.7"},
		"of another node":                 {"b", plain, same, ""},
		"of no node":                      {"c", plain, same, ""},
		"another pod of the name":         {"a", plain, func(p *Announced) { p.UID = "u0" }, ""},
		"another node's address":          {"a", plain, func(p *Announced) { p.Addresses[0] = netip.MustParseAddr("10.0.2.7") }, ""},
		"an address that another pod has": {"a", plain, func(p *Announced) { p.Addresses[0] = netip.MustParseAddr("10.0.1.6") }, ""},
		"one of them another's": {"a", plain, func(p *Announced) {
			p.Addresses = append(p.Addresses, netip.MustParseAddr("192.0.2.1"))
		}, ""},
		"none":            {"a", plain, func(p *Announced) { p.Addresses = nil }, ""},
		"another pod":     {"a", plain, func(p *Announced) { p.Name = "db" }, ""},
		"an ended pod":    {"a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, same, ""},
		"the node itself": {"a", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, same, ""},
		"one that is known": {"a", func(p *corev1.Pod) {
			p.Status.PodIP, p.Status.PodIPs = "10.0.1.9", []corev1.PodIP{{IP: "10.0.1.9"}}
		}, same, "10.0.1.9"},
	} {
		if got := believed(t, c.from, c.pod, c.say); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
