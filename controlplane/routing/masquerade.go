package routing

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// table is ours alone: one of each family, replaced whole.
const table = "weir"

// families that have a table, with where addresses lie in their headers.
var families = []struct {
	family       nftables.TableFamily
	key          nftables.SetDatatype
	four         bool
	source, dest uint32 // offsets
}{
	{nftables.TableFamilyIPv4, nftables.TypeIPAddr, true, 12, 16},
	{nftables.TableFamilyIPv6, nftables.TypeIP6Addr, false, 8, 24},
}

// Masquerade makes packets that leave the cluster carry the node's address: those from a
// pod range of this node to an address that is in no range of the cluster's and no node's.
// It replaces our table in one transaction.
func Masquerade(pods, cluster []netip.Prefix, nodes []netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, f := range families {
		in := func(p netip.Prefix) bool { return p.Addr().Is4() != f.four }
		sources := slices.DeleteFunc(slices.Clone(pods), in)
		keep := slices.DeleteFunc(slices.Concat(cluster, pods, single(nodes)), in)
		t := &nftables.Table{Family: f.family, Name: table}
		c.AddTable(t) // so that the deletion finds one
		c.DelTable(t)
		if len(sources) == 0 {
			continue
		}
		c.AddTable(t)
		chain := c.AddChain(&nftables.Chain{
			Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		inside := &nftables.Set{Table: t, Name: "inside", KeyType: f.key, Interval: true}
		if err := c.AddSet(inside, intervals(merged(keep))); err != nil {
			return fmt.Errorf("nftables set %s: %w", inside.Name, err)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.dest, Len: f.key.Bytes},
			&expr.Lookup{SourceRegister: 1, SetName: inside.Name, SetID: inside.ID},
			&expr.Verdict{Kind: expr.VerdictReturn},
		}})
		for _, p := range merged(sources) {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(within(f.source, p), &expr.Masq{})})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", table, err)
	}
	return nil
}

func single(addrs []netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// merged drops prefixes that lie in another.
func merged(all []netip.Prefix) (out []netip.Prefix) {
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, p := range all {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Contains(p.Addr()) }) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// intervals are prefixes as elements of a set, in which each end is an element too.
func intervals(prefixes []netip.Prefix) (out []nftables.SetElement) {
	for _, p := range prefixes {
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := last(p).Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// within matches packets whose address at offset lies in p.
func within(offset uint32, p netip.Prefix) []expr.Any {
	n := uint32(p.Addr().BitLen() / 8)
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func removeMasquerade() error { return removeTables(table) }
