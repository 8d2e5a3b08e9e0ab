package cni

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// The gateways of every pod. Nothing answers for them: both ends of a veth have
// permanent neighbours, so no ARP and no neighbour discovery is needed, and none can
// be forged. The IPv6 one is the link-local address that hostMAC makes.
var (
	gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	gateway6 = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee")
	any4     = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	any6     = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// gatewayOf is the gateway of a pod's address, and the destination routed to it.
func gatewayOf(ip netip.Addr) (netip.Addr, netip.Prefix) {
	if ip.Is4() {
		return gateway4, any4
	}
	return gateway6, any6
}

// ipNet is a prefix as netlink wants it.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// host is the prefix of one address.
func host(ip netip.Addr) netip.Prefix { return netip.PrefixFrom(ip, ip.BitLen()) }

// permanent is the neighbour entry ip -> mac on an interface.
func permanent(index int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}
