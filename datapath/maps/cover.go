package maps

import (
	"iter"
	"net/netip"
)

// cover finds the longest of a set of prefixes that contains another one.
type cover struct {
	set     map[netip.Prefix]struct{}
	lengths [2][129]int // how many, by family: IPv4, IPv6
}

func newCover(prefixes iter.Seq[netip.Prefix]) cover {
	c := cover{set: map[netip.Prefix]struct{}{}}
	for x := range prefixes {
		c.put(x, true)
	}
	return c
}

// put adds a prefix, or takes it out.
func (c *cover) put(x netip.Prefix, in bool) {
	_, there := c.set[x]
	switch {
	case x.IsSingleIP() || in == there:
	case in:
		c.set[x] = struct{}{}
		c.lengths[version(x)][x.Bits()]++
	default:
		delete(c.set, x)
		c.lengths[version(x)][x.Bits()]--
	}
}

func version(x netip.Prefix) int {
	if x.Addr().Is4() {
		return 0
	}
	return 1
}

// of is the longest prefix that contains x and is not x.
func (c cover) of(x netip.Prefix) (netip.Prefix, bool) {
	for bits := x.Bits() - 1; bits >= 0; bits-- {
		if c.lengths[version(x)][bits] == 0 {
			continue
		}
		over := netip.PrefixFrom(x.Addr(), bits).Masked()
		if _, ok := c.set[over]; ok {
			return over, true
		}
	}
	return netip.Prefix{}, false
}
