package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

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

const establishedRow = "established"

// node is a namespace with three pods, the real programs and maps, and the yardsticks.
type node struct {
	dir    string
	bench  bpf.BenchObjects
	stub   *ebpf.Program // from_pod, as a link enters it
	kernel *maps.Kernel
	loaded *loader.Loaded
	veth   int // of the sending pod
}

func newNode() (*node, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("new namespace (root?): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/run", "weirt-bench-")
	if err != nil {
		return nil, err
	}
	n := &node{dir: dir}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return nil, err
	}
	if err := n.load(); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *node) close() {
	if n.kernel != nil {
		n.kernel.Close()
	}
	if n.loaded != nil {
		n.loaded.Close()
	}
	unix.Unmount(n.dir, unix.MNT_DETACH)
	os.Remove(n.dir)
}

func (n *node) load() (err error) {
	root := filepath.Join(n.dir, "weir")
	if n.loaded, err = loader.Load(loader.Config{BPFFSDir: root}); err != nil {
		return err
	}
	if n.kernel, err = maps.Open(root); err != nil {
		return err
	}
	if err = bpf.LoadBenchObjects(&n.bench, nil); err != nil {
		return err
	}
	if err = n.fillPolicy(); err != nil {
		return err
	}
	if n.stub, err = ebpf.LoadPinnedProgram(filepath.Join(root, "progs", "stub_from_pod"), nil); err != nil {
		return err
	}
	state, err := n.state()
	if err != nil {
		return err
	}
	_, err = n.kernel.Commit(state)
	return err
}

// fillPolicy gives the one-hash program 10,000 entries, that of its packet among them.
func (n *node) fillPolicy() error {
	type key struct {
		ID                  uint32
		Dport               uint16 // wire order, as the program reads it
		Protocol, Direction uint8
	}
	for i := range 10000 {
		k := key{ID: uint32(1 + i), Dport: 80 << 8, Protocol: datapath.TCP, Direction: 1}
		if err := n.bench.BenchPolicy.Put(k, uint64(1)); err != nil {
			return err
		}
	}
	return nil
}

// state is three pods: 1 may reach 2 on TCP 80, nobody may reach 3.
func (n *node) state() (*datapath.State, error) {
	s := &datapath.State{
		Endpoints: map[uint32]datapath.Endpoint{},
		Peers: map[netip.Prefix]datapath.Peer{
			netip.MustParsePrefix("0.0.0.0/0"): {Identity: identity.World},
			netip.MustParsePrefix("::/0"):      {Identity: identity.World},
		},
		Facts: map[datapath.Fact]uint32{{Set: 10, Identity: 1001}: 0},
		Rulesets: map[uint32]datapath.Ruleset{
			1: {Default: datapath.RuleNotIsolated, Allow: true},
			2: {Default: 300},
			3: {Default: 300, Groups: []datapath.PortGroup{{Protocol: datapath.TCP, Low: 80, High: 80, Set: 10, Labels: true, Rules: []uint32{301}}}},
		},
	}
	for i, ingress := range []uint32{1, 3, 2} {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("pod%d", i+1)}, PeerName: fmt.Sprintf("p%d", i+1)}
		if err := netlink.LinkAdd(link); err != nil {
			return nil, err
		}
		l, err := netlink.LinkByName(link.Name)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			n.veth = l.Attrs().Index
		}
		four := netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1))
		six := netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))
		number := uint32(i + 1)
		s.Endpoints[number] = datapath.Endpoint{Ifindex: uint32(l.Attrs().Index), MAC: [6]byte{2, 0, 0, 0, 0, byte(number)}, Addr4: four, Addr6: six, Egress: 1, Ingress: ingress}
		for _, a := range []netip.Addr{four, six} {
			s.Peers[netip.PrefixFrom(a, a.BitLen())] = datapath.Peer{Identity: identity.Number(1001 + i), Endpoint: number}
		}
	}
	return s, nil
}

// rows: the empty program, 1H, and what is measured.
func (n *node) rows(repeat int) []row {
	allowed := testnode.TCP("10.0.0.1", 1000, "10.0.0.2", 80, "A")
	return []row{
		{"empty", repeat, n.through(n.bench.Empty, allowed, 0)},
		{"one hash lookup (1H)", repeat, n.through(n.bench.Onehash, allowed, 0)},
		{establishedRow, repeat, n.established("10.0.0.1", "10.0.0.2")},
		{"established IPv6", repeat, n.established("fd00::1", "fd00::2")},
		{"denied, again and again", repeat / 4, n.through(n.stub, testnode.TCP("10.0.0.1", 1000, "10.0.0.3", 80, "S"), 0)},
		{"first packet", 10000, n.first()},
	}
}

func (n *node) established(src, dst string) func(int) (time.Duration, error) {
	data := n.through(n.stub, testnode.TCP(src, 1000, dst, 80, "A"), 0)
	syn := n.through(n.stub, testnode.TCP(src, 1000, dst, 80, "S"), 0)
	began := false
	return func(repeat int) (time.Duration, error) {
		if !began {
			if _, err := syn(1); err != nil {
				return 0, err
			}
			began = true
		}
		return data(repeat)
	}
}

// first opens a flow with every packet; a round takes ports the last one did not.
func (n *node) first() func(int) (time.Duration, error) {
	return n.through(n.stub, testnode.TCP("10.0.0.1", 1000, "10.0.0.2", 80, "S"), 2)
}

// through feeds the frame to the program by the feeder's mode.
func (n *node) through(p *ebpf.Program, f testnode.Frame, mode uint32) func(int) (time.Duration, error) {
	frame, err := f.Serialize()
	return func(repeat int) (time.Duration, error) {
		if err != nil {
			return 0, err
		}
		if err := n.bench.BenchTarget.Update(uint32(0), p, ebpf.UpdateAny); err != nil {
			return 0, err
		}
		if err := n.bench.BenchMode.Set(mode); err != nil {
			return 0, err
		}
		opts := &ebpf.RunOptions{Data: frame, Repeat: uint32(repeat), Context: testnode.Context(n.veth)}
		began := time.Now()
		_, err := n.bench.Feed.Run(opts)
		return time.Since(began) / time.Duration(repeat), err
	}
}
