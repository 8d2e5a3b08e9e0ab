package policy

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Changes is what of a Cluster is another object than before; nil: it is gone. An object that
// did not change need not be named, and may be. The zero Changes is none.
type Changes struct {
	Namespaces      map[string]*corev1.Namespace
	Pods            map[types.NamespacedName]*Pod
	NetworkPolicies map[types.NamespacedName]*networkingv1.NetworkPolicy
	Services        map[types.NamespacedName]*corev1.Service
	EndpointSlices  map[types.NamespacedName]*discoveryv1.EndpointSlice
}

// Empty reports whether nothing changed.
func (c *Changes) Empty() bool {
	return len(c.Namespaces)+len(c.Pods)+len(c.NetworkPolicies)+len(c.Services)+len(c.EndpointSlices) == 0
}

// Add makes c what came of c and then later.
func (c *Changes) Add(later *Changes) {
	merge(&c.Namespaces, later.Namespaces)
	merge(&c.Pods, later.Pods)
	merge(&c.NetworkPolicies, later.NetworkPolicies)
	merge(&c.Services, later.Services)
	merge(&c.EndpointSlices, later.EndpointSlices)
}

func merge[K comparable, V any](into *map[K]V, later map[K]V) {
	if *into == nil && len(later) > 0 {
		*into = make(map[K]V, len(later))
	}
	maps.Copy(*into, later)
}

// Apply changes c, whose maps must be its own, and returns what undoes it.
func (c *Cluster) Apply(ch *Changes) (undo Changes) {
	undo.Namespaces = replace(&c.Namespaces, ch.Namespaces)
	undo.Pods = replace(&c.Pods, ch.Pods)
	undo.NetworkPolicies = replace(&c.NetworkPolicies, ch.NetworkPolicies)
	undo.Services = replace(&c.Services, ch.Services)
	undo.EndpointSlices = replace(&c.EndpointSlices, ch.EndpointSlices)
	return undo
}

func replace[K comparable, V any](in *map[K]*V, changes map[K]*V) (was map[K]*V) {
	if *in == nil {
		*in = map[K]*V{}
	}
	was = make(map[K]*V, len(changes))
	for k, v := range changes {
		was[k] = (*in)[k]
		if v == nil {
			delete(*in, k)
		} else {
			(*in)[k] = v
		}
	}
	return was
}

// Clone has maps of its own.
func (c *Cluster) Clone() *Cluster {
	out := *c
	out.Namespaces, out.Pods, out.NetworkPolicies = maps.Clone(c.Namespaces), maps.Clone(c.Pods), maps.Clone(c.NetworkPolicies)
	out.Services, out.EndpointSlices, out.Refused = maps.Clone(c.Services), maps.Clone(c.EndpointSlices), maps.Clone(c.Refused)
	return &out
}

// ChangesTo is what makes c the other one: objects do not change in place, so those that are
// the same pointer are the same.
func (c *Cluster) ChangesTo(other *Cluster) Changes {
	return Changes{
		Namespaces:      differing(c.Namespaces, other.Namespaces),
		Pods:            differing(c.Pods, other.Pods),
		NetworkPolicies: differing(c.NetworkPolicies, other.NetworkPolicies),
		Services:        differing(c.Services, other.Services),
		EndpointSlices:  differing(c.EndpointSlices, other.EndpointSlices),
	}
}

func differing[K comparable, V any](was, is map[K]*V) map[K]*V {
	out := map[K]*V{}
	for k, v := range is {
		if was[k] != v {
			out[k] = v
		}
	}
	for k := range was {
		if is[k] == nil {
			out[k] = nil
		}
	}
	return out
}
