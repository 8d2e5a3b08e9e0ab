package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/loader"
)

// checking is one CHECK under way; wrong collects the mismatches.
type checking struct {
	conf  *config
	at    api.Attachment
	addrs addresses
	veth  *veth
	wrong []string
}

// check runs CHECK: everything ADD made must still be there. It changes nothing.
func check(args *skel.CmdArgs) error {
	c := &checking{at: api.Attachment{ContainerID: args.ContainerID, IfName: args.IfName}}
	var err error
	if c.conf, err = parseConfig(args.StdinData); err != nil {
		return err
	}
	if c.addrs, err = previous(c.conf, args.IfName); err != nil {
		return err
	}
	podNetns, err := openNetns(args.Netns)
	if err != nil {
		return err
	}
	defer podNetns.Close()
	agent, err := findAgent(c.conf)
	if err != nil {
		return err
	}
	if c.veth, err = openVeth(c.at, podNetns); err != nil {
		return err
	}
	if c.conf.chained() {
		c.followed(agent)
		return c.verdict()
	}
	if c.interfaces() {
		c.podSide()
		c.nodeSide()
		c.links()
		c.endpoint(agent)
	}
	if err := invoke.DelegateCheck(context.Background(), c.conf.IPAM.Type, c.conf.raw, nil); err != nil {
		c.errorf("%v", ipamError(c.conf, err))
	}
	return c.verdict()
}

func (c *checking) verdict() error {
	if len(c.wrong) > 0 {
		return fail(codeMismatch, "%s %s: %s", c.at.ContainerID, c.at.IfName, strings.Join(c.wrong, "; "))
	}
	return nil
}

// previous reads the addresses that ADD returned.
func previous(c *config, ifName string) (addresses, error) {
	if c.PrevResult == nil {
		return addresses{}, invalid("prevResult", "missing: CHECK compares with the result of ADD")
	}
	_, full, err := c.previous()
	if err != nil {
		return addresses{}, err
	}
	if c.chained() {
		return addressesOf(full, ifName)
	}
	return usable(&current.Result{CNIVersion: current.ImplementedSpecVersion, IPs: full.IPs})
}

func (c *checking) errorf(format string, a ...any) {
	c.wrong = append(c.wrong, fmt.Sprintf(format, a...))
}

// must notes a failed look-up and reports whether it went well.
func (c *checking) must(err error, doing string) bool {
	if err != nil {
		c.errorf("%s: %v", doing, err)
	}
	return err == nil
}

// interfaces looks for both ends, which must be up and a pair.
func (c *checking) interfaces() bool {
	v := c.veth
	host, err := v.node.LinkByName(v.hostName)
	inPod, err2 := v.pod.LinkByName(v.podName)
	found := c.must(err, v.hostName+" on the node")
	if !c.must(err2, v.podName+" in the pod") || !found {
		return false
	}
	v.hostIndex, v.podIndex, v.podMAC = host.Attrs().Index, inPod.Attrs().Index, inPod.Attrs().HardwareAddr
	c.up(host, inPod)
	if host.Attrs().ParentIndex != v.podIndex || inPod.Attrs().ParentIndex != v.hostIndex {
		c.errorf("%s and %s are not the two ends of one veth", v.hostName, v.podName)
	}
	if !bytes.Equal(host.Attrs().HardwareAddr, hostMAC) {
		c.errorf("%s has MAC %s, not %s", v.hostName, host.Attrs().HardwareAddr, hostMAC)
	}
	return true
}

func (c *checking) up(links ...netlink.Link) {
	for _, l := range links {
		if l.Attrs().Flags&net.FlagUp == 0 {
			c.errorf("%s is down", l.Attrs().Name)
		}
	}
}

// podSide compares addresses, default routes, neighbours and sysctls in the pod.
func (c *checking) podSide() {
	v := c.veth
	have := c.podAddresses()
	for _, ip := range c.addrs.list() {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return samePrefix(a.IPNet, host(ip)) }) {
			c.errorf("%s lacks address %s", v.podName, host(ip))
		}
		gw, dst := gatewayOf(ip)
		c.route(v.pod, v.podName, v.podIndex, gw, dst)
		c.neighbour(v.pod, v.podName, permanent(v.podIndex, gw, hostMAC))
	}
	_ = v.podNetns.Do(func(ns.NetNS) error { c.sysctls(v.podName); return nil })
}

func (c *checking) podAddresses() []netlink.Addr {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: c.veth.podIndex}}
	have, err := c.veth.pod.AddrList(link, netlink.FAMILY_ALL)
	c.must(err, "addresses of "+c.veth.podName)
	return have
}

// nodeSide compares the routes and neighbours that lead to the pod.
func (c *checking) nodeSide() {
	v := c.veth
	for _, ip := range c.addrs.list() {
		c.route(v.node, v.hostName, v.hostIndex, netip.Addr{}, host(ip))
		c.neighbour(v.node, v.hostName, permanent(v.hostIndex, ip, v.podMAC))
	}
	c.sysctls(v.hostName)
}

// route looks for dst, via gw or direct, out of an interface.
func (c *checking) route(h *netlink.Handle, name string, index int, gw netip.Addr, dst netip.Prefix) {
	have, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
	c.must(err, "routes of "+name)
	for _, r := range have {
		via, _ := netip.AddrFromSlice(r.Gw)
		if via.Unmap() == gw && (samePrefix(r.Dst, dst) || r.Dst == nil && dst.Bits() == 0) {
			return
		}
	}
	c.errorf("%s lacks route %s", name, dst)
}

func (c *checking) neighbour(h *netlink.Handle, name string, want *netlink.Neigh) {
	have, err := h.NeighList(want.LinkIndex, netlink.FAMILY_ALL)
	c.must(err, "neighbours of "+name)
	for _, n := range have {
		if n.IP.Equal(want.IP) && n.State&netlink.NUD_PERMANENT != 0 && bytes.Equal(n.HardwareAddr, want.HardwareAddr) {
			return
		}
	}
	c.errorf("%s lacks permanent neighbour %s %s", name, want.IP, want.HardwareAddr)
}

// sysctls of an interface in the thread's network namespace.
func (c *checking) sysctls(name string) {
	for _, s := range ipv6Settings(c.addrs.V6.IsValid()) {
		got, err := os.ReadFile(sysctlPath(name, s.key))
		if errors.Is(err, os.ErrNotExist) && !c.addrs.V6.IsValid() {
			return
		}
		if c.must(err, "sysctl of "+name) && strings.TrimSpace(string(got)) != s.value {
			c.errorf("%s has %s=%s, not %s", name, s.key, strings.TrimSpace(string(got)), s.value)
		}
	}
}

// links must be pinned and hold the host side.
func (c *checking) links() {
	hooks := []string{"from_pod", "to_pod"}
	if c.conf.xdp != loader.XDPOff {
		hooks = append(hooks, "shield")
	}
	all, err := loader.Attached(c.conf.pins) // of other pods, which may come and go, too
	for _, hook := range hooks {
		i := slices.IndexFunc(all, func(a loader.Attachment) bool { return a.Name == c.veth.pins && a.Hook == hook })
		switch {
		case i < 0 && err != nil:
			c.errorf("%s is not attached to %s: %v", hook, c.veth.hostName, err)
		case i < 0:
			c.errorf("%s is not attached to %s", hook, c.veth.hostName)
		case all[i].Ifindex != c.veth.hostIndex:
			c.errorf("%s is attached to interface %d, not %d (%s)", hook, all[i].Ifindex, c.veth.hostIndex, c.veth.hostName)
		}
	}
}

// endpoint asks whether the agent enforces the pod's policy on this interface.
func (c *checking) endpoint(agent *api.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), delWait)
	defer cancel()
	all, err := agent.Endpoints(ctx)
	if !c.must(err, "endpoints of the agent") {
		return
	}
	i := slices.IndexFunc(all, func(e api.Endpoint) bool {
		return e.ContainerID == c.at.ContainerID && e.IfName == c.at.IfName
	})
	if i < 0 {
		c.errorf("the agent has no such endpoint")
		return
	}
	e := all[i]
	if !e.Ready {
		c.errorf("endpoint %d is not ready: its policy is not enforced yet", e.Number)
	}
	if int(e.HostIfindex) != c.veth.hostIndex || e.HostIfName != c.veth.hostName {
		c.errorf("endpoint %d is on interface %d (%s), not %d (%s)", e.Number, e.HostIfindex, e.HostIfName, c.veth.hostIndex, c.veth.hostName)
	}
	if e.MAC != c.veth.podMAC.String() {
		c.errorf("endpoint %d has MAC %s, not %s", e.Number, e.MAC, c.veth.podMAC)
	}
	for _, ip := range c.addrs.list() {
		if !slices.Contains(e.Addresses, ip.String()) {
			c.errorf("endpoint %d lacks address %s", e.Number, ip)
		}
	}
}

func samePrefix(n *net.IPNet, p netip.Prefix) bool {
	if n == nil {
		return false
	}
	ones, size := n.Mask.Size()
	ip, _ := netip.AddrFromSlice(n.IP)
	return ip.Unmap() == p.Addr() && ones == p.Bits() && size == p.Addr().BitLen()
}
