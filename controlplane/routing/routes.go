// Package routing brings packets to the pods of other nodes and, translated, to the
// outside: routes by netlink, one nftables table. Both are the node's own, marked as
// Weir's, compared with what is wanted, and removed on uninstall.
package routing

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/source"
)

// Protocol marks our routes in the kernel's tables (ip route: "proto 119").
const Protocol = 119

// unreachableMetric loses to the routes of pods, which are longer anyway, and to anything
// an administrator adds.
const unreachableMetric = 1 << 16

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
	to  netip.Prefix
	via netip.Addr
	dev int
}

// Routes makes the routes to other nodes' pods what they should be (mode native). What
// cannot be routed is in the error, by node; the rest is routed.
func Routes(self source.Node, others []source.Node) error {
	wanted := map[route]bool{}
	for _, cidr := range self.PodCIDRs {
		wanted[route{to: cidr.Masked()}] = true
	}
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
	return route{to: to, via: via, dev: found[0].LinkIndex}, nil
}

// reconcile adds what is missing and removes what is ours and not wanted. A route that
// changes is replaced in one step.
func reconcile(wanted map[route]bool) error {
	have, err := ours()
	if err != nil {
		return err
	}
	var errs []error
	replaced := map[netip.Prefix]bool{}
	for _, r := range sorted(wanted) {
		replaced[r.to] = true
		if _, ok := have[r]; ok {
			continue
		}
		if err := netlink.RouteReplace(r.kernel()); err != nil {
			errs = append(errs, fmt.Errorf("route %s via %s: %w", r.to, r.via, err))
		}
	}
	for r, kernel := range have {
		if wanted[r] || replaced[r.to] && kernel.Type == unix.RTN_UNICAST {
			continue // gone by the replacement
		}
		if err := netlink.RouteDel(&kernel); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r.to, err))
		}
	}
	return errors.Join(errs...)
}

func sorted(routes map[route]bool) (out []route) {
	for r := range routes {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b route) int {
		return cmp.Or(a.to.Addr().Compare(b.to.Addr()), a.to.Bits()-b.to.Bits())
	})
	return out
}

// ours are the kernel's routes that carry our mark.
func ours() (map[route]netlink.Route, error) {
	out := map[route]netlink.Route{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, k := range list {
			ones, _ := k.Dst.Mask.Size()
			to, _ := netip.AddrFromSlice(k.Dst.IP)
			r := route{to: netip.PrefixFrom(to.Unmap(), ones)}
			if k.Type == unix.RTN_UNICAST {
				via, _ := netip.AddrFromSlice(k.Gw)
				r.via, r.dev = via.Unmap(), k.LinkIndex
			}
			out[r] = k
		}
	}
	return out, nil
}

func (r route) kernel() *netlink.Route {
	k := &netlink.Route{
		Protocol: Protocol,
		Dst:      &net.IPNet{IP: r.to.Addr().AsSlice(), Mask: net.CIDRMask(r.to.Bits(), r.to.Addr().BitLen())},
	}
	if !r.via.IsValid() {
		k.Type, k.Priority = unix.RTN_UNREACHABLE, unreachableMetric
		return k
	}
	k.Type, k.Gw, k.LinkIndex = unix.RTN_UNICAST, r.via.AsSlice(), r.dev
	return k
}

// Remove takes all of our routes away.
func Remove() error { return errors.Join(reconcile(nil), removeMasquerade()) }
