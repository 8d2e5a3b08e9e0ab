package identity

import (
	"iter"
	"net/netip"
	"slices"
)

// Blocks is a table of prefixes, asked for the longest that covers an address or
// another prefix. The families are apart.
type Blocks[V any] struct {
	values  map[netip.Prefix]V
	lengths [2][]int // by family, longest first
	counts  [2][129]int
}

// NewBlocks makes the table of masked prefixes.
func NewBlocks[V any](values map[netip.Prefix]V) *Blocks[V] {
	b := &Blocks[V]{values: values}
	for p := range values {
		b.count(p, 1)
	}
	return b
}

// Put adds a prefix to the table, and to the map that it was made of.
func (b *Blocks[V]) Put(p netip.Prefix, v V) {
	if _, there := b.values[p]; !there {
		b.count(p, 1)
	}
	b.values[p] = v
}

// Delete takes a prefix out of both.
func (b *Blocks[V]) Delete(p netip.Prefix) {
	if _, there := b.values[p]; there {
		b.count(p, -1)
		delete(b.values, p)
	}
}

func (b *Blocks[V]) count(p netip.Prefix, by int) {
	f := familyIndex(p.Addr())
	was := b.counts[f][p.Bits()]
	b.counts[f][p.Bits()] = was + by
	if was == 0 || was+by == 0 {
		i, found := slices.BinarySearchFunc(b.lengths[f], p.Bits(), func(have, want int) int { return want - have })
		if found {
			b.lengths[f] = slices.Delete(b.lengths[f], i, i+1)
		} else {
			b.lengths[f] = slices.Insert(b.lengths[f], i, p.Bits())
		}
	}
}

// covering yields the values of all prefixes of the table that contain all of p.
func (b *Blocks[V]) covering(p netip.Prefix) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, bits := range b.lengths[familyIndex(p.Addr())] {
			if bits > p.Bits() {
				continue
			}
			if v, ok := b.values[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok && !yield(v) {
				return
			}
		}
	}
}

// Longest returns the longest prefix of the table that contains all of p (p itself
// included) and its value.
func (b *Blocks[V]) Longest(p netip.Prefix) (prefix netip.Prefix, value V, ok bool) {
	for _, bits := range b.lengths[familyIndex(p.Addr())] {
		if bits > p.Bits() {
			continue
		}
		prefix = netip.PrefixFrom(p.Addr(), bits).Masked()
		if value, ok = b.values[prefix]; ok {
			return prefix, value, true
		}
	}
	return netip.Prefix{}, value, false
}

func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Single is the prefix of one address.
func Single(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}
