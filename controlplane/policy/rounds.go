package policy

import (
	"maps"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// rounds is what the rounds of one Recompile have in common. Each refuses some policies and compiles
// what is left; what it made of an object, of a policy alone or of a set's members the next need not make again,
// as long as pods are told apart by the same labels.
type rounds struct {
	pods     []types.NamespacedName // sorted
	policies []types.NamespacedName
	written  map[*networkingv1.NetworkPolicy]written
	subjects map[*networkingv1.NetworkPolicy]*parsed

	// Of pods told apart by keys.
	keys    mentioned
	podID   map[types.NamespacedName]identity.Number
	inUse   map[identity.Number]*IdentityView
	alone   map[lonely]datapath.Limits
	members map[uint32]map[identity.Number]uint32 // of a set, by its number
}

// written is a policy as it is written, and what is wrong with it.
type written struct {
	*parsed
	problems []Problem
}

// lonely is a policy that would be the only one, and whether its facts count.
type lonely struct {
	*parsed
	facts bool
}

func newRounds(c *Cluster) *rounds {
	return &rounds{
		pods: sortedNames(c.Pods), policies: sortedNames(c.NetworkPolicies),
		written: map[*networkingv1.NetworkPolicy]written{}, subjects: map[*networkingv1.NetworkPolicy]*parsed{},
	}
}

func (r *rounds) parsePolicy(np *networkingv1.NetworkPolicy) (*parsed, []Problem) {
	p, ok := r.written[np]
	if !ok {
		p.parsed, p.problems = parsePolicy(np)
		r.written[np] = p
	}
	return p.parsed, p.problems
}

func (r *rounds) parseSubject(np *networkingv1.NetworkPolicy) *parsed {
	if r.subjects[np] == nil {
		r.subjects[np] = parseSubject(np)
	}
	return r.subjects[np]
}

// same reports whether pods are told apart by the same keys as in the round before.
func (r *rounds) same(keys mentioned) bool {
	return r.podID != nil && maps.Equal(r.keys.pods, keys.pods) && maps.Equal(r.keys.namespaces, keys.namespaces) && maps.Equal(r.keys.ports, keys.ports)
}

// identified takes a round's identities.
func (r *rounds) identified(w *compiler) {
	r.keys, r.podID, r.inUse = w.keys, w.podID, w.inUse
	r.alone, r.members = map[lonely]datapath.Limits{}, map[uint32]map[identity.Number]uint32{}
}

// membersOf a set by their labels.
func (r *rounds) membersOf(id uint32, set *identity.PeerSet) map[identity.Number]uint32 {
	all, ok := r.members[id]
	if !ok {
		all = map[identity.Number]uint32{}
		for n, view := range r.inUse {
			if o, ok := set.OfLabels(&view.Labels); ok {
				all[n] = o
			}
		}
		r.members[id] = all
	}
	return all
}

// selectsHere reports whether a policy isolates a pod of this node.
func (w *compiler) selectsHere(p *parsed) bool {
	for _, l := range w.locals {
		view := w.inUse[w.podID[l.Pod]]
		if view != nil && view.Labels.Namespace == p.name.Namespace && (p.isolates[0] || p.isolates[1]) && p.subject.Matches(view.Labels.PodLabels) {
			return true
		}
	}
	return false
}
