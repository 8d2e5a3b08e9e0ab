package policy

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// claims are who has an address by the API, of the pods elsewhere; found by the range it is
// in, so that what a CIDR covers is found without asking all.
type claims struct {
	in    map[netip.Prefix]map[netip.Addr]*known
	more  map[netip.Addr][]*known // of addresses that several have: all, by name
	count int
}

func newClaims() claims {
	return claims{in: map[netip.Prefix]map[netip.Addr]*known{}, more: map[netip.Addr][]*known{}}
}

// rangeOf an address is where claims keeps it.
func rangeOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func (c *claims) of(a netip.Addr) *known { return c.in[rangeOf(a)][a] }

func (c *claims) add(a netip.Addr, k *known) {
	r := rangeOf(a)
	if c.in[r] == nil {
		c.in[r] = map[netip.Addr]*known{}
	}
	c.count++
	was := c.in[r][a]
	if was == nil {
		c.in[r][a] = k
		return
	}
	all := c.more[a]
	if all == nil {
		all = []*known{was}
	}
	i, _ := slices.BinarySearchFunc(all, k, compareKnown)
	c.more[a] = slices.Insert(all, i, k)
	c.in[r][a] = c.more[a][0]
}

func (c *claims) remove(a netip.Addr, k *known) {
	r := rangeOf(a)
	c.count--
	if all := c.more[a]; all != nil {
		all = slices.DeleteFunc(all, func(o *known) bool { return o == k })
		c.in[r][a], c.more[a] = all[0], all
		if len(all) == 1 {
			delete(c.more, a)
		}
		return
	}
	if delete(c.in[r], a); len(c.in[r]) == 0 {
		delete(c.in, r)
	}
}

func compareKnown(a, b *known) int { return compareNames(a.name(), b.name()) }

// unclaim takes back the addresses that the API had for a pod elsewhere.
func (x *Incremental) unclaim(t *step, k *known) {
	for _, a := range k.elsewhere() {
		x.claims.remove(a, k)
		t.peers[identity.Single(a)] = true
	}
	k.claimed = false
}

func (x *Incremental) claim(t *step, k *known) {
	if x.here[k.name()] {
		return
	}
	k.claimed = true
	for _, a := range k.elsewhere() {
		x.claims.add(a, k)
		t.peers[identity.Single(a)] = true
	}
}

// rangesOf a node are what addresses that nobody has mean.
func rangesOf(n Node) map[netip.Prefix]identity.Number {
	out := map[netip.Prefix]identity.Number{}
	for _, p := range everywhere {
		out[p] = identity.World
	}
	for _, p := range n.ClusterCIDRs {
		out[identity.Masked(p)] = identity.Unmanaged
	}
	return out
}

// firstPeers are those that no change touches.
func (x *Incremental) firstPeers(t *step) {
	for p := range x.rangeAt {
		t.peers[p] = true
	}
	for _, at := range []map[netip.Addr]identity.Number{x.nodeAt, x.remoteAt} {
		for a := range at {
			t.peers[identity.Single(a)] = true
		}
	}
}

// changePeers says what addresses and prefixes mean that something touched.
func (x *Incremental) changePeers(t *step) {
	for cidr := range t.blocks {
		x.touchBelow(t, cidr)
	}
	for p := range t.peers {
		was := x.state.Peers[p]
		peer, owner, ok := x.peer(p)
		if ok {
			x.state.Peers[p] = peer
		} else {
			delete(x.state.Peers, p)
		}
		if p.IsSingleIP() {
			t.wasNames[p.Addr()] = Name{x.result.Names[p.Addr()], was.Identity}
			if owner == (types.NamespacedName{}) {
				delete(x.result.Names, p.Addr())
			} else {
				x.result.Names[p.Addr()] = owner
			}
		}
	}
}

// touchBelow touches what lies in a CIDR that came or went.
func (x *Incremental) touchBelow(t *step, cidr netip.Prefix) {
	t.peers[cidr] = true
	touch := func(p netip.Prefix) {
		if cidr.Bits() <= p.Bits() && cidr.Contains(p.Addr()) {
			t.peers[p] = true
		}
	}
	for p := range x.blocks {
		touch(p)
	}
	for p := range x.rangeAt {
		touch(p)
	}
	for _, at := range []map[netip.Addr]identity.Number{x.nodeAt, x.remoteAt} {
		for a := range at {
			touch(identity.Single(a))
		}
	}
	for a := range x.localAt {
		touch(identity.Single(a))
	}
	if r := rangeOf(cidr.Addr()); r.Bits() <= cidr.Bits() {
		for a := range x.claims.in[r] {
			touch(identity.Single(a))
		}
		return
	}
	for r, all := range x.claims.in {
		if cidr.Contains(r.Addr()) {
			for a := range all {
				t.peers[identity.Single(a)] = true
			}
		}
	}
}

// peer is what an address or prefix means, and whose address it is; false: it needs no entry.
func (x *Incremental) peer(p netip.Prefix) (peer datapath.Peer, owner types.NamespacedName, ok bool) {
	_, peer.Block, _ = x.cidrs.Longest(p)
	if p.IsSingleIP() {
		if peer.Identity, peer.Endpoint, owner = x.owner(p.Addr()); peer != (datapath.Peer{Block: peer.Block}) {
			return peer, owner, true
		}
	}
	_, isRange := x.rangeAt[p]
	if !isRange && x.blocks[p] == nil {
		return datapath.Peer{}, owner, false
	}
	_, peer.Identity, _ = x.ranges.Longest(p)
	return peer, owner, true
}

// owner of an address, the first by the order of Compile.
func (x *Incremental) owner(a netip.Addr) (identity.Number, uint32, types.NamespacedName) {
	if l, ok := x.localAt[a]; ok {
		if n := x.identityOf(l.Pod); n != 0 {
			return n, l.Number, l.Pod
		}
		return identity.Unmanaged, l.Number, l.Pod
	}
	if n, ok := x.nodeAt[a]; ok {
		return n, 0, types.NamespacedName{}
	}
	if k := x.claims.of(a); k != nil {
		return k.member.number, 0, k.name()
	}
	return x.remoteAt[a], 0, types.NamespacedName{}
}
