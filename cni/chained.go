package cni

import (
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/loader"
)

// chained reports whether another plugin makes the interface and gives the addresses: the
// configuration says so by having no ipam. Weir then judges and observes, and changes
// nothing of what the other made.
func (c *config) chained() bool { return c.IPAM.Type == "" }

func (c *config) validateChained() error {
	if c.MTU != 0 {
		return invalid("mtu", "without ipam the interface is that of the plugin before weir-cni: give it there")
	}
	if !c.DNS.IsEmpty() {
		return invalid("dns", "without ipam the result is that of the plugin before weir-cni: give it there")
	}
	return nil
}

// placed is an error where the list and the configuration say different things about who
// makes the interface.
func (c *config) placed() error {
	switch {
	case c.PrevResult == nil && c.chained():
		return invalid("ipam.type", "missing: name the plugin that gives addresses, such as host-local; "+
			"or put weir-cni behind the plugin that makes the pod's interface")
	case c.PrevResult != nil && !c.chained():
		return invalid("ipam", "weir-cni follows another plugin here, which gave the pod its interface and addresses (prevResult): "+
			"leave ipam out, or put weir-cni first in the list")
	}
	return nil
}

// previous is the result of the plugins before, as it came and in the newest form.
func (c *config) previous() (types.Result, *current.Result, error) {
	r, err := create.Create(c.CNIVersion, c.PrevResult)
	if err != nil {
		return nil, nil, fail(types.ErrDecodingFailure, "prevResult: %v", err)
	}
	full, err := current.NewResultFromResult(r)
	if err != nil {
		return nil, nil, fail(types.ErrDecodingFailure, "prevResult: %v", err)
	}
	return r, full, nil
}

// inherit takes the addresses that the plugins before gave.
func (a *adding) inherit() error {
	before, full, err := a.conf.previous()
	if err != nil {
		return err
	}
	a.before = before
	a.addrs, err = addressesOf(full, a.at.IfName)
	return err
}

// addressesOf are those that a result gives to an interface of the pod.
func addressesOf(r *current.Result, ifName string) (got addresses, err error) {
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(r.Interfaces) {
				return got, invalid("prevResult.ips", "%v is of interface %d, which is not in the result", ip.Address.IP, *i)
			}
			if on := r.Interfaces[*i]; on.Sandbox == "" || on.Name != ifName {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		place := &got.V6
		if addr.Is4() {
			place = &got.V4
		}
		if !ok || place.IsValid() {
			return got, invalid("prevResult.ips", "%v: a pod has one address of each family at most", r.IPs)
		}
		*place = addr
	}
	if len(got.list()) == 0 {
		return got, invalid("prevResult.ips", "no address for %s: the plugin that makes the pod's interface has to be before weir-cni, and to give addresses", ifName)
	}
	return got, nil
}

// follow finds both ends of the veth that the pod's interface is. What a result says of
// interfaces is not asked: plugins differ in it.
func (v *veth) follow() error {
	inPod, err := v.pod.LinkByName(v.podName)
	if notFound(err) {
		return invalid("prevResult", "there is no interface %s in %s: the plugin that makes it has to be before weir-cni", v.podName, v.podNetns.Path())
	}
	if err != nil {
		return err
	}
	if inPod.Type() != "veth" {
		return invalid("prevResult", "%s in %s is of type %s: Weir enforces at the node's end of a veth, and there is none; "+
			"pods of this network cannot be chained", v.podName, v.podNetns.Path(), inPod.Type())
	}
	host, err := v.node.LinkByIndex(inPod.Attrs().ParentIndex)
	if err != nil && !notFound(err) {
		return err
	}
	paired := false
	if err == nil {
		if paired, err = v.isPair(host, inPod); err != nil {
			return err
		}
	}
	if !paired {
		return invalid("prevResult", "the other end of %s in %s is not in the node's network namespace", v.podName, v.podNetns.Path())
	}
	v.hostName, v.hostIndex, v.podIndex = host.Attrs().Name, host.Attrs().Index, inPod.Attrs().Index
	v.podMAC, v.mtu = inPod.Attrs().HardwareAddr, inPod.Attrs().MTU
	return nil
}

// isPair reports whether two ends name each other: an index alone may be one of another
// namespace.
func (v *veth) isPair(host, inPod netlink.Link) (bool, error) {
	pod, err := v.node.GetNetNsIdByFd(int(v.podNetns.Fd()))
	if err != nil {
		return false, err
	}
	return host.Type() == "veth" && host.Attrs().ParentIndex == inPod.Attrs().Index && pod >= 0 && host.Attrs().NetNsID == pod, nil
}

// attachChained is not undone: the interface goes with its plugin's DEL, and until then its
// programs drop what has no endpoint.
func (a *adding) attachChained() error {
	return loader.AttachChained(a.conf.pins, a.veth.hostIndex, a.veth.pins, a.conf.xdp)
}

// followed is CHECK of what is Weir's, and of what it rests on.
func (c *checking) followed(agent *api.Client) {
	v := c.veth
	if err := v.follow(); err != nil {
		c.errorf("%v", err)
		return
	}
	host, err := v.node.LinkByIndex(v.hostIndex)
	inPod, err2 := v.pod.LinkByIndex(v.podIndex)
	if c.must(err, v.hostName+" on the node") && c.must(err2, v.podName+" in the pod") {
		c.up(host, inPod)
	}
	have := c.podAddresses()
	for _, ip := range c.addrs.list() {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(ip.AsSlice()) }) {
			c.errorf("%s lacks address %s", v.podName, ip)
		}
	}
	c.links()
	c.endpoint(agent)
}
