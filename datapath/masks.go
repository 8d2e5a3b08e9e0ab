package datapath

import (
	"cmp"
	"slices"

	"github.com/weirnet/weir/identity"
)

// What the kernel does with a ruleset's wide groups (bpf/contract.h, enum limits).
const (
	WideMax = 256 // it holds no more
	ScanMax = 16  // it asks them one by one; more are found by spans and masks
)

// Mask is some of a ruleset's wide groups, a bit each in their order.
type Mask [WideMax / 64]uint64

func (m *Mask) add(group int)    { m[group/64] |= 1 << (group % 64) }
func (m *Mask) toggle(group int) { m[group/64] ^= 1 << (group % 64) }

// MaskKey asks which wide groups of a ruleset have an identity in their peer set; with a
// protocol and port, which have a port's name that means it there.
type MaskKey struct {
	Ruleset  uint32
	Identity identity.Number
	Protocol uint8
	Port     uint16
}

// Spans say which wide groups of a ruleset have which peers without a fact, and which ports.
type Spans struct {
	Any, Pods Mask
	Ports     []Span // by From, the first of which is 0
}

// Span is the groups that have the ports from one on, to the next span's.
type Span struct {
	From   uint32 // protocol << 16 | port
	Groups Mask
}

// Len is how many elements the kernel needs for them.
func (s *Spans) Len() int {
	if s == nil {
		return 0
	}
	return 2 + len(s.Ports)
}

// Wide are the groups that no single port finds.
func (r Ruleset) Wide() (wide []PortGroup) {
	for _, g := range r.Groups {
		if !g.Exact() {
			wide = append(wide, g)
		}
	}
	return wide
}

// Spans are nil for a ruleset whose wide groups are asked one by one.
func (r Ruleset) Spans() *Spans {
	wide := r.Wide()
	if len(wide) <= ScanMax || len(wide) > WideMax {
		return nil
	}
	type edge struct {
		at    uint32
		group int
	}
	var edges []edge
	s, now := &Spans{}, Mask{}
	for i, g := range wide {
		if g.AnyPeer {
			s.Any.add(i)
		}
		if g.AllPods {
			s.Pods.add(i)
		}
		switch protocol := uint32(g.Protocol) << 16; {
		case g.PortName != 0: // masks say which ports
		case g.Protocol == Any:
			now.add(i)
		default:
			edges = append(edges, edge{protocol | uint32(g.Low), i}, edge{(protocol | uint32(g.High)) + 1, i})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	s.Ports = []Span{{Groups: now}}
	for _, e := range edges {
		if last := s.Ports[len(s.Ports)-1]; last.From != e.at {
			s.Ports = append(s.Ports, Span{e.at, last.Groups})
		}
		s.Ports[len(s.Ports)-1].Groups.toggle(e.group)
	}
	return s
}

// place is a wide group of a ruleset that has spans.
type place struct {
	ruleset int // of those that have
	group   int
	PortGroup
}

// has reports whether a fact of the group's set, or of its port's name, is about the key's
// peers.
func (p *place) has(k MaskKey) bool {
	switch {
	case k.Protocol != 0:
		return p.Protocol == k.Protocol || p.Protocol == Any
	case k.Identity >= identity.Block:
		return p.Blocks
	}
	return p.Labels
}

// Mask is that of a ruleset that has spans for one key; has reports whether a fact is there.
func (r Ruleset) Mask(k MaskKey, has func(Fact) bool) (m Mask) {
	for i, g := range r.Wide() {
		p, f := place{0, i, g}, Fact{Set: g.Set, Identity: k.Identity}
		if k.Protocol != 0 {
			f = Fact{Set: g.PortName, Identity: k.Identity, Protocol: k.Protocol, Port: k.Port}
		}
		if p.has(k) && has(f) {
			m.add(i)
		}
	}
	return m
}

// Masks are what the facts say, for the rulesets that have spans.
func (s *State) Masks() map[MaskKey]Mask {
	var ids []uint32
	sets, names := map[uint32][]place{}, map[uint32][]place{}
	for id, r := range s.Rulesets {
		if r.Spans() == nil {
			continue
		}
		for i, g := range r.Wide() {
			p := place{len(ids), i, g}
			sets[g.Set] = append(sets[g.Set], p)
			names[g.PortName] = append(names[g.PortName], p)
		}
		ids = append(ids, id)
	}
	out := map[MaskKey]Mask{}
	if len(ids) == 0 {
		return out
	}
	peers := map[MaskKey][][]place{} // of no ruleset; what their facts are about
	for f := range s.Facts {
		places := sets[f.Set]
		if f.Protocol != 0 {
			places = names[f.Set]
		}
		if k := (MaskKey{0, f.Identity, f.Protocol, f.Port}); len(places) > 0 {
			peers[k] = append(peers[k], places)
		}
	}
	masks := make([]Mask, len(ids))
	for k, facts := range peers {
		for _, places := range facts {
			for i := range places {
				if p := &places[i]; p.has(k) {
					masks[p.ruleset].add(p.group)
				}
			}
		}
		for i, m := range masks {
			if k.Ruleset = ids[i]; m != (Mask{}) {
				out[k], masks[i] = m, Mask{}
			}
		}
	}
	return out
}
