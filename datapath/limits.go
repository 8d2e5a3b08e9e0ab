package datapath

import (
	"fmt"

	"github.com/weirnet/weir/identity"
)

// Limits count what a State has, and say how much of it a Kernel takes whatever it holds
// at the time: what a commit takes out of force stays a grace longer than what it brings.
// As a limit, 0 is none.
type Limits struct {
	Addresses   int // of pods and nodes
	CIDRs       int // of policies and ranges, single addresses of policies too
	Facts       int
	Rulesets    int
	ExactGroups int // port groups found by their port
	PortGroups  int // wide ones
	Spans       int // with the two masks before each ruleset's
	Masks       int
	RuleIDs     int // of port groups, with the end of each
	Frontends   int
	Services    int // addresses and ports that are translated
	Backends    int // of all lists, with the head of each
}

// Maps are the kernel maps that the Limits stem from, in their order.
func (l *Limits) Maps() []string {
	return []string{"addresses", "prefixes", "facts", "rulesets", "exact_groups", "port_groups", "port_spans", "peer_masks", "rule_ids", "frontends", "services", "backends"}
}

// Values are the counts in the order of Maps; they can be set through the pointers.
func (l *Limits) Values() []*int {
	return []*int{&l.Addresses, &l.CIDRs, &l.Facts, &l.Rulesets, &l.ExactGroups, &l.PortGroups, &l.Spans, &l.Masks, &l.RuleIDs, &l.Frontends, &l.Services, &l.Backends}
}

// Size counts what s has.
func (s *State) Size() Limits {
	l := Limits{Facts: len(s.Facts), Rulesets: len(s.Rulesets), Masks: len(s.Masks()), Frontends: len(s.Frontends), Services: len(s.Services)}
	lists := map[*Service]struct{}{}
	for _, service := range s.Services {
		if _, counted := lists[service]; !counted {
			lists[service] = struct{}{}
			l.Backends += 1 + len(service.Backends)
		}
	}
	for x, p := range s.Peers {
		if x.IsSingleIP() && (p.Endpoint != 0 || p.Identity.IsPod() || p.Identity == identity.Host || p.Identity == identity.RemoteNode) {
			l.Addresses++
		} else {
			l.CIDRs++
		}
	}
	for _, r := range s.Rulesets {
		l.Spans += r.Spans().Len()
		for _, g := range r.Groups {
			l.RuleIDs += len(g.Rules) + 1
			if g.Exact() {
				l.ExactGroups++
			} else {
				l.PortGroups++
			}
		}
	}
	return l
}

// FullError says that a State does not fit a kernel map.
type FullError struct {
	Map  string
	Size int // what it holds
	Need int // what the State needs
}

func (e *FullError) Error() string {
	return fmt.Sprintf("map %s is full: it holds %d, %d are needed", e.Map, e.Size, e.Need)
}
