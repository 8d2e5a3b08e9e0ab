// Package randomcluster makes clusters and policies at random, for tests that ask two
// engines the same: pods on this node and elsewhere, with addresses of both families in
// ranges that policies' blocks cut across.
package randomcluster

import (
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Size of a world.
const (
	LocalPods = 7 // endpoint numbers 1..LocalPods
	Pods      = 12
)

// World is a node, the interfaces of its pods, and one cluster after another on them.
type World struct {
	Cluster *policy.Cluster // the present one; it is not changed any more
	Node    policy.Node
	Locals  []policy.Local // by number - 1
	Places  []Place        // as the cluster, but that pods elsewhere may not be in it

	r          *rand.Rand
	keys, most int // labels: how many keys and values, for this cluster
	ranges     int // more of them in a rule, at most, for this cluster
	policies   int // made so far: their names
}

// Place is somebody who can begin or answer connections.
type Place struct {
	Pod   types.NamespacedName // zero: no pod
	Local uint32               // endpoint number; 0 = not on this node
	Addrs [2]netip.Addr        // IPv4, IPv6; zero = none
	Node  bool                 // this node itself
}

var outsiders = []struct{ v4, v6 string }{
	{"10.0.0.17", "fd00::17"}, // the node: first
	{"10.0.0.18", ""},         // another node
	{"10.0.0.30", "fd00::30"}, // in the pods' range, nobody's
	{"192.0.2.7", "2001:db8::7"},
}

// New makes a node, the places of its world, and a first cluster.
func New(r *rand.Rand) *World {
	w := &World{r: r, Node: policy.Node{
		Addresses:       []netip.Addr{netip.MustParseAddr("10.0.0.17"), netip.MustParseAddr("fd00::17")},
		RemoteNodes:     []netip.Addr{netip.MustParseAddr("10.0.0.18")},
		ClusterCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/120")},
		NodeEgressAllow: r.Intn(2) == 0,
	}}
	for i := 1; i <= Pods; i++ {
		p := Place{Pod: types.NamespacedName{Namespace: string("xyz"[r.Intn(3)]), Name: fmt.Sprint("p", i)}, Addrs: w.addresses(i)}
		if i <= LocalPods {
			p.Local = uint32(i)
			w.Locals = append(w.Locals, policy.Local{Pod: p.Pod, Number: p.Local, Endpoint: datapath.Endpoint{Addr4: p.Addrs[0], Addr6: p.Addrs[1]}})
		}
		w.Places = append(w.Places, p)
	}
	for i, texts := range outsiders {
		p := Place{Node: i == 0}
		p.Addrs[0], _ = netip.ParseAddr(texts.v4)
		p.Addrs[1], _ = netip.ParseAddr(texts.v6)
		w.Places = append(w.Places, p)
	}
	w.Renew()
	return w
}

// addresses of pod i: of one family or both.
func (w *World) addresses(i int) (a [2]netip.Addr) {
	if w.r.Intn(5) > 0 {
		a[0] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	if !a[0].IsValid() || w.r.Intn(2) == 0 {
		a[1] = netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))
	}
	return a
}

// Renew makes another cluster: other policies, and other labels and ports of the same pods.
func (w *World) Renew() {
	w.keys, w.most = w.r.Intn(7), 1+w.r.Intn(4)
	if w.r.Intn(5) == 0 {
		w.keys = len(keys)
	}
	if w.ranges = 0; w.r.Intn(4) == 0 {
		w.ranges = 20
	}
	w.Cluster = &policy.Cluster{
		Namespaces:      map[string]*corev1.Namespace{},
		Pods:            map[types.NamespacedName]*policy.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
	}
	for i, name := range []string{"x", "y", "z"} {
		if w.r.Intn(6-2*i) > 0 { // undeclared: there, without labels
			w.Cluster.Namespaces[name] = w.namespace(name)
		}
	}
	for _, p := range w.Places[:Pods] {
		if p.Local != 0 || w.r.Intn(6) > 0 { // pods elsewhere come and go
			w.addPod(p)
		}
	}
	w.addBystanders()
	for i := 1 + w.r.Intn(1+w.r.Intn(24)); i > 0; i-- {
		w.addPolicy()
	}
}

// Edit changes one thing: a policy comes, goes or is another; a pod's or namespace's labels.
func (w *World) Edit() {
	c := *w.Cluster
	c.Namespaces, c.Pods, c.NetworkPolicies = maps.Clone(c.Namespaces), maps.Clone(c.Pods), maps.Clone(c.NetworkPolicies)
	w.Cluster = &c
	switch w.r.Intn(7) {
	case 0, 1:
		w.addPolicy()
	case 2:
		w.dropPolicy()
	case 3:
		name := w.Places[w.r.Intn(Pods)].Pod
		if pod := c.Pods[name]; pod != nil {
			pod = pod.Clone()
			pod.Labels = w.labels()
			c.Pods[name] = pod
		}
	case 4:
		name := string("xyz"[w.r.Intn(3)])
		c.Namespaces[name] = w.namespace(name)
	case 5:
		if p := w.Places[w.r.Intn(Pods)]; c.Pods[p.Pod] != nil {
			labels := c.Pods[p.Pod].Labels
			w.addPod(p) // other ports
			c.Pods[p.Pod].Labels = labels
		}
	case 6:
		if len(c.NetworkPolicies) > 0 {
			name := w.anyPolicy()
			np := c.NetworkPolicies[name].DeepCopy()
			w.alter(&np.Spec)
			c.NetworkPolicies[name] = np
		}
	}
}

// addBystanders adds pods that no policy means, with labels of pods that they do: they use a
// node's network, or are over and their addresses somebody else's.
func (w *World) addBystanders() {
	for i, address := range []string{"10.0.0.17", "10.0.0.18", "10.0.0.1", "10.0.0.30", "fd00::17"} {
		if w.r.Intn(3) > 0 {
			continue
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: string("xyz"[w.r.Intn(3)]), Name: fmt.Sprint("bystander", i), Labels: w.labels()}}
		pod.Spec.Containers = []corev1.Container{{}}
		pod.Status.PodIPs = []corev1.PodIP{{IP: address}}
		if a := netip.MustParseAddr(address); slices.Contains(w.Node.Addresses, a) || slices.Contains(w.Node.RemoteNodes, a) {
			pod.Spec.HostNetwork = true
		} else {
			pod.Status.Phase = []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed}[w.r.Intn(2)]
		}
		w.Cluster.Pods[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = policy.PodOf(pod)
	}
}

func (w *World) dropPolicy() {
	if len(w.Cluster.NetworkPolicies) > 0 {
		delete(w.Cluster.NetworkPolicies, w.anyPolicy())
	}
}

// anyPolicy does not depend on a map's order, so that a seed means one world.
func (w *World) anyPolicy() types.NamespacedName {
	names := slices.SortedFunc(maps.Keys(w.Cluster.NetworkPolicies), func(a, b types.NamespacedName) int {
		return strings.Compare(a.String(), b.String())
	})
	return names[w.r.Intn(len(names))]
}

func (w *World) namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: w.labels()}}
}

var (
	keys      = []string{"app", "tier", "env", "team", "zone", "kind", "release", "example.com/shard", "stage", "owner", "lang", "arch"}
	portNames = []string{"http", "dns", "web"}
)

func (w *World) key() string { return keys[w.r.Intn(max(w.keys, 1))] }

func (w *World) value() string { return []string{"a", "b", "c", "", "d"}[w.r.Intn(1+w.most)] }

func (w *World) labels() map[string]string {
	out := map[string]string{}
	for _, k := range keys[:w.keys] {
		if w.r.Intn(3) > 0 {
			out[k] = w.value()
		}
	}
	return out
}

func (w *World) addPod(p Place) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Pod.Namespace, Name: p.Pod.Name, Labels: w.labels()}}
	pod.Spec.Containers = []corev1.Container{{}, {}}
	pod.Spec.InitContainers = []corev1.Container{{}, {}}
	always := corev1.ContainerRestartPolicyAlways
	pod.Spec.InitContainers[1].RestartPolicy = &always // a sidecar: the other one is over
	for c, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			for _, name := range portNames {
				if w.r.Intn(4+4*c) == 0 {
					containers[i].Ports = append(containers[i].Ports, corev1.ContainerPort{
						Name: name, ContainerPort: int32(80 + w.r.Intn(4)), Protocol: w.protocol()})
				}
			}
		}
	}
	for _, a := range p.Addrs {
		if p.Local == 0 && a.IsValid() {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
	}
	w.Cluster.Pods[p.Pod] = policy.PodOf(pod)
}

func (w *World) protocol() corev1.Protocol {
	return []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[w.r.Intn(4)]
}
