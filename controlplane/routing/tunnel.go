package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

// tunnelDevice is the node's one vxlan device. It knows no other node: the route of each packet
// says whom it goes to, and of what comes out of it the node's programs judge whether it
// came from there.
const tunnelDevice = datapath.TunnelDevice

// What a tunnel packet has before the one it carries: its outer IP header, UDP, VXLAN, Ethernet.
const (
	overhead4 = 50
	overhead6 = 70
	minMTU6   = 1280
)

// VXLAN joins nodes over any network that brings UDP from one to the other: what their pods
// send each other, and what pods and other nodes do, travels in packets of the nodes.
type VXLAN struct {
	Masquerade bool
	Port       int // UDP
	// Attach puts the programs on the device before anything comes in by it.
	Attach func(ifindex int, name string) error
}

// Route is Native's.
func (v VXLAN) Route(nodes *source.Nodes, cluster []netip.Prefix) error {
	if nodes.Own == nil || len(nodes.Own.PodCIDRs) == 0 {
		return nil // the source says so; what is routed stays
	}
	reached, errs := ways(*nodes.Own, nodes.Others)
	if err := guard(v.Port, cluster); err != nil {
		return errors.Join(append(errs, err)...)
	}
	dev, err := v.prepare(*nodes.Own, reached)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	wanted := nowhere(*nodes.Own)
	for _, w := range reached {
		for _, r := range w.routes(dev, nodes.Own.PodCIDRs) {
			wanted[r] = true
		}
	}
	errs = append(errs, reconcile(wanted), reconcileRules(nodes.Own.PodCIDRs), v.room(nodes.Own.PodCIDRs))
	return errors.Join(append(errs, masquerade(v.Masquerade, nodes, cluster))...)
}

// room is an error where IPv6 does not fit the tunnel: the kernel has none on such a device.
func (v VXLAN) room(ranges []netip.Prefix) error {
	mtu := v.PodMTU()
	if mtu >= minMTU6 || !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return nil
	}
	return fmt.Errorf("pods have IPv6 addresses and what fits the tunnel, %d bytes, is less than IPv6 asks for (%d): "+
		"give the devices between the nodes an MTU of %d or more", mtu, minMTU6, minMTU6+overhead6)
}

// PodMTU is what pods' packets may have to fit the tunnel; before there is one, what fits
// any that goes out by a default route. 0 = nothing is known.
func (v VXLAN) PodMTU() int {
	if link, err := netlink.LinkByName(tunnelDevice); err == nil {
		return link.Attrs().MTU
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0
	}
	smallest := 0
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err == nil && (smallest == 0 || link.Attrs().MTU < smallest) {
			smallest = link.Attrs().MTU
		}
	}
	return max(0, smallest-overhead6)
}

// way is how to reach another node.
type way struct {
	node source.Node
	to   netip.Addr // the node's, as outer destination
	mtu  int        // of what is carried
}

// ways finds how to reach the other nodes; those that cannot be reached are in the errors.
func ways(self source.Node, others []source.Node) (out []way, errs []error) {
	for _, n := range others {
		if len(n.PodCIDRs) == 0 {
			continue
		}
		w, err := wayTo(self, n)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
			continue
		}
		out = append(out, w)
	}
	return out, errs
}

// wayTo goes by the family of this node's first address that the other has one of, too.
func wayTo(self, n source.Node) (way, error) {
	var families []string
	for _, own := range self.Addresses {
		i := slices.IndexFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == own.Is4() && a.IsGlobalUnicast() })
		if i < 0 {
			families = append(families, familyName(own))
			continue
		}
		w := way{node: n, to: n.Addresses[i]}
		found, err := netlink.RouteGet(w.to.AsSlice())
		if err != nil || len(found) == 0 {
			return w, fmt.Errorf("no route to its address %s: %w", w.to, err)
		}
		link, err := netlink.LinkByIndex(found[0].LinkIndex)
		if err != nil {
			return w, fmt.Errorf("the device on the way to its address %s: %w", w.to, err)
		}
		if link.Attrs().Name == tunnelDevice {
			return w, fmt.Errorf("its address %s lies in another node's range of pods", w.to)
		}
		w.mtu = link.Attrs().MTU - overhead(w.to)
		return w, nil
	}
	if len(families) == 0 {
		return way{}, fmt.Errorf("this node (%s) has no InternalIP to reach it from", self.Name)
	}
	return way{}, fmt.Errorf("it has no InternalIP of a family that this node (%s) has one of (%s)", self.Name, families[0])
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func overhead(outer netip.Addr) int {
	if outer.Is4() {
		return overhead4
	}
	return overhead6
}

// routes of a node's pods, for all; of the node's own addresses, for this node's pods alone:
// what the nodes themselves say to each other, the tunnel's packets first, needs no tunnel.
func (w way) routes(dev int, pods []netip.Prefix) (out []route) {
	for _, cidr := range w.node.PodCIDRs {
		out = append(out, route{table: unix.RT_TABLE_MAIN, to: cidr.Masked(), node: w.to, dev: dev})
	}
	for _, a := range w.node.Addresses {
		if a.IsGlobalUnicast() && w.node.Has(a) && slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }) {
			out = append(out, route{table: podsTable, to: netip.PrefixFrom(a, a.BitLen()), node: w.to, dev: dev})
		}
	}
	return out
}

// prepare makes the device what it should be and returns its index.
func (v VXLAN) prepare(self source.Node, ways []way) (int, error) {
	link, err := v.present()
	if err != nil {
		return 0, err
	}
	mtu, err := deviceMTU(self, ways)
	if err != nil {
		return 0, err
	}
	index := link.Attrs().Index
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return 0, fmt.Errorf("set MTU %d of %s: %w", mtu, tunnelDevice, err)
		}
	}
	if err := ownAddresses(self, link); err != nil {
		return 0, err
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		return index, nil
	}
	if err := v.Attach(index, tunnelDevice); err != nil {
		return 0, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EEXIST) {
			return 0, v.taken(err)
		}
		return 0, fmt.Errorf("set %s up: %w", tunnelDevice, err)
	}
	return index, nil
}

func (v VXLAN) taken(err error) error {
	return fmt.Errorf("UDP port %d of this node is another's (a vxlan device of another network?): remove that, "+
		"or give all nodes another --tunnel-port: %w", v.Port, err)
}

// present returns the tunnelDevice, which it makes, down, if it is not there or another's.
func (v VXLAN) present() (netlink.Link, error) {
	link, err := netlink.LinkByName(tunnelDevice)
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil:
		if is, ok := link.(*netlink.Vxlan); ok && is.FlowBased && is.Port == v.Port && link.Attrs().RawFlags&unix.IFF_NOARP != 0 {
			return link, nil
		}
		if err := netlink.LinkDel(link); err != nil {
			return nil, fmt.Errorf("remove %s, which is not as it should be: %w", tunnelDevice, err)
		}
	case !errors.As(err, &missing):
		return nil, fmt.Errorf("look for %s: %w", tunnelDevice, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = tunnelDevice
	switch err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: v.Port}); {
	case errors.Is(err, unix.EEXIST):
		return nil, v.taken(err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("make %s: the kernel has no vxlan (CONFIG_VXLAN): load that module, or use --routing native: %w", tunnelDevice, err)
	case err != nil:
		return nil, fmt.Errorf("make %s: %w", tunnelDevice, err)
	}
	if link, err = netlink.LinkByName(tunnelDevice); err == nil {
		// Nobody is asked for a hardware address: there is one for each node, which no other
		// node knows, and frames to it are taken for foreign but by the programs.
		err = netlink.LinkSetARPOff(link)
	}
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", tunnelDevice, err)
	}
	return netlink.LinkByName(tunnelDevice)
}

// deviceMTU is what fits to every node; alone, by this node's own network.
func deviceMTU(self source.Node, ways []way) (int, error) {
	smallest := 0
	for _, w := range ways {
		if smallest == 0 || w.mtu < smallest {
			smallest = w.mtu
		}
	}
	if smallest > 0 {
		return smallest, nil
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	for _, own := range self.Addresses {
		for _, a := range addrs {
			link, err := netlink.LinkByIndex(a.LinkIndex)
			if ip, _ := netip.AddrFromSlice(a.IP); err == nil && ip.Unmap() == own && link.Attrs().Name != tunnelDevice {
				return link.Attrs().MTU - overhead(own), nil
			}
		}
	}
	return 0, fmt.Errorf("no device of this node has one of its InternalIPs %v", self.Addresses)
}

// ownAddresses gives the device this node's addresses, too: what the node itself, or its
// translation for others, sends by it bears the address that other nodes know it by.
func ownAddresses(self source.Node, link netlink.Link) error {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	elsewhere, here := map[netip.Addr]bool{}, map[netip.Addr]netlink.Addr{}
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); a.LinkIndex != link.Attrs().Index {
			elsewhere[ip] = true
		} else if !ip.IsLinkLocalUnicast() {
			here[ip] = a
		}
	}
	wanted := map[netip.Addr]bool{}
	for _, four := range []bool{true, false} {
		i := slices.IndexFunc(self.Addresses, func(a netip.Addr) bool {
			return a.Is4() == four && a.IsGlobalUnicast() && elsewhere[a]
		})
		if i >= 0 {
			wanted[self.Addresses[i]] = true
		}
	}
	var errs []error
	for a, had := range here {
		if !wanted[a] {
			errs = append(errs, netlink.AddrDel(link, &had))
		}
	}
	for a := range wanted {
		if _, ok := here[a]; ok {
			continue
		}
		add := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if err := netlink.AddrAdd(link, add); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("give %s the address %s: %w", tunnelDevice, a, err))
		}
	}
	return errors.Join(errs...)
}

// removeTunnel takes the device away, and with it its routes and addresses.
func removeTunnel() error {
	err := errors.Join(reconcileRules(nil), removeTables(guardTable))
	link, missing := netlink.LinkByName(tunnelDevice)
	if missing != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(missing, &gone) {
			return err
		}
		return errors.Join(err, fmt.Errorf("look for %s: %w", tunnelDevice, missing))
	}
	if failed := netlink.LinkDel(link); failed != nil && !errors.Is(failed, unix.ENODEV) {
		err = errors.Join(err, fmt.Errorf("remove %s: %w", tunnelDevice, failed))
	}
	return err
}
