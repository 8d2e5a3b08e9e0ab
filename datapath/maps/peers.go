package maps

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// Words of a peer's element after its slots.
const peerEndpoint = 4

// peers are the addresses and prefixes the kernel knows: a key leads to an element with
// the slots. Single addresses are a hash, the rest a trie.
type peers struct {
	addresses *tracker[netip.Prefix, bpf.WeirAddressKey, uint32]
	prefixes  *tracker[netip.Prefix, bpf.WeirPrefixKey, uint32]
	memory    *memory
	free      []uint32
	limbo     []limbo[uint32]
	desired   cover // prefixes of the State compared last

	// Of a look at the addresses that takes more than a round of Recheck.
	cursor ebpf.MapBatchCursor
	looked []uint64 // a bit for each element whose key was met, or put since; nil: it begins
	atOnce int      // keys a round
}

func (p *peers) index(x netip.Prefix) (uint32, bool) {
	if x.IsSingleIP() {
		i, ok := p.addresses.applied[x]
		return i, ok
	}
	i, ok := p.prefixes.applied[x]
	return i, ok
}

// load reads the keys and finds the free elements. A key that leads nowhere, or where
// another leads, is removed.
func (p *peers) load(tick uint64) error {
	if err := p.addresses.load(); err != nil {
		return err
	}
	if err := p.prefixes.load(); err != nil {
		return err
	}
	p.cursor, p.looked = ebpf.MapBatchCursor{}, nil
	used := make([]bool, p.memory.count)
	used[0] = true
	take := func(i uint32) bool {
		ok := i < p.memory.count && !used[i]
		if ok {
			used[i] = true
		}
		return ok
	}
	for x, i := range maps.Clone(p.addresses.applied) {
		if !take(i) {
			if err := p.addresses.remove(x, tick); err != nil {
				return err
			}
		}
	}
	for x, i := range maps.Clone(p.prefixes.applied) {
		if !take(i) {
			if err := p.prefixes.remove(x, tick); err != nil {
				return err
			}
		}
	}
	for i := p.memory.count - 1; i > 0; i-- {
		if !used[i] {
			p.free = append(p.free, i)
		}
	}
	return nil
}

// peerChange is a known key whose meaning changes.
type peerChange struct {
	element element
	word    uint64
	was     uint64 // endpoint
	is      uint64
}

// peerDelta is what a State changes.
type peerDelta struct {
	changed   []peerChange
	addresses []netip.Prefix // added
	prefixes  []netip.Prefix // added
	unwanted  []netip.Prefix
	kept      bool   // a known key's meaning changes, and it stays
	words     bool   // an address is new, a known key's word changes, or a new prefix says something new
	oldest    uint64 // a grace must be younger than this epoch
}

// diff compares what the kernel says in epoch with what desired says. A key that is not
// desired means what the longest desired prefix over it means, until it is gone.
func (p *peers) diff(desired map[netip.Prefix]datapath.Peer, epoch uint64) (d peerDelta) {
	p.desired = newCover(maps.Keys(desired))
	for x, peer := range desired {
		d.want(p, x, peer, epoch)
	}
	for _, applied := range []map[netip.Prefix]uint32{p.addresses.applied, p.prefixes.applied} {
		for x := range applied {
			if _, ok := desired[x]; !ok {
				d.leave(p, x, desired, epoch)
			}
		}
	}
	d.planPrefixes(p, desired, epoch)
	return d
}

// diffKeys compares only keys, and what waits to be removed: what covers that may be another.
func (p *peers) diffKeys(keys []netip.Prefix, desired map[netip.Prefix]datapath.Peer, epoch uint64) (d peerDelta) {
	for _, x := range keys {
		_, wanted := desired[x]
		p.desired.put(x, wanted)
	}
	for _, x := range keys {
		if peer, wanted := desired[x]; wanted {
			d.want(p, x, peer, epoch)
		} else if !p.isStale(x) {
			d.leave(p, x, desired, epoch)
		}
	}
	for _, stale := range []map[netip.Prefix]uint64{p.addresses.stale, p.prefixes.stale} {
		for x := range stale {
			d.leave(p, x, desired, epoch)
		}
	}
	d.planPrefixes(p, desired, epoch)
	return d
}

func (p *peers) isStale(x netip.Prefix) bool {
	_, address := p.addresses.stale[x]
	_, prefix := p.prefixes.stale[x]
	return address || prefix
}

// want compares a key with what it is to mean.
func (d *peerDelta) want(p *peers, x netip.Prefix, peer datapath.Peer, epoch uint64) {
	if i, ok := p.index(x); ok {
		d.kept = d.compare(p.memory.at(i), peer, epoch) || d.kept
		delete(p.addresses.stale, x)
		delete(p.prefixes.stale, x)
	} else if x.IsSingleIP() {
		d.addresses = append(d.addresses, x)
		d.words = true // what is remembered of a packet to it, or of a flow, is of what covers it
	} else {
		d.prefixes = append(d.prefixes, x)
	}
}

// leave compares a key that is not desired with what covers it.
func (d *peerDelta) leave(p *peers, x netip.Prefix, desired map[netip.Prefix]datapath.Peer, epoch uint64) {
	i, ok := p.index(x)
	if !ok {
		return
	}
	over, _ := p.desired.of(x)
	d.compare(p.memory.at(i), desired[over], epoch)
	d.unwanted = append(d.unwanted, x)
}

func (d *peerDelta) compare(e element, peer datapath.Peer, epoch uint64) (changed bool) {
	word, since, ok := slots{e}.read(epoch)
	c := peerChange{element: e, word: peerWord(peer), was: e.load(peerEndpoint), is: uint64(peer.Endpoint)}
	if ok && word == c.word && c.was == c.is {
		return false
	}
	d.changed = append(d.changed, c)
	d.words = true
	if ok && !(slots{e}).spare(epoch) {
		d.oldest = max(d.oldest, since)
	}
	return true
}

// planPrefixes sees whether the new prefixes say anything that is not said already.
func (d *peerDelta) planPrefixes(p *peers, desired map[netip.Prefix]datapath.Peer, epoch uint64) {
	if len(d.prefixes) == 0 {
		return
	}
	now := newCover(maps.Keys(p.prefixes.applied))
	for _, x := range d.prefixes {
		word, since, ok := p.covered(now, x, epoch)
		if ok {
			d.oldest = max(d.oldest, since)
		}
		d.words = d.words || !ok || word != peerWord(desired[x])
	}
}

// covered is what the longest applied prefix over x says in epoch.
func (p *peers) covered(now cover, x netip.Prefix, epoch uint64) (word, since uint64, ok bool) {
	over, found := now.of(x)
	if !found {
		return 0, never, false
	}
	return slots{p.memory.at(p.prefixes.applied[over])}.read(epoch)
}

// fits reports whether the added keys have room.
func (p *peers) fits(d peerDelta) error {
	if err := p.addresses.fits(len(d.addresses)); err != nil {
		return err
	}
	if err := p.prefixes.fits(len(d.prefixes)); err != nil {
		return err
	}
	if n := len(d.addresses) + len(d.prefixes); n > len(p.free) {
		size := int(p.memory.count) - 1
		return &datapath.FullError{Map: bpf.WeirMapPeers, Size: size, Need: size - len(p.free) + n}
	}
	return nil
}

// addAddresses makes new addresses mean what desired says from since on. Until then
// their keys lead to no valid slot, which is a miss.
func (p *peers) addAddresses(added []netip.Prefix, desired map[netip.Prefix]datapath.Peer, since, tick uint64) error {
	indices := p.take(len(added))
	for i, x := range added {
		e := p.memory.at(indices[i])
		slots{e}.clear()
		e.store(peerEndpoint, uint64(desired[x].Endpoint))
		slots{e}.set(0, peerWord(desired[x]), since)
	}
	err := p.addresses.put(added, indices, tick)
	for i, x := range added {
		if _, ok := p.index(x); ok && p.looked != nil {
			p.meet(indices[i])
		}
	}
	return p.release(indices, added, err)
}

// addPrefixes does so for prefixes. Their keys hide the covering ones at once, so until
// then they say what those say.
func (p *peers) addPrefixes(added []netip.Prefix, desired map[netip.Prefix]datapath.Peer, epoch, since, tick uint64) error {
	if len(added) == 0 {
		return nil
	}
	indices := p.take(len(added))
	now := newCover(maps.Keys(p.prefixes.applied))
	for i, x := range added {
		e := p.memory.at(indices[i])
		slots{e}.clear()
		e.store(peerEndpoint, 0)
		word, from, ok := p.covered(now, x, epoch)
		if ok {
			slots{e}.set(0, word, from)
		}
		if !ok || word != peerWord(desired[x]) {
			slots{e}.set(1, peerWord(desired[x]), since)
		}
	}
	return p.release(indices, added, p.prefixes.put(added, indices, tick))
}

func (p *peers) take(n int) []uint32 {
	at := len(p.free) - n
	indices := slices.Clone(p.free[at:])
	p.free = p.free[:at]
	return indices
}

// release gives back the elements of keys that could not be written.
func (p *peers) release(indices []uint32, added []netip.Prefix, err error) error {
	if err == nil {
		return nil
	}
	for i, x := range added {
		if _, ok := p.index(x); !ok {
			p.free = append(p.free, indices[i])
		}
	}
	return err
}

func (p *peers) mark(unwanted []netip.Prefix, tick uint64) {
	for _, x := range unwanted {
		stale := p.prefixes.stale
		if x.IsSingleIP() {
			stale = p.addresses.stale
		}
		if _, ok := stale[x]; !ok {
			stale[x] = tick
		}
	}
}

// collect removes keys that are stale since tick before, and frees the elements of those
// that were removed by then.
func (p *peers) collect(before, tick uint64) error {
	p.limbo = slices.DeleteFunc(p.limbo, func(l limbo[uint32]) bool {
		if l.tick <= before {
			p.free = append(p.free, l.what)
		}
		return l.tick <= before
	})
	gone := func(_ netip.Prefix, i uint32) { p.limbo = append(p.limbo, limbo[uint32]{i, tick}) }
	if err := p.addresses.collect(before, tick, gone); err != nil {
		return err
	}
	return p.prefixes.collect(before, tick, gone)
}
