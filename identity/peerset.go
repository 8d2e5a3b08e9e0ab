package identity

import (
	"net/netip"
	"slices"
	"strings"
)

// PeerSet is a canonical, ordered set of peers: equal content, equal set. Any comes
// first, then all pods, then the others by their text; a member's ordinal is its place.
type PeerSet struct {
	members []Peer
	blocks  *Blocks[[]blockMember] // nil: no member is a block
}

// blockMember is a member that is a block.
type blockMember struct {
	ordinal int
	except  *Blocks[struct{}] // nil: it has none
}

// NewPeerSet orders peers and drops duplicates and what cannot change an answer: with
// Any there is nothing else, with all pods nobody else by labels.
func NewPeerSet(peers []Peer) PeerSet {
	members := slices.Clone(peers)
	slices.SortFunc(members, comparePeers)
	members = slices.CompactFunc(members, func(a, b Peer) bool { return a.text == b.text })
	if len(members) > 0 && members[0].Kind == AnyPeer {
		members = members[:1]
	}
	if len(members) > 0 && members[0].Kind == AllPods {
		members = slices.DeleteFunc(members, func(p Peer) bool { return p.Kind == ByLabels })
	}
	return PeerSet{members, indexBlocks(members)}
}

// indexBlocks is how thousands of blocks are asked about thousands.
func indexBlocks(members []Peer) *Blocks[[]blockMember] {
	table := map[netip.Prefix][]blockMember{}
	for i, p := range members {
		if p.Kind != ByAddress {
			continue
		}
		m := blockMember{ordinal: i}
		if len(p.Except) > 0 {
			except := map[netip.Prefix]struct{}{}
			for _, e := range p.Except {
				except[e] = struct{}{}
			}
			m.except = NewBlocks(except)
		}
		table[p.Block] = append(table[p.Block], m)
	}
	if len(table) == 0 {
		return nil
	}
	return NewBlocks(table)
}

// Members returns the peers by ordinal; do not change them.
func (s PeerSet) Members() []Peer { return s.members }

// Text is what the set's number is given for.
func (s PeerSet) Text() string {
	parts := make([]string, len(s.members))
	for i, p := range s.members {
		parts[i] = p.text
	}
	return strings.Join(parts, "\n")
}

// Has reports whether a member of the kind is there.
func (s PeerSet) Has(kind PeerKind) bool {
	return slices.ContainsFunc(s.members, func(p Peer) bool { return p.Kind == kind })
}

// OfLabels is the ordinal of the first member that means pods with these labels.
func (s PeerSet) OfLabels(l *Labels) (ordinal uint32, ok bool) {
	return s.first(func(p Peer) bool { return p.MatchesLabels(l) })
}

// OfBlock is the ordinal of the first member that means the addresses of which cidr
// is the longest policy CIDR.
func (s PeerSet) OfBlock(cidr netip.Prefix) (ordinal uint32, ok bool) {
	if s.blocks == nil {
		return 0, s.Has(AnyPeer)
	}
	for members := range s.blocks.covering(cidr) {
		for _, m := range members {
			if m.except != nil {
				if _, _, out := m.except.Longest(cidr); out {
					continue
				}
			}
			if !ok || uint32(m.ordinal) < ordinal {
				ordinal, ok = uint32(m.ordinal), true
			}
		}
	}
	return ordinal, ok
}

func (s PeerSet) first(match func(Peer) bool) (uint32, bool) {
	i := slices.IndexFunc(s.members, match)
	return uint32(max(i, 0)), i >= 0
}

// CIDRs adds the blocks of s and their exceptions to a set of policy CIDRs.
func (s PeerSet) CIDRs(into map[netip.Prefix]struct{}) {
	for _, p := range s.members {
		if p.Kind != ByAddress {
			continue
		}
		into[p.Block] = struct{}{}
		for _, e := range p.Except {
			into[e] = struct{}{}
		}
	}
}
