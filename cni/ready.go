package cni

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	readyWait  = 5 * time.Second
	readyPause = 2 * time.Millisecond
)

// awaitReady returns when both sides can send and the pod's addresses receive. Of both the
// kernel takes care in its own time, by workers, and until then loses packets without a
// word: the end that was taken up first has no carrier before the other is up, and an
// IPv6 address is not the pod's before its local route is there.
func (v *veth) awaitReady(ips []netip.Addr) error {
	for _, side := range []struct {
		h     *netlink.Handle
		index int
		name  string
	}{{v.pod, v.podIndex, v.podName + " in " + v.podNetns.Path()}, {v.node, v.hostIndex, v.hostName}} {
		if err := await(func() (bool, error) { return hasCarrier(side.h, side.index) }); err != nil {
			return fmt.Errorf("carrier of %s: %w", side.name, err)
		}
	}
	for _, ip := range ips {
		if err := await(func() (bool, error) { return isLocal(v.pod, ip) }); err != nil {
			return fmt.Errorf("local route of %s in %s: %w", ip, v.podNetns.Path(), err)
		}
	}
	return nil
}

func hasCarrier(h *netlink.Handle, index int) (bool, error) {
	link, err := h.LinkByIndex(index)
	if err != nil {
		return false, err
	}
	return link.Attrs().OperState == netlink.OperUp, nil
}

func isLocal(h *netlink.Handle, ip netip.Addr) (bool, error) {
	family := netlink.FAMILY_V6
	if ip.Is4() {
		family = netlink.FAMILY_V4
	}
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(host(ip))}
	routes, err := h.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	return len(routes) > 0, err
}

// await polls until a condition holds.
func await(ok func() (bool, error)) error {
	for end := time.Now().Add(readyWait); ; time.Sleep(readyPause) {
		yes, err := ok()
		if yes || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not there after %s", readyWait)
		}
	}
}
