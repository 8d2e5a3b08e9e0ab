package policy

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// changeLocals takes other interfaces of pods here: a node has few.
func (x *Incremental) changeLocals(t *step, locals []Local) {
	was, wasAt := x.here, x.localAt
	x.locals, x.here, x.localAt = locals, map[types.NamespacedName]bool{}, map[netip.Addr]Local{}
	for _, l := range locals {
		x.here[l.Pod] = true
		for _, a := range l.Addresses() {
			if at := identity.Single(a).Addr(); x.localAt[at].Number == 0 {
				x.localAt[at] = l
			}
		}
	}
	for _, at := range []map[netip.Addr]Local{wasAt, x.localAt} {
		for a := range at {
			if wasAt[a] != x.localAt[a] {
				t.peers[identity.Single(a)] = true
			}
		}
	}
	for _, names := range []map[types.NamespacedName]bool{was, x.here} {
		for name := range names {
			if k := x.pods[name]; k != nil && was[name] != x.here[name] {
				t.pods[k] = true
				x.unclaim(t, k)
				x.claim(t, k)
			}
		}
	}
}

// localPod notes that a pod, perhaps one here, is another.
func (x *Incremental) localPod(t *step, name types.NamespacedName) {
	if !x.here[name] {
		return
	}
	for _, l := range x.locals {
		if l.Pod == name {
			for _, a := range l.Addresses() {
				t.peers[identity.Single(a)] = true
			}
			t.views[0] = true
		}
	}
}

// selected notes which views a policy is to be in, or not any more.
func (x *Incremental) selected(t *step, p *parsed, in bool) {
	for n, v := range x.views {
		labels := &x.identities[n].labels
		if labels.Namespace != p.name.Namespace || !p.subject.Matches(labels.PodLabels) {
			continue
		}
		for d := range v.policies {
			if !p.isolates[d] {
				continue
			}
			t.views[n] = true
			i, there := slices.BinarySearchFunc(v.policies[d], p.name, func(q *parsed, name types.NamespacedName) int { return compareNames(q.name, name) })
			switch {
			case there && in:
				v.policies[d][i] = p
			case in:
				v.policies[d] = slices.Insert(v.policies[d], i, p)
			case there:
				v.policies[d] = slices.Delete(v.policies[d], i, i+1)
			}
		}
	}
}

// changeViews gives the identities of pods here the rulesets that they have now.
func (x *Incremental) changeViews(t *step, moved bool) {
	wanted := map[identity.Number]bool{}
	for _, l := range x.locals {
		if n := x.identityOf(l.Pod); n != 0 {
			wanted[n] = true
		}
	}
	for n := range x.views {
		if !wanted[n] {
			x.use(t, x.views[n], -1)
			delete(x.views, n)
			t.views[0] = true
		}
	}
	for n := range wanted {
		v := x.views[n]
		switch {
		case v == nil:
			v = x.newView(n)
			x.views[n] = v
		case t.views[n]:
			x.use(t, v, -1)
		default:
			continue
		}
		x.compileView(n, v)
		x.use(t, v, 1)
		t.views[0] = true
	}
	if moved || t.views[0] {
		x.changeEndpoints()
	}
}

func (x *Incremental) identityOf(name types.NamespacedName) identity.Number {
	if k := x.pods[name]; k != nil && k.member != nil {
		return k.member.number
	}
	return 0
}

func (x *Incremental) newView(n identity.Number) *localView {
	v, labels := &localView{}, &x.identities[n].labels
	s := x.spaces[labels.Namespace]
	for _, name := range sortedNames(s.policies) {
		if p := s.policies[name]; p.subject.Matches(labels.PodLabels) {
			for d := range v.policies {
				if p.isolates[d] {
					v.policies[d] = append(v.policies[d], p)
				}
			}
		}
	}
	return v
}

// compileView makes the sides of pods with an identity, and lists what they use.
func (x *Incremental) compileView(n identity.Number, v *localView) {
	labels := &x.identities[n].labels
	w := newCompiler(&Cluster{}, x.node, nil, x.ids)
	v.view = EndpointView{Known: true, Identity: n, Labels: labels.Strings()}
	for d := range v.view.Sides {
		v.view.Sides[d] = w.sideOf(labels, datapath.Direction(d), v.policies[d])
	}
	v.rulesets, v.sets = nil, nil
	for id, r := range w.state.Rulesets {
		v.rulesets = append(v.rulesets, id)
		if x.rulesets[id] == 0 {
			x.state.Rulesets[id] = r
		}
	}
	for id, set := range w.used {
		v.sets = append(v.sets, id)
		if x.sets[id] == nil {
			x.sets[id] = newSetUse(id, set, nil)
		}
	}
	for id, port := range w.names {
		v.sets = append(v.sets, id)
		if x.sets[id] == nil {
			x.sets[id] = newSetUse(id, identity.PeerSet{}, &port)
		}
	}
}

// use counts what a view needs, once more or less.
func (x *Incremental) use(t *step, v *localView, by int) {
	for _, id := range v.rulesets {
		was := x.rulesets[id]
		x.rulesets[id] = was + by
		switch {
		case was == 0:
			x.count(t, id, 1)
		case was+by == 0:
			x.count(t, id, -1)
			delete(x.rulesets, id)
			delete(x.state.Rulesets, id)
			x.ids.releaseRuleset(id)
		}
	}
	for _, id := range v.sets {
		u := x.sets[id]
		u.views += by
		t.fresh[u] = true
	}
}

// count adds a ruleset's part of the size, and its rules, or takes them away.
func (x *Incremental) count(t *step, id uint32, by int) {
	t.idle[id] = true
	r := x.state.Rulesets[id]
	one := datapath.State{Rulesets: map[uint32]datapath.Ruleset{id: r}}
	size := one.Size()
	for i, v := range size.Values() {
		*x.size.Values()[i] += by * *v
	}
	note := func(rule uint32) {
		if rule >= datapath.RuleFirst {
			x.rules[rule] += by
			t.rest[rule] = true
		}
	}
	note(r.Default)
	for _, g := range r.Groups {
		for _, rule := range g.Rules {
			note(rule)
		}
	}
	if len(r.Wide()) > datapath.WideMax {
		x.tooWide += by
	}
	x.span(id, r, by > 0)
}

// changeEndpoints makes them anew: a node has few.
func (x *Incremental) changeEndpoints() {
	endpoints, views := make(map[uint32]datapath.Endpoint, len(x.locals)), make(map[uint32]EndpointView, len(x.locals))
	for _, l := range x.locals {
		var view EndpointView
		if v := x.views[x.identityOf(l.Pod)]; v != nil {
			view = v.view
		}
		view.Pod = l.Pod
		ep := l.Endpoint
		ep.Egress, ep.Ingress = view.Sides[datapath.Egress].Ruleset, view.Sides[datapath.Ingress].Ruleset
		endpoints[l.Number], views[l.Number] = ep, view
	}
	if !maps.Equal(x.state.Endpoints, endpoints) {
		x.state.Endpoints = endpoints
	}
	x.result.Endpoints = views
}
