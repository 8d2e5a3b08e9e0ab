package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
)

// serviceUse is what Services make of addresses and ports.
type serviceUse struct {
	slices   map[types.NamespacedName]map[types.NamespacedName]*discoveryv1.EndpointSlice // by Service
	nearby   map[types.NamespacedName]int                                                 // slices of a Service with an address of this node
	claimed  map[types.NamespacedName][]datapath.Frontend
	claims   map[datapath.Frontend]int
	owners   map[datapath.Frontend][]translationOwner // the first one's counts
	backends int                                      // of all lists, also of those of which another owner counts
}

// translationOwner is one of a Service's lists for an address and port.
type translationOwner struct {
	service  types.NamespacedName
	external bool
	list     *datapath.Service
}

func compareOwners(a, b translationOwner) int {
	kind := func(o translationOwner) int {
		if o.external {
			return 1
		}
		return 0
	}
	return cmp.Or(kind(a)-kind(b), compareNames(a.service, b.service))
}

func newServiceUse() serviceUse {
	return serviceUse{
		slices: map[types.NamespacedName]map[types.NamespacedName]*discoveryv1.EndpointSlice{}, nearby: map[types.NamespacedName]int{},
		claimed: map[types.NamespacedName][]datapath.Frontend{}, claims: map[datapath.Frontend]int{},
		owners: map[datapath.Frontend][]translationOwner{},
	}
}

func serviceOf(s *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
}

// changeServices takes other Services and slices.
func (x *Incremental) changeServices(t *step, was Changes, ch *Changes) {
	for key := range ch.EndpointSlices {
		if old := was.EndpointSlices[key]; old != nil {
			x.slice(t, key, old, false)
		}
		if now := x.cluster.EndpointSlices[key]; now != nil {
			x.slice(t, key, now, true)
		}
	}
	for name := range ch.Services {
		t.services[name] = true
	}
	touched := map[datapath.Frontend]bool{}
	for name := range t.services {
		x.service(t, name, touched)
	}
	for f := range touched {
		t.wasServices[f] = x.state.Services[f]
		if all := x.serviceUse.owners[f]; len(all) == 0 {
			delete(x.state.Services, f)
		} else {
			x.state.Services[f] = all[0].list
		}
	}
	t.delta.Services = slices.Collect(maps.Keys(touched))
}

func (x *Incremental) slice(t *step, key types.NamespacedName, s *discoveryv1.EndpointSlice, in bool) {
	u, service := &x.serviceUse, serviceOf(s)
	t.services[service] = true
	by := -1
	if in {
		by = 1
		if u.slices[service] == nil {
			u.slices[service] = map[types.NamespacedName]*discoveryv1.EndpointSlice{}
		}
		u.slices[service][key] = s
	} else if delete(u.slices[service], key); len(u.slices[service]) == 0 {
		delete(u.slices, service)
	}
	if x.isNearby(s) {
		if u.nearby[service] += by; u.nearby[service] == 0 {
			delete(u.nearby, service)
		}
	}
}

func (x *Incremental) isNearby(s *discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
		return slices.ContainsFunc(e.Addresses, func(a string) bool { return x.ownTexts[a] })
	})
}

// service compiles one again.
func (x *Incremental) service(t *step, name types.NamespacedName, touched map[datapath.Frontend]bool) {
	s := x.cluster.Services[name]
	var frontends []datapath.Frontend
	if s != nil && s.Spec.Type != corev1.ServiceTypeExternalName && x.serviceUse.nearby[name] == 0 {
		frontends = service(s)
	}
	x.claimFrontends(t, x.serviceUse.claimed[name], frontends)
	x.serviceUse.claimed[name] = frontends
	if len(frontends) == 0 {
		delete(x.serviceUse.claimed, name)
	}

	if was := x.result.services[name]; was != nil {
		x.own(name, was, false, touched)
		delete(x.result.services, name)
		if was.translated() {
			x.ids.releaseService(name)
		}
	}
	if s == nil {
		return
	}
	in := slices.SortedFunc(maps.Values(x.serviceUse.slices[name]), func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	w := compiler{node: x.node, ids: x.ids, before: Before{services: map[types.NamespacedName]*compiledService{}}}
	c := w.compileService(s, in)
	x.result.services[name] = c
	x.own(name, c, true, touched)
}

// own makes a Service's lists stand behind its addresses and ports, or no more.
func (x *Incremental) own(name types.NamespacedName, c *compiledService, in bool, touched map[datapath.Frontend]bool) {
	lists := map[*datapath.Service]bool{}
	for _, kind := range []struct {
		external bool
		all      []translation
	}{{false, c.cluster}, {true, c.external}} {
		for _, tr := range kind.all {
			lists[tr.service] = true
			touched[tr.frontend] = true
			owner := translationOwner{name, kind.external, tr.service}
			all := x.serviceUse.owners[tr.frontend]
			all = slices.DeleteFunc(all, func(o translationOwner) bool { return compareOwners(o, owner) == 0 }) // its last list counts
			if in {
				i, _ := slices.BinarySearchFunc(all, owner, compareOwners)
				all = slices.Insert(all, i, owner)
			}
			if x.serviceUse.owners[tr.frontend] = all; len(all) == 0 {
				delete(x.serviceUse.owners, tr.frontend)
			}
		}
	}
	for list := range lists {
		if n := 1 + len(list.Backends); in {
			x.serviceUse.backends += n
		} else {
			x.serviceUse.backends -= n
		}
	}
}

// claimFrontends counts who claims addresses and ports.
func (x *Incremental) claimFrontends(t *step, was, is []datapath.Frontend) {
	for _, f := range was {
		x.serviceUse.claims[f]--
		t.fronts[f] = true
	}
	for _, f := range is {
		x.serviceUse.claims[f]++
		t.fronts[f] = true
	}
	for _, f := range slices.Concat(was, is) {
		if x.serviceUse.claims[f] > 0 {
			x.state.Frontends[f] = struct{}{}
		} else {
			delete(x.serviceUse.claims, f)
			delete(x.state.Frontends, f)
		}
	}
}

// changeHostPorts looks at the host ports of pods here.
func (x *Incremental) changeHostPorts(t *step) {
	var is []datapath.Frontend
	for _, l := range x.locals {
		if pod := x.cluster.Pods[l.Pod]; pod != nil {
			is = append(is, hostPorts(pod, l)...)
		}
	}
	if !slices.Equal(x.hostPorts, is) {
		x.claimFrontends(t, x.hostPorts, is)
		x.hostPorts = is
	}
}
