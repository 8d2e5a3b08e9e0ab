package routing

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/datapath"
)

// Attributes of a route's tunnel (linux/lwtunnel.h), of the same numbers for IPv4 and IPv6.
const (
	encapID    = 1
	encapDst   = 2
	encapFlags = 6
)

// checksum has outer UDP checksums written; over IPv6 packets without are not taken.
const checksum = 1

// encap makes a route one through the tunnel to a node. Of netlink's own kinds none is for
// IPv4, and that for IPv6 cannot be left without a source.
type encap struct{ node netip.Addr }

var _ netlink.Encap = encap{}

// Type implements netlink.Encap.
func (e encap) Type() int {
	if e.node.Is4() {
		return nl.LWTUNNEL_ENCAP_IP
	}
	return nl.LWTUNNEL_ENCAP_IP6
}

// Encode implements netlink.Encap.
func (e encap) Encode() ([]byte, error) {
	b := nl.NewRtAttr(encapID, binary.BigEndian.AppendUint64(nil, datapath.TunnelNetwork)).Serialize()
	b = append(b, nl.NewRtAttr(encapDst, e.node.AsSlice()).Serialize()...)
	if e.node.Is6() {
		b = append(b, nl.NewRtAttr(encapFlags, binary.BigEndian.AppendUint16(nil, checksum)).Serialize()...)
	}
	return b, nil
}

// Decode implements netlink.Encap; see farEnd.
func (e encap) Decode([]byte) error { return fmt.Errorf("decode encap of %s: not here", e.node) }

// Equal implements netlink.Encap.
func (e encap) Equal(x netlink.Encap) bool { return x == e }

func (e encap) String() string { return fmt.Sprintf("tunnel to %s", e.node) }

// farEnd is the node of an encap as the kernel tells it; zero if it is not quite one of ours.
func farEnd(b []byte) (netip.Addr, error) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return netip.Addr{}, err
	}
	var node netip.Addr
	var id uint64
	var flags uint16
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case encapID:
			id = binary.BigEndian.Uint64(a.Value)
		case encapDst:
			node, _ = netip.AddrFromSlice(a.Value)
		case encapFlags:
			flags = binary.BigEndian.Uint16(a.Value)
		}
	}
	if id != datapath.TunnelNetwork || node.Is6() && flags&checksum == 0 {
		return netip.Addr{}, nil
	}
	return node, nil
}
