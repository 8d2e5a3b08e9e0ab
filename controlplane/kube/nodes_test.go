package kube

import (
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func node(name string, cidrs string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: strings.Fields(cidrs)}}
	if len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func nodes(all ...*corev1.Node) map[types.NamespacedName]kept[*corev1.Node] {
	out := map[types.NamespacedName]kept[*corev1.Node]{}
	for _, n := range all {
		out[named(n.Name)] = kept[*corev1.Node]{object: n}
	}
	return out
}

func texts[T interface{ String() string }](all []T) string {
	var out []string
	for _, v := range all {
		out = append(out, v.String())
	}
	return strings.Join(out, " ")
}

func TestNodes(t *testing.T) {
	n := nodesOf(nodes(
		node("c", "10.1.2.0/24 fd01:2::/64", "10.0.0.3", "fd00::3"),
		node("b", "10.1.1.0/24 fd01:1::/64", "10.0.0.2"),
		node("a", "10.1.0.0/24", "10.0.0.1"),
		node("new", ""),
	), "b")
	if n.Own == nil || n.Own.Name != "b" || texts(n.Own.PodCIDRs) != "10.1.1.0/24 fd01:1::/64" || texts(n.Own.Addresses) != "10.0.0.2" {
		t.Errorf("own %+v", n.Own)
	}
	if len(n.Others) != 3 || n.Others[0].Name != "a" || n.Others[2].Name != "new" || texts(n.OtherAddresses) != "10.0.0.1 10.0.0.3 fd00::3" {
		t.Errorf("others %+v, %v", n.Others, n.OtherAddresses)
	}
	if got := texts(n.PodCIDRs); got != "10.1.0.0/23 10.1.2.0/24 fd01:1::/64 fd01:2::/64" {
		t.Errorf("pod CIDRs %s", got)
	}
}

func TestNodeWarnings(t *testing.T) {
	for _, c := range []struct {
		name string
		all  map[types.NamespacedName]kept[*corev1.Node]
		want []string
	}{
		{"well", nodes(node("own", "10.1.0.0/24"), node("b", "10.1.1.0/24")), nil},
		{"no range", nodes(node("own", ""), node("b", "")), []string{"Node own: spec.podCIDRs: has none"}},
		{"gone", nodes(node("b", "10.1.0.0/24")), []string{"Node own: is gone from the API"}},
		{"overlap", nodes(node("own", "10.1.0.0/24"), node("b", "10.1.0.0/16 fd01::/64"), node("c", "10.1.3.0/24 fd01::/64"), node("d", "10.2.0.0/24")), []string{
			"Node b: spec.podCIDRs: 10.1.0.0/16 overlaps 10.1.0.0/24 of node own: here this node has it, and pods of node b in it are not reached; delete that Node",
			"Node c: spec.podCIDRs: fd01::/64 overlaps fd01::/64 of node b: the older one has it"}},
		{"the nodes' own network", nodes(node("own", "10.0.0.0/24", "10.0.1.1"), node("b", "10.0.1.0/24", "10.0.2.2", "fd00::2"), node("c", "10.0.3.0/24", "10.0.3.7")), []string{
			"Node c: status.addresses: 10.0.3.7 lies in spec.podCIDRs 10.0.3.0/24 of node c",
			"Node own: status.addresses: 10.0.1.1 lies in spec.podCIDRs 10.0.1.0/24 of node b"}},
	} {
		got := nodeWarnings(nodesOf(c.all, "own"), "own")
		if len(got) != len(c.want) {
			t.Errorf("%s: %q", c.name, got)
			continue
		}
		for i, want := range c.want {
			if !strings.HasPrefix(got[i], want) {
				t.Errorf("%s: %q, want %q", c.name, got[i], want)
			}
		}
	}
	if nodeWarnings(nil, "own") != nil {
		t.Error("warnings before anything is known")
	}
}

// TestWhoComesTakesNothing: of nodes with one range the one that was there has it, whatever
// the other's is called and however much of it it asks for; but on a node itself that node has it.
func TestWhoComesTakesNothing(t *testing.T) {
	aged := func(n *corev1.Node, minutes int) *corev1.Node {
		n.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, minutes, 0, 0, time.UTC))
		return stripNode(n)
	}
	const victim, own = "10.1.1.0/24 fd01:1::/64", "10.1.0.0/24 fd01::/64"
	for _, thief := range []string{"10.1.1.0/24", "10.1.1.128/25", "10.1.0.0/16", "0.0.0.0/0", "fd01:1::/64", "fd01:1::/80", "fd00::/8 10.1.1.7/32"} {
		for _, name := range []string{"a", "z"} {
			all := nodes(aged(node("own", own), 1), aged(node("m", victim), 2), aged(node(name, thief), 3))
			n := nodesOf(all, "own")
			if got := texts(n.Named("m").PodCIDRs); got != victim {
				t.Errorf("%s by %s: the older node has %q", thief, name, got)
			}
			if got := n.Named(name); len(got.PodCIDRs) != 0 || len(got.Disputed) != len(strings.Fields(thief)) {
				t.Errorf("%s by %s: the newer node is %+v", thief, name, got)
			}
			if got := texts(n.Own.PodCIDRs); got != own {
				t.Errorf("%s by %s: own ranges are %q", thief, name, got)
			}
			if n := nodesOf(all, name); texts(n.Own.PodCIDRs) != thief {
				t.Errorf("%s: on that node it has %q", thief, texts(n.Own.PodCIDRs))
			}
			delete(all, named("m"))
			delete(all, named("own"))
			if n := nodesOf(all, "own"); texts(n.Named(name).PodCIDRs) != texts(podCIDRs(all[named(name)].object)) {
				t.Errorf("%s: when the others are gone it has %q", thief, texts(n.Named(name).PodCIDRs))
			}
		}
	}
}

// TestWhoComesIsNobodyElse: an address that a node claims, and an elder one has, is that one's.
func TestWhoComesIsNobodyElse(t *testing.T) {
	at := func(n *corev1.Node, minutes int) *corev1.Node {
		n.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, minutes, 0, 0, time.UTC))
		return n
	}
	n := nodesOf(nodes(at(node("own", "", "192.0.2.1"), 9), at(node("m", "", "192.0.2.2", "2001:db8::2"), 1),
		at(node("a", "", "192.0.2.3", "192.0.2.2", "2001:db8::2", "192.0.2.1"), 2)), "own")
	a := n.Named("a")
	for addr, want := range map[string]string{"192.0.2.1": "own", "192.0.2.2": "m", "2001:db8::2": "m", "192.0.2.3": "a"} {
		for _, name := range []string{"own", "m", "a"} {
			if has := n.Named(name).Has(netip.MustParseAddr(addr)); has != (name == want) {
				t.Errorf("%s has %s: %t", name, addr, has)
			}
		}
	}
	warned := nodeWarnings(n, "own")
	warned = slices.DeleteFunc(warned, func(s string) bool { return !strings.Contains(s, "status.addresses") })
	if len(a.Addresses) != 4 || len(warned) != 3 || !strings.HasPrefix(warned[0], "Node a: status.addresses: 192.0.2.2 is node m's, too") {
		t.Errorf("%v, %q", a.Addresses, warned)
	}
}

func TestServiceWarning(t *testing.T) {
	n := nodesOf(nodes(node("own", "10.1.0.0/24"), node("b", "10.1.1.0/24 fd01::/64")), "own")
	services := map[types.NamespacedName]kept[*corev1.Service]{}
	add := func(name string, ips ...string) {
		services[types.NamespacedName{Namespace: "shop", Name: name}] = kept[*corev1.Service]{object: &corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: ips}}}
	}
	add("web", "10.96.0.1", "fd96::1")
	add("headless", "None")
	if got := serviceWarning(n, services); got != nil || serviceWarning(nil, services) != nil {
		t.Errorf("%q", got)
	}
	add("db", "10.96.0.2", "fd01::2")
	add("cart", "10.1.1.9")
	if got := serviceWarning(n, services); len(got) != 1 || !strings.HasPrefix(got[0], "Service shop/cart: spec.clusterIPs: 10.1.1.9 lies in spec.podCIDRs 10.1.1.0/24 of node b") {
		t.Errorf("%q", got)
	}
}

// TestMerge: the same addresses, and no two prefixes left that could be one.
func TestMerge(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 300 {
		var in []netip.Prefix
		for range r.Intn(40) {
			p, _ := netip.AddrFrom4([4]byte{10, 1, 2, byte(r.Intn(256))}).Prefix(24 + r.Intn(9))
			in = append(in, p)
		}
		out := merge(in)
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{10, 1, 2, byte(i)})
			has := func(p netip.Prefix) bool { return p.Contains(a) }
			if slices.ContainsFunc(in, has) != slices.ContainsFunc(out, has) {
				t.Fatalf("%v becomes %v: %s", in, out, a)
			}
		}
		for i := 1; i < len(out); i++ {
			if covers(out[i-1], out[i]) || sibling(out[i-1]) == out[i] {
				t.Fatalf("%v becomes %v", in, out)
			}
		}
	}
	if got := texts(merge([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("::/0")})); got != "0.0.0.0/0 ::/0" {
		t.Error(got)
	}
}
