package testnode

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/datapath/loader"
)

// LivePod is a pod with a network namespace of its own: what its sockets send comes to the
// hooks by its veth, as in a cluster.
type LivePod struct {
	Ifindex int // of the host side
	MAC     [6]byte
	netns   netns.NsHandle
}

var (
	hostMAC  = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
	gateways = [2]netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::ecee:eeff:feee:eeee")}
)

// AddLivePod makes the pod's namespace and veth with the hooks attached. As any interface it
// drops everything until a Commit has its endpoint.
func (n *Node) AddLivePod(t testing.TB, number int, addrs ...netip.Addr) *LivePod {
	t.Helper()
	p := &LivePod{MAC: [6]byte{2, 0, 0, 0, 0, byte(number)}}
	var err error
	if p.netns, err = newNetns(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.netns.Close() })
	name := fmt.Sprint("live", number)
	n.must(t, name, func() error {
		link := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hostMAC}, PeerName: "eth0",
			PeerHardwareAddr: p.MAC[:], PeerNamespace: netlink.NsFd(p.netns),
		}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		found, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		p.Ifindex = found.Attrs().Index
		return loader.AttachPod(n.Config.BPFFSDir, p.Ifindex, name, loader.XDPOff)
	})
	n.must(t, name, func() error { return p.configureHost(addrs) })
	if err := p.configurePod(addrs); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return p
}

func newNetns() (netns.NsHandle, error) {
	type made struct {
		h   netns.NsHandle
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here, the handle keeps the namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("new network namespace: %w", err)}
			return
		}
		h, err := netns.Get()
		done <- made{h, err}
	}()
	m := <-done
	return m.h, m.err
}

func (p *LivePod) configureHost(addrs []netip.Addr) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.Ifindex}}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.NeighSet(permanent(p.Ifindex, a, p.MAC[:])); err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: p.Ifindex, Dst: single(a), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to %s: %w", a, err)
		}
	}
	return nil
}

func (p *LivePod) configurePod(addrs []netip.Addr) error {
	h, err := netlink.NewHandleAt(p.netns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
		if name == "lo" {
			continue
		}
		for _, a := range addrs {
			if err := configureAddress(h, link, a); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
	}
	return nil
}

func configureAddress(h *netlink.Handle, link netlink.Link, a netip.Addr) error {
	gateway, everything := gateways[0], netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if a.Is6() {
		gateway, everything = gateways[1], netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	index := link.Attrs().Index
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: single(a), Flags: unix.IFA_F_NODAD}); err != nil {
		return err
	}
	if err := h.NeighSet(permanent(index, gateway, hostMAC)); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(everything), Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
}

func permanent(index int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func single(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

// Thread runs f in the pod's namespace on a thread of its own and sends what it returns.
func (p *LivePod) Thread(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with f
		if err := netns.Set(p.netns); err != nil {
			done <- fmt.Errorf("enter the pod's namespace: %w", err)
			return
		}
		done <- f()
	}()
	return done
}

// Network is what lies beyond the node's uplink.
type Network struct {
	Uplink int // ifindex of the node's side
	netns  netns.NsHandle
}

// AddNetwork makes the uplink "up" with the hooks attached, and beyond it a namespace. The
// first addresses are the node's, the others all of the network's.
func (n *Node) AddNetwork(t testing.TB, own, others []netip.Prefix) *Network {
	t.Helper()
	w := &Network{}
	var err error
	if w.netns, err = newNetns(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.netns.Close() })
	n.must(t, "up", func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up"}, PeerName: "up", PeerNamespace: netlink.NsFd(w.netns)}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		if w.Uplink, err = joinNetwork(h, own); err != nil {
			return err
		}
		return loader.AttachNetwork(n.Config.BPFFSDir, w.Uplink, "up", loader.Uplink, loader.XDPOff)
	})
	h, err := netlink.NewHandleAt(w.netns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := joinNetwork(h, others); err != nil {
		t.Fatalf("network: %v", err)
	}
	return w
}

func joinNetwork(h *netlink.Handle, addrs []netip.Prefix) (ifindex int, err error) {
	link, err := h.LinkByName("up")
	if err != nil {
		return 0, err
	}
	if err := h.LinkSetUp(link); err != nil {
		return 0, err
	}
	for _, a := range addrs {
		net := ipNet(a)
		net.IP = a.Addr().AsSlice()
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: net, Flags: unix.IFA_F_NODAD}); err != nil {
			return 0, fmt.Errorf("address %s: %w", a, err)
		}
	}
	return link.Attrs().Index, nil
}

// Do runs f in the network's namespace.
func (w *Network) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with f
		if err := netns.Set(w.netns); err != nil {
			done <- fmt.Errorf("enter the network's namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
