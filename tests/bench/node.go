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

const (
	establishedRow = "established"
	firstRow       = "first packet"

	firstRepeat = 3000
	mostRounds  = 64000 / firstRepeat
)

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
	if n.loaded, err = loader.Load(loader.Config{BPFFSDir: root, Sizes: loader.Sizes{bpf.WeirMapFlows: 1 << 19}}); err != nil {
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

// receivers are pods that pod 1 sends to, by what is allowed to them on the port asked.
var receivers = []struct {
	name string
	port uint16
	rule func(s *datapath.State) datapath.Ruleset
}{
	{"", 80, func(s *datapath.State) datapath.Ruleset { return rules(s, 10, 1, onePort) }},
	{"", 80, func(*datapath.State) datapath.Ruleset { return datapath.Ruleset{Default: 300} }}, // denies
	{"10 rules for a port", 80, func(s *datapath.State) datapath.Ruleset { return rules(s, 100, 10, onePort) }},
	{"1000 rules for a port", 80, func(s *datapath.State) datapath.Ruleset { return rules(s, 200, 1000, onePort) }},
	{"10 rules, a port each", 10, func(s *datapath.State) datapath.Ruleset { return rules(s, 2000, 10, ownPort) }},
	{"1000 rules, a port each", 1000, func(s *datapath.State) datapath.Ruleset { return rules(s, 3000, 1000, ownPort) }},
	{"10 rules, a range each", 10, func(s *datapath.State) datapath.Ruleset { return rules(s, 5000, 10, ownRange) }},
	{"256 rules, a range each", 256, func(s *datapath.State) datapath.Ruleset { return rules(s, 6000, 256, ownRange) }},
}

const (
	onePort  = iota // one group, a member a rule
	ownPort         // an exact group a rule
	ownRange        // a scanned group a rule
)

const sender identity.Number = 1001

// rules makes n of which the last is the one that allows the sender; sets begin at set.
func rules(s *datapath.State, set uint32, n, kind int) (r datapath.Ruleset) {
	r.Default = 300
	ids := make([]uint32, n)
	for i := range n {
		ids[i] = uint32(301 + i)
		group := datapath.PortGroup{Protocol: datapath.TCP, Low: uint16(i + 1), High: uint16(i + 1), Set: set + uint32(i), Labels: true, Rules: ids[i : i+1]}
		other := identity.Number(2000 + i)
		switch {
		case kind == onePort:
			s.Facts[datapath.Fact{Set: set, Identity: other}] = uint32(i)
			continue
		case kind == ownRange:
			group.High++
		}
		s.Facts[datapath.Fact{Set: group.Set, Identity: other}] = 0
		r.Groups = append(r.Groups, group)
	}
	if kind == onePort {
		r.Groups = []datapath.PortGroup{{Protocol: datapath.TCP, Low: 80, High: 80, Set: set, Labels: true, Rules: ids}}
		s.Facts[datapath.Fact{Set: set, Identity: sender}] = uint32(n - 1)
		return r
	}
	s.Facts[datapath.Fact{Set: set + uint32(n-1), Identity: sender}] = 0
	return r
}

// state is pod 1, which may send to all, and the receivers.
func (n *node) state() (*datapath.State, error) {
	s := &datapath.State{
		Endpoints: map[uint32]datapath.Endpoint{},
		Peers: map[netip.Prefix]datapath.Peer{
			netip.MustParsePrefix("0.0.0.0/0"): {Identity: identity.World},
			netip.MustParsePrefix("::/0"):      {Identity: identity.World},
		},
		Facts:    map[datapath.Fact]uint32{},
		Rulesets: map[uint32]datapath.Ruleset{1: {Default: datapath.RuleNotIsolated, Allow: true}},
	}
	if err := n.pod(s, 1, 1); err != nil {
		return nil, err
	}
	for i, r := range receivers {
		ruleset := uint32(2 + i)
		s.Rulesets[ruleset] = r.rule(s)
		if err := n.pod(s, i+2, ruleset); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (n *node) pod(s *datapath.State, number int, ingress uint32) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("pod", number)}, PeerName: fmt.Sprint("p", number)}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	l, err := netlink.LinkByName(link.Name)
	if err != nil {
		return err
	}
	if number == 1 {
		n.veth = l.Attrs().Index
	}
	four, six := netip.MustParseAddr(address(number)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", number))
	s.Endpoints[uint32(number)] = datapath.Endpoint{Ifindex: uint32(l.Attrs().Index), MAC: [6]byte{2, 0, 0, 0, 0, byte(number)},
		Addr4: four, Addr6: six, Egress: 1, Ingress: ingress}
	for _, a := range []netip.Addr{four, six} {
		s.Peers[netip.PrefixFrom(a, a.BitLen())] = datapath.Peer{Identity: sender + identity.Number(number-1), Endpoint: uint32(number)}
	}
	return nil
}

func address(number int) string { return fmt.Sprintf("10.0.0.%d", number) }

// rows: the empty program, 1H, and what is measured.
func (n *node) rows(repeat int) []row {
	allowed := testnode.TCP("10.0.0.1", 1000, "10.0.0.2", 80, "A")
	rows := []row{
		{"empty", repeat, n.through(n.bench.Empty, allowed, 0)},
		{"one hash lookup (1H)", repeat, n.through(n.bench.Onehash, allowed, 0)},
		{establishedRow, repeat, n.established("10.0.0.1", "10.0.0.2")},
		{"established IPv6", repeat, n.established("fd00::1", "fd00::2")},
		{"denied, again and again", repeat / 4, n.through(n.stub, testnode.TCP("10.0.0.1", 1000, "10.0.0.3", 80, "S"), 0)},
		{firstRow, firstRepeat, n.first("10.0.0.2", 80)},
	}
	for i, r := range receivers {
		if r.name != "" {
			rows = append(rows, row{firstRow + ", " + r.name, firstRepeat, n.first(address(i+2), r.port)})
		}
	}
	return rows
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

// first opens a flow with every packet, from ports that the last round did not take: there
// are enough for mostRounds.
func (n *node) first(to string, port uint16) func(int) (time.Duration, error) {
	open := n.through(n.stub, testnode.TCP("10.0.0.1", 1000, to, port, "S"), 2)
	next := uint32(0)
	return func(repeat int) (time.Duration, error) {
		if err := n.bench.BenchNext.Set(next); err != nil {
			return 0, err
		}
		next += uint32(repeat)
		return open(repeat)
	}
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
