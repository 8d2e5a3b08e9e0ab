// Package node is the network namespace the agent runs in, as netlink shows it: its
// addresses and its devices. It never looks at /sys, which may show another namespace.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/datapath"
)

// State is what there is at a moment, sorted.
type State struct {
	Addresses []netip.Addr // the node's own, without loopback, kube-proxy's and pods'
	Devices   []Device     // all but lo and the pods' host sides
	PodSides  map[string]uint32
}

// Device is a network device that is no pod's.
type Device struct {
	Name         string
	Index        int
	DefaultRoute bool // a default route goes out here
	Raw          bool // its packets have no Ethernet header (tun, WireGuard, ipip)
	Tunnel       bool // Weir's own, to the other nodes
	Master       int  // index of the bridge it is a port of, 0 = of none
	MTU          int
}

// Network asks netlink about the namespace of the calling thread.
type Network struct{}

const (
	settle      = 5 * time.Millisecond // news are collected so long: a veth comes with a burst of them
	resubscribe = 100 * time.Millisecond
)

// Watch calls changed with the state at first and after every change of devices,
// addresses or routes, one call at a time, until ctx is over (nil).
func (Network) Watch(ctx context.Context, changed func(State)) error {
	for ctx.Err() == nil {
		if err := watch(ctx, changed); err != nil {
			return err
		}
	}
	return nil
}

// watch returns nil when the kernel had more to tell than it could: what was missed is
// seen by looking again.
func watch(ctx context.Context, changed func(State)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news := make(chan struct{}, 1)
	broken := make(chan struct{}, 1)
	if err := subscribe(ctx.Done(), news, broken); err != nil {
		return err
	}
	for {
		s, err := read()
		if err != nil {
			return err
		}
		changed(s)
		select {
		case <-ctx.Done():
			return nil
		case <-broken:
			time.Sleep(resubscribe)
			return nil
		case <-news:
			time.Sleep(settle)
		}
	}
}

func subscribe(done <-chan struct{}, news, broken chan<- struct{}) error {
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	err := errors.Join(
		netlink.LinkSubscribe(links, done),
		netlink.AddrSubscribe(addrs, done),
		netlink.RouteSubscribe(routes, done),
	)
	if err != nil {
		return fmt.Errorf("watch netlink: %w", err)
	}
	go relay(links, news, broken)
	go relay(addrs, news, broken)
	go relay(routes, news, broken)
	return nil
}

// relay ends with its subscription, which ends with done or a failed receive.
func relay[T any](from <-chan T, news, broken chan<- struct{}) {
	for range from {
		signal(news)
	}
	signal(broken)
}

func signal(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}

// Has reports whether the device of that index has that name. It asks without netlink, which
// would wait for whoever attaches a program meanwhile.
func (Network) Has(ifindex uint32, name string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("look for interface %d: %w", ifindex, err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("")
	if err != nil {
		return false, fmt.Errorf("look for interface %d: %w", ifindex, err)
	}
	r.SetUint32(ifindex)
	switch err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, r); {
	case errors.Is(err, unix.ENODEV):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for interface %d: %w", ifindex, err)
	}
	return r.Name() == name, nil
}

func read() (State, error) {
	s := State{PodSides: map[string]uint32{}}
	links, err := again(netlink.LinkList)
	if err != nil {
		return s, fmt.Errorf("list interfaces: %w", err)
	}
	defaults, err := defaultDevices()
	if err != nil {
		return s, err
	}
	skip := map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case endpoint.IsHostIfName(a.Name):
			skip[a.Index] = true
			s.PodSides[a.Name] = uint32(a.Index)
			continue
		case a.Name == "kube-ipvs0": // kube-proxy binds Services' addresses there
			skip[a.Index] = true
		case a.Name == datapath.TunnelDevice: // it has addresses of other devices
			skip[a.Index] = true
		}
		if a.Flags&net.FlagLoopback == 0 {
			s.Devices = append(s.Devices, Device{Name: a.Name, Index: a.Index, DefaultRoute: defaults[a.Index], Raw: a.EncapType != "ether",
				Tunnel: a.Name == datapath.TunnelDevice, Master: a.MasterIndex, MTU: a.MTU})
		}
	}
	slices.SortFunc(s.Devices, func(a, b Device) int { return cmp.Compare(a.Index, b.Index) })
	s.Addresses, err = addresses(skip)
	return s, err
}

// gateway6 is the address of the host side of every pod's veth: pods' next hop. It is
// the node's whether a pod is there or not.
var gateway6 = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee")

func addresses(skip map[int]bool) ([]netip.Addr, error) {
	list, err := again(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := []netip.Addr{gateway6}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLoopback() && !skip[a.LinkIndex] {
			out = append(out, ip.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

func defaultDevices() (map[int]bool, error) {
	out := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := again(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Dst: nil, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for _, r := range routes {
			out[r.LinkIndex] = r.LinkIndex != 0
			for _, hop := range r.MultiPath {
				out[hop.LinkIndex] = true
			}
		}
	}
	return out, nil
}

// again repeats a listing that a change interrupted.
func again[T any](list func() ([]T, error)) ([]T, error) {
	var out []T
	var err error
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}
