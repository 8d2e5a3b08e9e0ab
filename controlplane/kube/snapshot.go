package kube

import (
	"maps"

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
	pods       *store[corev1.Pod, *corev1.Pod]
	namespaces *store[corev1.Namespace, *corev1.Namespace]
	policies   *store[networkingv1.NetworkPolicy, *networkingv1.NetworkPolicy]
	nodes      *store[corev1.Node, *corev1.Node]
	services   *store[corev1.Service, *corev1.Service]
	slices     *store[discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]
	leases     *store[coordinationv1.Lease, *coordinationv1.Lease] // nothing waits for them

	// The last snapshot.
	lastNodes      *source.Nodes
	lastNamespaces map[string]*corev1.Namespace
}

func newStores() *stores {
	s := newShelf()
	out := &stores{
		shelf:      s,
		common:     newInterner(),
		pods:       newStore(s, stripPod),
		namespaces: newStore(s, stripNamespace),
		policies:   newStore(s, stripNetworkPolicy),
		nodes:      newStore(s, stripNode),
		services:   newStore(s, stripService),
		slices:     newStore(s, stripEndpointSlice),
		leases:     newStore(s, stripLease),
	}
	out.pods.share = func(p *corev1.Pod, pods int) {
		out.common.limit(pods)
		out.common.pod(p)
	}
	return out
}

// snapshot is what all stores hold at this moment; the lock is held. It costs a clone of
// the map of each kind that changed since the last one.
func (s *stores) snapshot(nodeName string) (*policy.Cluster, *source.Nodes) {
	c := &policy.Cluster{}
	c.Pods, _ = s.pods.handOut()
	c.NetworkPolicies, _ = s.policies.handOut()
	c.Services, _ = s.services.handOut()
	c.EndpointSlices, _ = s.slices.handOut()
	s.addNamespaces(c)
	s.addAnnounced(c)
	if nodes, fresh := s.nodes.handOut(); fresh {
		s.lastNodes = nodesOf(nodes, nodeName)
	}
	return c, s.lastNodes
}

// addNamespaces: kinds are watched one by one, so a pod can be seen before its namespace,
// and the end of a namespace before that of its pods. Without its namespace's labels a
// pod would be somebody else to selectors: a pod waits for its namespace, and a
// namespace that pods were in stays until they are gone.
func (s *stores) addNamespaces(c *policy.Cluster) {
	objects, fresh := s.namespaces.handOut()
	if fresh || s.namesGone() {
		c.Namespaces = make(map[string]*corev1.Namespace, len(objects))
		for key, n := range objects {
			c.Namespaces[key.Name] = n
		}
	} else {
		c.Namespaces = s.lastNamespaces
	}
	early := map[string]bool{}
	for name := range s.pods.perNamespace {
		switch last := s.lastNamespaces[name]; {
		case c.Namespaces[name] != nil:
		case last != nil:
			c.Namespaces[name] = last
		default:
			early[name] = true
		}
	}
	s.lastNamespaces = c.Namespaces
	if len(early) > 0 {
		c.Pods = maps.Clone(c.Pods)
		maps.DeleteFunc(c.Pods, func(key types.NamespacedName, _ *corev1.Pod) bool { return early[key.Namespace] })
	}
}

// namesGone reports whether a namespace stayed for pods that are gone now.
func (s *stores) namesGone() bool {
	if len(s.lastNamespaces) <= len(s.namespaces.objects) {
		return false
	}
	for name := range s.lastNamespaces {
		if s.namespaces.objects[types.NamespacedName{Name: name}] == nil && s.pods.perNamespace[name] == 0 {
			return true
		}
	}
	return false
}

// firstRevision is what revisions begin with, so that they grow across restarts without
// being kept: every change that is counted has a resource version of its own.
func (s *stores) firstRevision(changes uint64) uint64 {
	version := max(s.pods.version, s.namespaces.version, s.policies.version, s.nodes.version, s.services.version, s.slices.version)
	return max(version, changes+1) - changes
}
