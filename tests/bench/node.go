package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/testnode"
)

// Hooks but from_pod.
const (
	toPod       = "to_pod"
	toNetwork   = "to_network"
	fromNetwork = "from_network"
	fromTunnel  = "from_tunnel"
)

// Verdicts.
const (
	pass     = testnode.Next
	drop     = testnode.Drop
	redirect = testnode.Redirect
)

// node is a namespace with pods, the real programs and maps, and the yardsticks.
type node struct {
	*rig
	dir    string
	stub   *ebpf.Program            // from_pod
	stubs  map[string]*ebpf.Program // the others, by hook
	uplink int                      // ifindex
	tunnel int                      // its device's
	filled uint32                   // flows that are open
	kernel *maps.Kernel
	loaded *loader.Loaded
	state  *datapath.State
	veths  map[int]int // ifindex by pod
}

// newNode takes the calling thread into a network namespace of its own.
func newNode(ctx context.Context, config loader.Config) (*node, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("new namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, err
	}
	return beside(ctx, config)
}

// beside is a node in the namespace where the thread is: pods of a number are by one device.
func beside(ctx context.Context, config loader.Config) (*node, error) {
	dir, err := os.MkdirTemp("/run", "weirt-bench-")
	if err != nil {
		return nil, err
	}
	n := &node{dir: dir, veths: map[int]int{}, stubs: map[string]*ebpf.Program{}}
	if err = unix.Mount("bpf", dir, "bpf", 0, ""); err == nil {
		err = n.load(ctx, config)
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *node) root() string { return filepath.Join(n.dir, "weir") }

func (n *node) close() {
	if n.rig != nil {
		n.rig.close()
	}
	if n.kernel != nil {
		n.kernel.Close()
	}
	if n.loaded != nil {
		n.loaded.Close()
	}
	unix.Unmount(n.dir, unix.MNT_DETACH)
	os.Remove(n.dir)
}

func (n *node) load(ctx context.Context, config loader.Config) (err error) {
	config.BPFFSDir = n.root()
	if n.loaded, err = loader.Load(config); err != nil {
		return err
	}
	if n.kernel, err = maps.Open(n.root()); err != nil {
		return err
	}
	if n.rig, err = newRig(ctx, 2*max(config.Sizes[bpf.WeirMapFlows], 1024)); err != nil {
		return err
	}
	if err = n.readWeir(n.root()); err != nil {
		return err
	}
	if n.stub, err = n.stubOf("from_pod"); err != nil {
		return err
	}
	for _, hook := range []string{toPod, toNetwork, fromNetwork, fromTunnel} {
		if n.stubs[hook], err = n.stubOf(hook); err != nil {
			return err
		}
	}
	if n.uplink, err = veth("uplink", "up"); err != nil {
		return err
	}
	if n.tunnel, err = veth("tunnel", "tun"); err != nil {
		return err
	}
	n.state = &datapath.State{
		Endpoints: map[uint32]datapath.Endpoint{},
		Peers: map[netip.Prefix]datapath.Peer{
			netip.MustParsePrefix("0.0.0.0/0"): {Identity: identity.World},
			netip.MustParsePrefix("::/0"):      {Identity: identity.World},
		},
		Origins:  map[netip.Prefix]datapath.Origin{},
		Ways:     map[datapath.WayKey]datapath.Way{},
		Facts:    map[datapath.Fact]uint32{},
		Rulesets: map[uint32]datapath.Ruleset{1: {Default: datapath.RuleNotIsolated, Allow: true}},
	}
	// No program that has the packets of the rows by the tunnel asks whether the node has one for all.
	for node, ifindex := range map[uint64]int{otherNode: n.uplink, tunnelNode: n.tunnel} {
		for _, family := range []int{4, 6} {
			n.state.Peers[single(far(node, family))] = datapath.Peer{Identity: farAway - 1}
			n.state.Origins[single(far(node, family))] = datapath.Origin{Node: node}
			n.state.Origins[single(otherAddress(node, family))] = datapath.Origin{Node: node, Address: true}
			n.state.Ways[datapath.WayKey{Node: node, V6: family == 6}] = datapath.Way{Ifindex: uint32(ifindex), MTU: 1500,
				Addr: netip.MustParseAddr(otherAddress(node, family)), Tunnel: node == tunnelNode}
		}
	}
	return n.fillPolicy()
}

// fillPolicy gives 1H and the floor 10,000 policies, those of their packets among them.
func (n *node) fillPolicy() error {
	type key struct {
		ID, Peer            uint32
		Port                uint16 // wire order, as the programs read it
		Protocol, Direction uint8
	}
	put := func(k key) error { return n.yard.Policy.Put(k, uint64(1)) }
	const http = 80 << 8
	for i := range 10000 {
		if err := put(key{ID: uint32(1 + i), Port: http, Protocol: datapath.TCP, Direction: 1}); err != nil {
			return err
		}
	}
	for direction := range uint8(2) { // between the floor's ends, all ports
		for _, ends := range [][2]uint32{{100001, 100002}, {100002, 100001}} {
			if err := put(key{ID: ends[0], Peer: ends[1], Direction: direction}); err != nil {
				return err
			}
		}
	}
	return nil
}

// commit makes the node enforce its state.
func (n *node) commit() error {
	_, err := n.kernel.Commit(n.state)
	return err
}

// veth has a pair of devices be there and returns the first one's ifindex.
func veth(name, peer string) (int, error) {
	l, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}); err == nil {
			l, err = netlink.LinkByName(name)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

// Other nodes by number, whose lowest bit names no node: by the uplink and by the tunnel.
const (
	otherNode  = 2
	tunnelNode = 4
)

// far is a pod of another node.
func far(node uint64, family int) string {
	return fmt.Sprintf(map[int]string{4: "10.1.%d.9", 6: "fd00:%d::9"}[family], node)
}

// otherAddress is that node's own.
func otherAddress(node uint64, family int) string {
	return fmt.Sprintf(map[int]string{4: "192.0.2.%d", 6: "2001:db8::%d"}[family], node)
}

// hardware is the address of a device.
func hardware(ifindex int) ([]byte, error) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil, fmt.Errorf("device %d: %w", ifindex, err)
	}
	return l.Attrs().HardwareAddr, nil
}

func single(address string) netip.Prefix {
	a := netip.MustParseAddr(address)
	return netip.PrefixFrom(a, a.BitLen())
}

// pod adds an endpoint to the state; the first two are the floor's ends, too.
func (n *node) pod(number int, egress, ingress uint32) error {
	index, err := veth(fmt.Sprint("pod", number), fmt.Sprint("p", number))
	if err != nil {
		return err
	}
	n.veths[number] = index
	four, six := netip.MustParseAddr(address(number, 4)), netip.MustParseAddr(address(number, 6))
	n.state.Endpoints[uint32(number)] = datapath.Endpoint{Ifindex: uint32(index), MAC: [6]byte{2, 0, 0, 0, 0, byte(number)},
		Addr4: four, Addr6: six, Egress: egress, Ingress: ingress}
	for _, a := range []netip.Addr{four, six} {
		n.state.Peers[netip.PrefixFrom(a, a.BitLen())] = datapath.Peer{Identity: pod1 + identity.Number(number-1), Endpoint: uint32(number)}
		if number <= 2 {
			if err := n.floorEnd(a, uint32(index), uint32(100000+number)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *node) floorEnd(a netip.Addr, ifindex, id uint32) error {
	var key [16]byte
	if a.Is4() {
		four := a.As4()
		copy(key[8:], four[:])
	} else {
		key = a.As16()
	}
	return n.yard.FloorEnds.Put(key, struct {
		Ifindex, ID uint32
		MAC         [12]byte
		_           uint32
	}{Ifindex: ifindex, ID: id})
}

func address(number, family int) string {
	if family == 6 {
		return fmt.Sprintf("fd00::%d", number)
	}
	return fmt.Sprintf("10.0.0.%d", number)
}

// receivers adds pod 1, which may send to all, and the receivers.
func (n *node) receivers() error {
	if err := n.pod(1, 1, 1); err != nil {
		return err
	}
	for i, r := range receivers {
		ruleset := uint32(2 + i)
		n.state.Rulesets[ruleset] = rules(n.state, 10000*ruleset, r.rules, r.kind)
		egress, ingress := uint32(1), ruleset
		if r.egress {
			egress, ingress = ruleset, 1
		}
		if err := n.pod(i+2, egress, ingress); err != nil {
			return err
		}
	}
	return n.commit()
}
