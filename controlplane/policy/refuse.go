package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// fates are the policies of which not the version in the cluster is enforced.
type fates map[types.NamespacedName]*fate

type fate struct {
	isolated bool // else the version in force stays
	invalid  bool // it is not for want of room
	why      Problem
}

// refusal is a fate and the version that met it, to be remembered.
type refusal struct {
	fate
	wanted *networkingv1.NetworkPolicy
}

// remembered are the fates of policies that did not fit before and are the same still.
func (b *Before) remembered(c *Cluster) fates {
	out := fates{}
	for name, r := range b.refusals {
		held := b.Policies[name]
		if c.NetworkPolicies[name] == r.wanted && (r.isolated || held != nil && held.UID == r.wanted.UID) {
			out[name] = &fate{isolated: r.isolated, why: r.why}
		}
	}
	return out
}

// refusals are those of policies that could be enforced if there were room.
func (w *compiler) refusals() map[types.NamespacedName]refusal {
	out := map[types.NamespacedName]refusal{}
	for name, f := range w.fates {
		if !f.invalid {
			out[name] = refusal{*f, w.cluster.NetworkPolicies[name]}
		}
	}
	return out
}

func (f *fate) problem() Problem {
	p := f.why
	if f.isolated {
		p.Message += "; the policy isolates the pods it selects and allows nothing"
	} else {
		p.Message += "; its last good version stays in force"
	}
	return p
}

func (w *compiler) parse() {
	enforced := *w.cluster
	enforced.NetworkPolicies = maps.Clone(w.cluster.NetworkPolicies)
	enforced.Refused = map[types.NamespacedName]bool{}
	w.result.Enforced = &enforced
	for _, name := range w.known.policies {
		p := w.version(name)
		w.policies = append(w.policies, p)
		w.byNS[name.Namespace] = append(w.byNS[name.Namespace], p)
	}
}

// version is what is enforced of a policy.
func (w *compiler) version(name types.NamespacedName) *parsed {
	wanted, f := w.cluster.NetworkPolicies[name], w.fates[name]
	if f == nil || f.invalid {
		p, problems := w.known.parsePolicy(wanted)
		if len(problems) == 0 {
			return p
		}
		if f == nil {
			w.demote(p, problems[0])
			f = w.fates[name]
			f.invalid = true
		}
		for _, problem := range problems {
			w.result.Errors = append(w.result.Errors, (&fate{isolated: f.isolated, why: problem}).problem())
		}
	} else {
		w.result.Errors = append(w.result.Errors, f.problem())
	}
	if f.isolated {
		w.result.Enforced.Refused[name] = true
		return w.known.parseSubject(wanted)
	}
	held := w.before.Policies[name]
	w.result.Enforced.NetworkPolicies[name] = held
	w.result.Held[name] = true
	p, _ := w.known.parsePolicy(held) // it is in force: there were no problems
	return p
}

// demote decides what is enforced of a policy instead of what is: at first its version
// in force if that is another, then nothing that it allows.
func (w *compiler) demote(p *parsed, why Problem) {
	name := p.name
	if f := w.fates[name]; f != nil {
		f.isolated = true
		return
	}
	held, wanted := w.before.Policies[name], w.cluster.NetworkPolicies[name]
	w.fates[name] = &fate{isolated: held == nil || held.UID != wanted.UID || sameSpec(held, wanted), why: why}
}

func sameSpec(a, b *networkingv1.NetworkPolicy) bool {
	return a == b || equality.Semantic.DeepEqual(a.Spec, b.Spec)
}

// refuse demotes policies, and reports whether there were any.
func (w *compiler) refuse(victims map[*parsed]Problem) bool {
	for p, why := range victims {
		w.demote(p, why)
	}
	return len(victims) > 0
}

// candidate is a policy that could go, and what that would give back.
type candidate struct {
	*parsed
	gain int
}

// choose takes policies until the excess is gone: what changed last pays first, of those
// the largest.
func (w *compiler) choose(from []candidate, excess int) []*parsed {
	from = slices.DeleteFunc(from, func(c candidate) bool { return c.gain <= 0 || c.refused })
	changed := func(c candidate) int {
		if w.changed(c.parsed) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(from, func(a, b candidate) int {
		return cmp.Or(changed(b)-changed(a), b.gain-a.gain, compareNames(a.name, b.name))
	})
	var out []*parsed
	for _, c := range from {
		if excess <= 0 {
			break
		}
		out = append(out, c.parsed)
		excess -= c.gain
	}
	return out
}

// changed reports whether what w would enforce of p is not what is in force.
func (w *compiler) changed(p *parsed) bool {
	if w.before.Policies == nil || w.result.Held[p.name] {
		return false
	}
	was := w.before.Policies[p.name]
	return was == nil || !sameSpec(was, w.cluster.NetworkPolicies[p.name])
}

// tooManyRanges finds what to refuse so that no pod has more wide port groups than a ruleset
// can.
func (w *compiler) tooManyRanges() map[*parsed]Problem {
	victims := map[*parsed]Problem{}
	seen := map[identity.Number]bool{}
	for _, l := range w.locals {
		n := w.podID[l.Pod]
		if n == 0 || seen[n] {
			continue
		}
		seen[n] = true
		for _, d := range []datapath.Direction{datapath.Egress, datapath.Ingress} {
			w.tooManyRangesFor(&w.inUse[n].Labels, d, victims)
		}
	}
	return victims
}

func (w *compiler) tooManyRangesFor(l *identity.Labels, d datapath.Direction, victims map[*parsed]Problem) {
	policies := w.isolating(l, d)
	for {
		all := wide(grouped(policies, d, l.Ports))
		if all <= datapath.WideMax {
			return
		}
		var own []candidate
		for _, p := range policies {
			own = append(own, candidate{p, wide(grouped([]*parsed{p}, d, l.Ports))})
		}
		worst := w.choose(own, 1)[0]
		victims[worst] = Problem{Ref: worst.ref, Field: "spec." + d.String(),
			Message: fmt.Sprintf("pods in %s get %d port ranges and named ports together, at most %d can be enforced: "+
				"merge port ranges", l.Namespace, all, datapath.WideMax)}
		policies = slices.DeleteFunc(policies, func(p *parsed) bool { return p == worst })
	}
}

// withoutFacts is what the state needs so far, facts left out. Addresses and frontends are
// left out as they are met (peers.go, frontends.go).
func (w *compiler) withoutFacts() datapath.Limits {
	need := w.state.Size()
	need.CIDRs = len(w.result.Blocks)
	return need
}

// tooLarge finds what to refuse so that the state fits the first map that it does not
// fit.
func (w *compiler) tooLarge(need datapath.Limits, facts bool) map[*parsed]Problem {
	limit := w.node.Limits
	for i, most := range limit.Values() {
		excess := *need.Values()[i] - *most
		if *most == 0 || excess <= 0 {
			continue
		}
		var all []candidate
		for _, p := range w.policies {
			alone := w.alone(p, facts)
			all = append(all, candidate{p, *alone.Values()[i]})
		}
		victims := map[*parsed]Problem{}
		name, knob := limit.Maps()[i], limit.Maps()[i]+"=N"
		if most == &limit.CIDRs {
			knob += ", addresses at least 2N"
		}
		for _, p := range w.choose(all, excess) {
			victims[p] = Problem{Ref: p.ref, Field: "spec", Message: fmt.Sprintf(
				"the policies of this node's pods need %d %s together, at most %d can be enforced (--map-size %s)",
				*need.Values()[i], name, *most, knob)}
		}
		return victims
	}
	return nil
}

// alone is what a policy would need if it were the only one.
func (w *compiler) alone(p *parsed, facts bool) datapath.Limits {
	need, ok := w.known.alone[lonely{p, facts}]
	if !ok {
		if w.selectsHere(p) {
			need = w.measure(p, facts)
		}
		w.known.alone[lonely{p, facts}] = need
	}
	return need
}

func (w *compiler) measure(p *parsed, facts bool) datapath.Limits {
	x := newCompiler(w.cluster, w.node, w.locals, NewAllocator())
	x.policies, x.byNS = []*parsed{p}, map[string][]*parsed{p.name.Namespace: {p}}
	x.podID, x.inUse, x.known = w.podID, w.inUse, &rounds{inUse: w.inUse, members: map[uint32]map[identity.Number]uint32{}} // numbers of its own
	x.rulesets()
	x.blocks()
	if facts {
		x.facts()
	}
	need := x.withoutFacts()
	need.Facts = len(x.state.Facts)
	need.Rulesets--          // the one that all have who are not isolated
	if need.PortGroups > 0 { // together with others' they may need spans and masks
		need.Spans, need.Masks = max(need.Spans, 2*need.PortGroups), max(need.Masks, need.Facts, 1)
	}
	return need
}

// cutOff takes the rulesets from the endpoints whose rulesets do not fit even if no
// policy allows anything: all that they send and get is dropped.
func (w *compiler) cutOff() {
	most := w.node.Limits.Rulesets
	if most == 0 || len(w.state.Rulesets) <= most {
		return
	}
	w.overflowed = true
	used := map[uint32]datapath.Ruleset{}
	for _, l := range w.locals {
		ep := w.state.Endpoints[l.Number]
		fresh := map[uint32]datapath.Ruleset{}
		for _, id := range []uint32{ep.Egress, ep.Ingress} {
			if _, ok := used[id]; !ok && id != 0 {
				fresh[id] = w.state.Rulesets[id]
			}
		}
		if len(used)+len(fresh) <= most {
			maps.Copy(used, fresh)
			continue
		}
		ep.Egress, ep.Ingress = 0, 0
		w.state.Endpoints[l.Number] = ep
		w.result.Errors = append(w.result.Errors, Problem{Ref: podRef(l.Pod), Message: fmt.Sprintf(
			"%d rulesets are held already (--map-size rulesets=N): all its traffic is dropped", most)})
	}
	w.state.Rulesets = used
}
