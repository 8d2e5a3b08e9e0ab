package cni

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

// veth is an attachment's pair of interfaces: the host side in the plugin's network
// namespace, the pod side in the pod's.
type veth struct {
	hostName  string
	pins      string // what its links are pinned below
	hostIndex int
	podName   string
	podIndex  int
	podMAC    net.HardwareAddr
	mtu       int

	node, pod *netlink.Handle
	podNetns  ns.NetNS
}

// openNetns opens the pod's network namespace, which must not be the node's.
func openNetns(path string) (ns.NetNS, error) {
	pod, err := ns.GetNS(path)
	if err != nil {
		return nil, fail(types.ErrInvalidNetNS, "CNI_NETNS: %v", err)
	}
	own, err := netnsInode("/proc/thread-self/ns/net")
	theirs, err2 := netnsInode(path)
	if err := errors.Join(err, err2); err != nil {
		_ = pod.Close()
		return nil, err
	}
	if own == theirs {
		_ = pod.Close()
		return nil, fail(types.ErrInvalidNetNS, "CNI_NETNS: %s is the node's own network namespace", path)
	}
	return pod, nil
}

// openVeth opens netlink on both sides, until the process ends; the interfaces need
// not exist yet.
func openVeth(a api.Attachment, podNetns ns.NetNS) (*veth, error) {
	name := HostIfName(a.ContainerID, a.IfName)
	v := &veth{hostName: name, pins: name, podName: a.IfName, podNetns: podNetns}
	var err error
	if v.node, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink of the node: %w", err)
	}
	if v.pod, err = netlink.NewHandleAt(netns.NsHandle(podNetns.Fd()), unix.NETLINK_ROUTE); err != nil {
		v.node.Close()
		return nil, fmt.Errorf("netlink of %s: %w", podNetns.Path(), err)
	}
	return v, nil
}

// absent is an error if either side exists already: an ADD must not touch what
// another ADD made.
func (v *veth) absent() error {
	for _, side := range []struct {
		h     *netlink.Handle
		name  string
		where string
	}{{v.node, v.hostName, "on the node"}, {v.pod, v.podName, "in " + v.podNetns.Path()}} {
		_, err := side.h.LinkByName(side.name)
		if err == nil {
			return fail(types.ErrInternal, "interface %s exists already %s: the container is attached; DEL it before another ADD", side.name, side.where)
		}
		if !notFound(err) {
			return fmt.Errorf("look for %s %s: %w", side.name, side.where, err)
		}
	}
	return nil
}

// create makes the pair, both ends down. Without an MTU it gets what both the node's way out
// and, if there is one, the tunnel to other nodes take.
func (v *veth) create(mtu, tunnel int) error {
	if mtu == 0 {
		mtu = wayOutMTU(v.node)
		if tunnel != 0 && (mtu == 0 || tunnel < mtu) {
			mtu = tunnel
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = v.hostName, hostMAC, mtu
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace, pair.PeerMTU = v.podName, netlink.NsFd(int(v.podNetns.Fd())), uint32(mtu)
	if err := v.node.LinkAdd(pair); err != nil {
		return fmt.Errorf("create veth %s - %s: %w", v.hostName, v.podName, err)
	}
	return nil
}

// learn reads the numbers the kernel gave to the pair and marks it with note.
func (v *veth) learn(note string) error {
	host, err := v.node.LinkByName(v.hostName)
	if err != nil {
		return fmt.Errorf("find %s: %w", v.hostName, err)
	}
	if err := v.node.LinkSetAlias(host, note); err != nil {
		return fmt.Errorf("set alias of %s: %w", v.hostName, err)
	}
	inPod, err := v.pod.LinkByName(v.podName)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", v.podName, v.podNetns.Path(), err)
	}
	v.hostIndex, v.podIndex = host.Attrs().Index, inPod.Attrs().Index
	v.podMAC, v.mtu = inPod.Attrs().HardwareAddr, inPod.Attrs().MTU
	return nil
}

// deleteHostSide removes a host side and so the pair, its addresses and its routes.
// None there is no error; was says so.
func deleteHostSide(node *netlink.Handle, name string) (was bool, err error) {
	link, err := node.LinkByName(name)
	if err == nil {
		was, err = true, node.LinkDel(link)
	}
	if err != nil && !notFound(err) {
		return was, fmt.Errorf("delete %s: %w", name, err)
	}
	return was, nil
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// wayOutMTU is the smallest MTU of the devices the node's default routes go out of;
// 0, the kernel's default for a veth, if there are none.
func wayOutMTU(node *netlink.Handle) int {
	smallest := 0
	routes, err := node.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
			continue
		}
		link, err := node.LinkByIndex(r.LinkIndex)
		if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if mtu := link.Attrs().MTU; smallest == 0 || mtu < smallest {
			smallest = mtu
		}
	}
	return smallest
}
