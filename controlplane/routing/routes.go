// Package routing brings packets to the pods of other nodes and, translated, to the
// outside: routes by netlink, one nftables table. Both are the node's own, marked as
// Weir's, compared with what is wanted, and removed on uninstall.
package routing

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/source"
)

// Protocol marks our routes in the kernel's tables (ip route: "proto 119").
const Protocol = 119

// nowhereMetric loses to the routes of pods, which are longer anyway, and to anything
// an administrator adds.
const nowhereMetric = 1 << 16

// address of a node in the family of p.
func address(n source.Node, p netip.Prefix) (netip.Addr, bool) {
	i := slices.IndexFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return n.Addresses[i], true
}

// route is one of ours: to a node's pods by way of that node, or, without one, of this
// node's range, to nowhere: an address there that no pod has must not leave the node.
type route struct {
	table int
	to    netip.Prefix
	via   netip.Addr // the node, as next hop
	node  netip.Addr // the node, as the far end of the tunnel
	dev   int
	kind  int // of a route to nowhere: RTN_PROHIBIT; older versions had RTN_UNREACHABLE
}

// nowhere are the routes for addresses that no pod has. "Prohibited" is what a connected UDP
// socket's owner hears of at the next call; "host unreachable" is not, and what was connected
// to a pod that is gone would go on sending.
func nowhere(self source.Node) map[route]bool {
	out := map[route]bool{}
	for _, cidr := range self.PodCIDRs {
		out[route{table: unix.RT_TABLE_MAIN, to: cidr.Masked(), kind: unix.RTN_PROHIBIT}] = true
	}
	return out
}

// Routes makes the routes to other nodes' pods what they should be (mode native). What
// cannot be routed is in the error, by node; the rest is routed.
func Routes(self source.Node, others []source.Node) error {
	wanted := nowhere(self)
	var errs []error
	for _, n := range others {
		for _, cidr := range n.PodCIDRs {
			r, err := native(n, cidr.Masked())
			if err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
				continue
			}
			wanted[r] = true
		}
	}
	return errors.Join(append(errs, reconcile(wanted))...)
}

// native is a route by way of a node that is a neighbour.
func native(n source.Node, to netip.Prefix) (route, error) {
	via, ok := address(n, to)
	if !ok {
		return route{}, fmt.Errorf("it has pods in %s and no InternalIP of that family", to)
	}
	found, err := netlink.RouteGet(via.AsSlice())
	if err != nil || len(found) == 0 {
		return route{}, fmt.Errorf("no route to its address %s: %w", via, err)
	}
	if gw := found[0].Gw; gw != nil {
		return route{}, fmt.Errorf("its address %s is behind the router %s, which would have to know where its pods %s are: "+
			"use --routing vxlan, or give the nodes one network", via, gw, to)
	}
	return route{table: unix.RT_TABLE_MAIN, to: to, via: via, dev: found[0].LinkIndex}, nil
}

// reconcile adds what is missing and removes what is ours and not wanted. A route that
// changes is replaced in one step.
func reconcile(wanted map[route]bool) error {
	have, err := ours()
	if err != nil {
		return err
	}
	var errs []error
	type place struct {
		table   int
		to      netip.Prefix
		unicast bool // else it has another metric
	}
	replaced := map[place]bool{}
	for _, r := range sorted(wanted) {
		if have[r] {
			continue
		}
		if err := netlink.RouteReplace(r.kernel()); err != nil {
			errs = append(errs, fmt.Errorf("route %s: %w", r, err))
		} else {
			replaced[place{r.table, r.to, r.isUnicast()}] = true
		}
	}
	for _, r := range sorted(have) {
		if wanted[r] || replaced[place{r.table, r.to, r.isUnicast()}] {
			continue // gone by the replacement
		}
		if err := netlink.RouteDel(r.kernel()); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r, err))
		}
	}
	return errors.Join(errs...)
}

func sorted(routes map[route]bool) (out []route) {
	for r := range routes {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b route) int {
		return cmp.Or(a.table-b.table, a.to.Addr().Compare(b.to.Addr()), a.to.Bits()-b.to.Bits())
	})
	return out
}

// ours are the kernel's routes that carry our mark.
func ours() (map[route]bool, error) {
	out := map[route]bool{}
	err := eachRoute(func(head *nl.RtMsg, r route, _ uint32) {
		if head.Protocol == Protocol {
			out[r] = true
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// eachRoute lists the kernel's routes, with their metrics. They are read here because the library
// does not tell the far ends of tunnels.
func eachRoute(f func(head *nl.RtMsg, r route, metric uint32)) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		ask := nl.NewRtMsg()
		ask.Family, ask.Protocol, ask.Table, ask.Type = family, 0, 0, 0
		req.AddData(ask)
		list, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			return fmt.Errorf("list routes: they changed meanwhile: %w", err)
		}
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, m := range list {
			head := nl.DeserializeRtMsg(m)
			r, metric, err := read(head, m[head.Len():])
			if err != nil {
				return fmt.Errorf("list routes: %w", err)
			}
			f(head, r, metric)
		}
	}
	return nil
}

func read(head *nl.RtMsg, rest []byte) (r route, metric uint32, err error) {
	r.table = int(head.Table)
	if head.Type != unix.RTN_UNICAST {
		r.kind = int(head.Type)
	}
	attrs, err := nl.ParseRouteAttr(rest)
	if err != nil {
		return r, 0, err
	}
	to := netip.IPv4Unspecified()
	if head.Family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_PRIORITY:
			metric = binary.NativeEndian.Uint32(a.Value)
		case unix.RTA_TABLE:
			r.table = int(binary.NativeEndian.Uint32(a.Value))
		case unix.RTA_GATEWAY:
			r.via, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_ENCAP:
			if head.Protocol != Protocol {
				continue // of any kind
			}
			if r.node, err = farEnd(a.Value); err != nil {
				return r, 0, err
			}
		case unix.RTA_OIF:
			if head.Type == unix.RTN_UNICAST {
				r.dev = int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	}
	r.to = netip.PrefixFrom(to, int(head.Dst_len))
	return r, metric, nil
}

func (r route) isUnicast() bool { return r.dev != 0 }

func (r route) String() string {
	switch {
	case r.node.IsValid():
		return fmt.Sprintf("%s by the tunnel to %s", r.to, r.node)
	case r.via.IsValid():
		return fmt.Sprintf("%s via %s", r.to, r.via)
	}
	if r.kind != unix.RTN_PROHIBIT {
		return fmt.Sprintf("to nowhere (type %d) %s", r.kind, r.to)
	}
	return fmt.Sprintf("prohibit %s", r.to)
}

func (r route) kernel() *netlink.Route {
	k := &netlink.Route{
		Protocol: Protocol, Table: r.table,
		Dst: &net.IPNet{IP: r.to.Addr().AsSlice(), Mask: net.CIDRMask(r.to.Bits(), r.to.Addr().BitLen())},
	}
	if !r.isUnicast() {
		k.Type, k.Priority = r.kind, nowhereMetric
		return k
	}
	k.Type, k.LinkIndex = unix.RTN_UNICAST, r.dev
	if r.node.IsValid() {
		k.Encap = encap{r.node}
		if r.to.Addr().Is4() {
			k.Scope = unix.RT_SCOPE_LINK
		}
	} else {
		k.Gw = r.via.AsSlice()
	}
	return k
}

// Remove takes all of it away.
func Remove() error { return errors.Join(reconcile(nil), removeTunnel(), removeMasquerade()) }
