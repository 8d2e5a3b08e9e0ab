package kube

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
)

// TestHandedOutIsWhatTheStoresSay tells the stores of random events of namespaces, pods, nodes
// and leases, and demands that what was handed out adds up to what a look at all would say.
func TestHandedOutIsWhatTheStoresSay(t *testing.T) {
	announcedOnce, early, lingering := 0, 0, 0
	for seed := range int64(40) {
		r := rand.New(rand.NewSource(seed))
		w := newWorld(t)
		w.must(w.nodes.Add(w.node("a", "10.0.1.0/24")))
		last := map[string]*corev1.Namespace{}
		for i := range 150 {
			for range 1 + r.Intn(3) {
				w.event(r)
			}
			w.take()
			want := policy.Cluster{Namespaces: map[string]*corev1.Namespace{}, Pods: map[types.NamespacedName]*policy.Pod{}}
			for key, n := range w.namespaces.objects {
				want.Namespaces[key.Name] = n.object
			}
			for key, p := range w.pods.objects {
				switch ns := last[key.Namespace]; {
				case want.Namespaces[key.Namespace] != nil:
				case ns == nil:
					early++
					continue
				default:
					lingering++
					want.Namespaces[key.Namespace] = ns
				}
				want.Pods[key] = p.object
			}
			announcedOnce += w.announce(want.Pods)
			last = want.Namespaces
			if !reflect.DeepEqual(w.shown.Pods, want.Pods) || !reflect.DeepEqual(w.shown.Namespaces, want.Namespaces) {
				t.Fatalf("seed %d, event %d: handed out\n%v\n%v\nwant\n%v\n%v", seed, i, w.shown.Pods, w.shown.Namespaces, want.Pods, want.Namespaces)
			}
		}
	}
	if announcedOnce < 100 || early < 100 || lingering < 100 {
		t.Errorf("%d announced, %d early, %d lingering: too few to tell anything", announcedOnce, early, lingering)
	}
}

func (w *world) node(name, cidr string) *corev1.Node {
	return &corev1.Node{ObjectMeta: w.meta("", name), Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}}
}

func (w *world) event(r *rand.Rand) {
	namespace, name := string("xyz"[r.Intn(3)]), string("abcd"[r.Intn(4)])
	address := fmt.Sprintf("10.0.1.%d", 1+r.Intn(5))
	switch r.Intn(9) {
	case 0:
		w.must(w.namespaces.Update(w.namespace(namespace, fmt.Sprint(r.Intn(3)))))
	case 1:
		w.must(w.namespaces.Delete(w.namespace(namespace, "")))
	case 2:
		w.must(w.pods.Delete(w.pod(namespace, name, "")))
	case 3:
		if r.Intn(3) == 0 {
			w.must(w.nodes.Delete(w.node("a", "")))
		} else {
			w.must(w.nodes.Update(w.node("a", "10.0.1.0/24")))
		}
	case 4, 5:
		said := []Announced{{Namespace: namespace, Name: name, UID: types.UID(namespace + name), Addresses: []netip.Addr{netip.MustParseAddr(address)}}}
		text, err := json.Marshal(said)
		w.must(err)
		lease := &coordinationv1.Lease{ObjectMeta: w.meta("kube-system", leasePrefix+"a")}
		lease.Annotations = map[string]string{announcedKey: string(text)}
		if r.Intn(5) == 0 {
			w.must(w.leases.Delete(lease))
		} else {
			w.must(w.leases.Update(lease))
		}
	default:
		p := w.pod(namespace, name, fmt.Sprint(r.Intn(2)))
		p.Spec.NodeName = "a"
		if r.Intn(3) == 0 {
			p.Status.PodIP, p.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
		}
		if r.Intn(8) == 0 {
			p.Status.Phase = corev1.PodFailed
		}
		w.must(w.pods.Update(p))
	}
}

// announce gives pods what a look at all leases and pods says, and returns how many.
func (w *world) announce(pods map[types.NamespacedName]*policy.Pod) (n int) {
	node := w.nodes.get(named("a"))
	for _, lease := range w.leases.objects {
		var said []Announced
		w.must(json.Unmarshal([]byte(lease.object.Annotations[announcedKey]), &said))
		for _, p := range said {
			taken := false
			for _, other := range w.pods.objects {
				taken = taken || !other.object.Finished && slices.Contains(other.object.Addresses, p.Addresses[0])
			}
			if node != nil && !taken && p.isOf(pods[p.key()], "a", podCIDRs(node)) {
				pods[p.key()] = p.at(pods[p.key()])
				n++
			}
		}
	}
	return n
}
