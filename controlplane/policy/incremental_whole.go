package policy

import (
	"github.com/weirnet/weir/identity"
)

// Whole is r with the lists for people: Identities, Policies and Warnings. Incremental does
// not keep them, and makes them of everything; no Apply may run meanwhile.
func (r *Result) Whole() *Result {
	if r.from == nil {
		return r
	}
	x, whole := r.from, *r
	whole.Identities, whole.Policies, whole.Warnings, whole.from = nil, nil, nil, nil
	w := newCompiler(x.cluster, x.node, x.locals, x.ids)
	w.result, w.pods = &whole, sortedNames(x.cluster.Pods)
	for _, name := range sortedNames(x.policies) {
		p := x.policies[name]
		w.policies = append(w.policies, p)
		w.byNS[name.Namespace] = append(w.byNS[name.Namespace], p)
	}
	for name, k := range x.pods {
		if k.member != nil {
			w.podID[name] = k.member.number
		}
	}
	for n, m := range x.identities {
		w.inUse[n] = &IdentityView{Number: n, Labels: m.labels, Pods: m.pods}
	}
	x.warnTaken(w)
	w.views()
	w.warn()
	return &whole
}

// warnTaken warns of addresses that several claim.
func (x *Incremental) warnTaken(w *compiler) {
	for _, l := range x.locals {
		for _, a := range l.Addresses() {
			if x.localAt[identity.Single(a).Addr()].Number != l.Number {
				w.taken(l.Pod, a)
			}
		}
	}
	for _, name := range w.pods {
		k := x.pods[name]
		for _, a := range k.elsewhere() {
			_, here := x.localAt[a]
			_, node := x.nodeAt[a]
			if here || node || x.claims.of(a) != k {
				w.taken(name, a)
			}
		}
	}
}
