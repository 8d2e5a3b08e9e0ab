package kube

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

// stores are the kinds that are watched.
type stores struct {
	*shelf
	common     *interner
	pods       *store[*corev1.Pod, *policy.Pod]
	namespaces *store[*corev1.Namespace, *corev1.Namespace]
	policies   *store[*networkingv1.NetworkPolicy, *networkingv1.NetworkPolicy]
	nodes      *store[*corev1.Node, *corev1.Node]
	services   *store[*corev1.Service, *corev1.Service]
	slices     *store[*discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]
	leases     *store[*coordinationv1.Lease, *coordinationv1.Lease] // nothing waits for them

	handed    handed
	announced announced
	lastNodes *source.Nodes
}

// handed is what was handed out, where that is not what the stores hold: kinds are watched
// one by one, so a pod can be seen before its namespace, and the end of a namespace before
// that of its pods. Without its namespace's labels a pod would be somebody else to selectors:
// a pod waits for its namespace, and a namespace that pods were in stays until they are gone.
type handed struct {
	namespaces map[string]bool
	lingering  map[string]bool                          // of these: the API server has them no more
	early      map[string]map[types.NamespacedName]bool // pods, by the namespace that they wait for
}

func newStores() *stores {
	s := newShelf()
	out := &stores{
		shelf:      s,
		common:     newInterner(),
		pods:       newStoreOf(s, policy.PodOf, (*policy.Pod).Equal),
		namespaces: newStore(s, stripNamespace),
		policies:   newStore(s, stripNetworkPolicy),
		nodes:      newStore(s, stripNode),
		services:   newStore(s, stripService),
		slices:     newStore(s, stripEndpointSlice),
		leases:     newStore(s, stripLease),
		handed:     handed{map[string]bool{}, map[string]bool{}, map[string]map[types.NamespacedName]bool{}},
		announced:  newAnnounced(),
	}
	out.pods.share = func(p *policy.Pod, pods int) string {
		out.common.limit(pods)
		out.common.pod(p)
		return p.Namespace
	}
	out.pods.changed = out.announced.count
	return out
}

// takeChanges is what the stores hold other than when it was called last; the lock is held.
func (s *stores) takeChanges(nodeName string) (*policy.Changes, *source.Nodes) {
	c := &policy.Changes{NetworkPolicies: s.policies.take(), Services: s.services.take(), EndpointSlices: s.slices.take()}
	c.Namespaces = s.takeNamespaces()
	c.Pods = s.takePods(c.Namespaces)
	if len(s.nodes.dirty) > 0 || s.lastNodes == nil {
		s.nodes.take()
		s.lastNodes = nodesOf(s.nodes.objects, nodeName)
	}
	s.addAnnounced(c)
	return c, s.lastNodes
}

func (s *stores) takeNamespaces() map[string]*corev1.Namespace {
	out, h := map[string]*corev1.Namespace{}, &s.handed
	for key, n := range s.namespaces.take() {
		if n != nil {
			out[key.Name], h.namespaces[key.Name] = n, true
			delete(h.lingering, key.Name)
		} else if h.namespaces[key.Name] {
			h.lingering[key.Name] = true
		}
	}
	for name := range h.lingering {
		if s.pods.perNamespace[name] == 0 {
			out[name] = nil
			delete(h.lingering, name)
			delete(h.namespaces, name)
		}
	}
	return out
}

func (s *stores) takePods(namespaces map[string]*corev1.Namespace) map[types.NamespacedName]*policy.Pod {
	out, h := s.pods.take(), &s.handed
	for name := range namespaces {
		for key := range h.early[name] {
			out[key] = s.pods.get(key)
		}
		delete(h.early, name)
	}
	for key := range out {
		if h.namespaces[key.Namespace] {
			continue
		}
		if h.early[key.Namespace] == nil {
			h.early[key.Namespace] = map[types.NamespacedName]bool{}
		}
		h.early[key.Namespace][key] = true
		out[key] = nil // it may have been there with a namespace that is gone
	}
	return out
}

// firstRevision is what revisions begin with, so that they grow across restarts without
// being kept: every change that is counted has a resource version of its own.
func (s *stores) firstRevision(changes uint64) uint64 {
	version := max(s.pods.version, s.namespaces.version, s.policies.version, s.nodes.version, s.services.version, s.slices.version)
	return max(version, changes+1) - changes
}
