package routing

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	guardTable = "weir-tunnel"
	statusDNAT = 1 << 5 // IPS_DST_NAT
)

// guard closes the way that the node's own NAT would open into other nodes' tunnels: a
// Service or NodePort whose backend is a tunnel's port, where what a stranger sends would be
// forwarded under this node's address. What is for pods, whose ports are theirs, passes. It
// replaces the table in one transaction.
func guard(port int, pods []netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, f := range families {
		t := &nftables.Table{Family: f.family, Name: guardTable}
		c.AddTable(t) // so that the deletion finds one
		c.DelTable(t)
		c.AddTable(t)
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		inside := &nftables.Set{Table: t, Name: "pods", KeyType: f.key, Interval: true}
		of := slices.DeleteFunc(slices.Clone(pods), func(p netip.Prefix) bool { return p.Addr().Is4() != f.four })
		if err := c.AddSet(inside, intervals(merged(of))); err != nil {
			return fmt.Errorf("nftables set %s: %w", inside.Name, err)
		}
		translated := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(port))},
			&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}}, // of who began: an answer may go to any port
			&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.dest, Len: f.key.Bytes},
			&expr.Lookup{SourceRegister: 1, SetName: inside.Name, SetID: inside.ID, Invert: true},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: translated})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", guardTable, err)
	}
	return nil
}

func removeTables(name string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	var errs []error
	for _, f := range families {
		c.DelTable(&nftables.Table{Family: f.family, Name: name})
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove nftables table %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
