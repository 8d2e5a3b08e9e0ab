package cni

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configure gives both sides what they need and takes them up, the pod's first. All of
// it happens with the programs attached: what has no endpoint yet passes nothing.
func (v *veth) configure(addrs addresses) error {
	has6 := addrs.V6.IsValid()
	if err := v.podNetns.Do(func(ns.NetNS) error { return v.podSettings(has6) }); err != nil {
		return fmt.Errorf("pod side: %w", err)
	}
	if err := setIPv6(v.hostName, has6); err != nil {
		return fmt.Errorf("node side: %w", err)
	}
	if err := v.podUp(addrs.list()); err != nil {
		return fmt.Errorf("pod side: %w", err)
	}
	if err := v.nodeUp(addrs.list()); err != nil {
		return fmt.Errorf("node side: %w", err)
	}
	return v.awaitReady(addrs.list())
}

// podSettings runs in the pod's network namespace, the only one whose sysctls we touch
// beside those of the veth itself. A runtime may have switched IPv6 off in it.
func (v *veth) podSettings(has6 bool) error {
	if has6 {
		if err := writeSysctl("lo", setting{"disable_ipv6", "0"}); err != nil {
			return err
		}
	}
	return setIPv6(v.podName, has6)
}

// podUp sets addresses, takes lo and the interface up, and points everything at the
// gateways.
func (v *veth) podUp(ips []netip.Addr) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: v.podIndex, Name: v.podName}}
	for _, ip := range ips {
		if err := v.pod.AddrAdd(link, podAddr(ip)); err != nil {
			return fmt.Errorf("add address %s to %s: %w", ip, v.podName, err)
		}
	}
	lo, err := v.pod.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	for _, l := range []netlink.Link{lo, link} {
		if err := v.pod.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
		}
	}
	for _, ip := range ips {
		gw, dst := gatewayOf(ip)
		if err := v.pod.NeighSet(permanent(v.podIndex, gw, hostMAC)); err != nil {
			return fmt.Errorf("neighbour %s of %s: %w", gw, v.podName, err)
		}
		if err := v.pod.RouteAdd(defaultRoute(v.podIndex, gw, dst)); err != nil {
			return fmt.Errorf("default route via %s of %s: %w", gw, v.podName, err)
		}
	}
	return nil
}

func podAddr(ip netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(host(ip))}
	if ip.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func defaultRoute(index int, gw netip.Addr, dst netip.Prefix) *netlink.Route {
	return &netlink.Route{LinkIndex: index, Dst: ipNet(dst), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
}

// nodeUp takes the host side up and routes the pod's addresses to it. A route that is
// there already belongs to somebody else and is an error.
func (v *veth) nodeUp(ips []netip.Addr) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: v.hostIndex, Name: v.hostName}}
	if err := v.node.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", v.hostName, err)
	}
	for _, ip := range ips {
		if err := v.node.NeighSet(permanent(v.hostIndex, ip, v.podMAC)); err != nil {
			return fmt.Errorf("neighbour %s of %s: %w", ip, v.hostName, err)
		}
		route := &netlink.Route{LinkIndex: v.hostIndex, Dst: ipNet(host(ip)), Scope: netlink.SCOPE_LINK}
		if err := v.node.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s to %s: %w", host(ip), v.hostName, err)
		}
	}
	return nil
}

// cookie is what the kernel's programs know the pod's network namespace by.
func (v *veth) cookie() (cookie uint64, err error) {
	err = v.podNetns.Do(func(ns.NetNS) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie of %s: %w", v.podNetns.Path(), err)
	}
	return cookie, nil
}
