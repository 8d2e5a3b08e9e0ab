package policy

import (
	"net/netip"
	"slices"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// setUse is a peer set, or a port's name, that views use.
type setUse struct {
	id      uint32
	set     identity.PeerSet
	port    *portName // nil: peers
	views   int
	listed  bool // its facts are in the state
	members map[*member]bool
	blocks  map[*blockUse]bool

	labels, addresses bool
	wide              bool            // some of its pods may be of any namespace
	spaces            map[string]bool // else of these
}

// blockUse is a policy CIDR.
type blockUse struct {
	cidr   netip.Prefix
	number identity.Number
	sets   int // that mention it
	listed bool
	in     map[*setUse]bool
}

func newSetUse(id uint32, set identity.PeerSet, port *portName) *setUse {
	u := &setUse{id: id, set: set, port: port, members: map[*member]bool{}, blocks: map[*blockUse]bool{}, spaces: map[string]bool{}}
	u.labels, u.addresses = port != nil || set.Has(identity.ByLabels), set.Has(identity.ByAddress)
	u.wide = port != nil
	for _, p := range set.Members() {
		if p.Kind == identity.ByLabels && p.Namespace != "" {
			u.spaces[p.Namespace] = true
		} else if p.Kind == identity.ByLabels {
			u.wide = true
		}
	}
	return u
}

// facts about pods with an identity.
func (u *setUse) facts(m *member, yield func(datapath.Fact, uint32)) {
	if u.port == nil {
		if o, ok := u.set.OfLabels(&m.labels); ok {
			yield(datapath.Fact{Set: u.id, Identity: m.number}, o)
		}
		return
	}
	for _, p := range m.labels.Ports {
		if p.Name == u.port.name && p.Protocol == u.port.protocol {
			yield(datapath.Fact{Set: u.id, Identity: m.number, Protocol: p.Protocol, Port: p.Port}, 0)
		}
	}
}

// changeSets brings facts and blocks to what sets and identities are now.
func (x *Incremental) changeSets(t *step) {
	for m := range t.members {
		if m.listed && m.pods == 0 {
			for u := range m.sets {
				x.dropMember(t, u, m)
			}
			m.listed = false
		}
	}
	var fresh []*setUse
	for u := range t.fresh {
		switch {
		case u.views > 0 && !u.listed:
			fresh = append(fresh, u)
		case u.views == 0:
			x.dropSet(t, u)
		}
	}
	for _, u := range fresh {
		x.index(u, true)
		x.countBlocks(t, u, 1)
	}
	for m := range t.members {
		if !m.listed && m.pods > 0 {
			m.listed = true
			x.listMember(t, m)
		}
	}
	for _, u := range fresh {
		u.listed = true
		x.listSet(t, u)
	}
	x.changeBlocks(t, fresh)
}

// index says where a set is to be asked for.
func (x *Incremental) index(u *setUse, in bool) {
	put := func(sets map[*setUse]bool) {
		if in {
			sets[u] = true
		} else {
			delete(sets, u)
		}
	}
	if u.addresses {
		put(x.blockSets)
	}
	switch {
	case u.labels && u.wide:
		put(x.wideSets)
	case u.labels:
		for name := range u.spaces {
			if x.setsIn[name] == nil {
				x.setsIn[name] = map[*setUse]bool{}
			}
			if put(x.setsIn[name]); len(x.setsIn[name]) == 0 {
				delete(x.setsIn, name)
			}
		}
	}
}

func (x *Incremental) dropMember(t *step, u *setUse, m *member) {
	u.facts(m, func(f datapath.Fact, _ uint32) {
		delete(x.state.Facts, f)
		t.facts[f] = true
	})
	delete(u.members, m)
	delete(m.sets, u)
}

func (x *Incremental) dropSet(t *step, u *setUse) {
	delete(x.sets, u.id)
	x.ids.releaseSet(u.id)
	if !u.listed {
		return
	}
	u.listed = false
	for m := range u.members {
		x.dropMember(t, u, m)
	}
	for b := range u.blocks {
		x.dropBlock(t, u, b)
	}
	x.index(u, false)
	x.countBlocks(t, u, -1)
}

func (x *Incremental) dropBlock(t *step, u *setUse, b *blockUse) {
	f := datapath.Fact{Set: u.id, Identity: b.number}
	delete(x.state.Facts, f)
	t.facts[f] = true
	delete(u.blocks, b)
	delete(b.in, u)
}

func (x *Incremental) join(t *step, u *setUse, m *member) {
	u.facts(m, func(f datapath.Fact, ordinal uint32) {
		x.state.Facts[f] = ordinal
		t.facts[f] = true
		u.members[m], m.sets[u] = true, true
	})
}

// listMember asks all listed sets about an identity.
func (x *Incremental) listMember(t *step, m *member) {
	for _, sets := range []map[*setUse]bool{x.wideSets, x.setsIn[m.labels.Namespace]} {
		for u := range sets {
			if u.listed {
				x.join(t, u, m)
			}
		}
	}
}

// listSet asks a set about all listed identities.
func (x *Incremental) listSet(t *step, u *setUse) {
	switch {
	case !u.labels:
	case u.wide:
		for name, s := range x.spaces {
			if u.mayHave(name, s) {
				x.joinAll(t, u, s)
			}
		}
	default:
		for name := range u.spaces {
			if s := x.spaces[name]; s != nil {
				x.joinAll(t, u, s)
			}
		}
	}
}

func (x *Incremental) joinAll(t *step, u *setUse, s *space) {
	for m := range s.members {
		if m.listed {
			x.join(t, u, m)
		}
	}
}

// mayHave reports whether pods of a namespace may be in the set, whatever their own labels.
func (u *setUse) mayHave(name string, s *space) bool {
	return u.port != nil || slices.ContainsFunc(u.set.Members(), func(p identity.Peer) bool {
		return p.Kind == identity.ByLabels && (p.Namespace == name || p.Namespace == "" && p.Namespaces.Matches(s.labels))
	})
}

// countBlocks counts the CIDRs of a set.
func (x *Incremental) countBlocks(t *step, u *setUse, by int) {
	if !u.addresses {
		return
	}
	cidrs := map[netip.Prefix]struct{}{}
	u.set.CIDRs(cidrs)
	for p := range cidrs {
		b := x.blocks[p]
		if b == nil {
			b = &blockUse{cidr: p, in: map[*setUse]bool{}}
			x.blocks[p] = b
		}
		b.sets += by
		t.blocks[p] = true
	}
}

// changeBlocks numbers CIDRs, and asks about new ones and new sets.
func (x *Incremental) changeBlocks(t *step, freshSets []*setUse) {
	var fresh []*blockUse
	for p := range t.blocks {
		b := x.blocks[p]
		switch {
		case b.sets > 0 && !b.listed:
			fresh = append(fresh, b)
		case b.sets > 0:
			delete(t.blocks, p)
		default:
			for u := range b.in {
				x.dropBlock(t, u, b)
			}
			delete(x.blocks, p)
			if !b.listed {
				delete(t.blocks, p)
				continue
			}
			b.listed = false
			x.cidrs.Delete(p)
			x.ids.releaseBlock(p)
		}
	}
	slices.SortFunc(fresh, func(a, b *blockUse) int { return comparePrefixes(a.cidr, b.cidr) })
	for _, b := range fresh {
		b.number, b.listed = x.ids.block(b.cidr), true
		x.cidrs.Put(b.cidr, b.number)
	}
	isFresh := map[*setUse]bool{}
	for _, u := range freshSets {
		isFresh[u] = true
		if u.addresses {
			for _, b := range x.blocks {
				x.joinBlock(t, u, b)
			}
		}
	}
	if len(fresh) == 0 {
		return
	}
	for u := range x.blockSets {
		if !isFresh[u] {
			for _, b := range fresh {
				x.joinBlock(t, u, b)
			}
		}
	}
}

func (x *Incremental) joinBlock(t *step, u *setUse, b *blockUse) {
	if o, ok := u.set.OfBlock(b.cidr); ok {
		f := datapath.Fact{Set: u.id, Identity: b.number}
		x.state.Facts[f] = o
		t.facts[f] = true
		u.blocks[b], b.in[u] = true, true
	}
}

// span keeps the rulesets that have spans.
func (x *Incremental) span(id uint32, r datapath.Ruleset, in bool) {
	if r.Spans() == nil {
		return
	}
	if in {
		x.spanned[id] = r
	} else {
		delete(x.spanned, id)
	}
	for _, g := range r.Wide() {
		for _, set := range []uint32{g.Set, g.PortName} {
			if set == 0 {
				continue
			}
			if x.spannedBy[set] == nil {
				x.spannedBy[set] = map[uint32]bool{}
			}
			if x.spannedBy[set][id] = true; !in {
				delete(x.spannedBy[set], id)
			}
			if len(x.spannedBy[set]) == 0 {
				delete(x.spannedBy, set)
			}
		}
	}
}

// changeMasks looks at what facts and rulesets that changed make of masks.
func (x *Incremental) changeMasks(t *step) {
	touched := map[datapath.MaskKey]bool{}
	if len(x.spanned)+len(x.masks) == 0 {
		return
	}
	for f := range t.facts {
		for id := range x.spannedBy[f.Set] {
			touched[datapath.MaskKey{Ruleset: id, Identity: f.Identity, Protocol: f.Protocol, Port: f.Port}] = true
		}
	}
	for id := range t.idle {
		x.touchRuleset(id, touched)
	}
	t.delta.Masks = map[datapath.MaskKey]datapath.Mask{}
	for k := range touched {
		m := x.mask(k)
		if t.delta.Masks[k] = m; m == (datapath.Mask{}) {
			delete(x.masks, k)
		} else {
			x.masks[k] = m
		}
	}
}

// touchRuleset adds the keys of a ruleset that came or went.
func (x *Incremental) touchRuleset(id uint32, touched map[datapath.MaskKey]bool) {
	r, in := x.spanned[id]
	if !in {
		for k := range x.masks {
			if k.Ruleset == id {
				touched[k] = true
			}
		}
		return
	}
	for _, g := range r.Wide() {
		for _, set := range []uint32{g.Set, g.PortName} {
			u := x.sets[set]
			if u == nil {
				continue
			}
			for m := range u.members {
				u.facts(m, func(f datapath.Fact, _ uint32) {
					touched[datapath.MaskKey{Ruleset: id, Identity: f.Identity, Protocol: f.Protocol, Port: f.Port}] = true
				})
			}
			for b := range u.blocks {
				touched[datapath.MaskKey{Ruleset: id, Identity: b.number}] = true
			}
		}
	}
}

// mask is what State.Masks has for k.
func (x *Incremental) mask(k datapath.MaskKey) datapath.Mask {
	r, in := x.spanned[k.Ruleset]
	if !in {
		return datapath.Mask{}
	}
	return r.Mask(k, func(f datapath.Fact) bool { _, ok := x.state.Facts[f]; return ok })
}
