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
	veths  []int // by pod
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

// receivers are pods that pod 1 sends to, by what is allowed to them on the port asked; or,
// by their egress, pods that send to pod 1. The first two are not rows of their own.
var receivers = []struct {
	name   string
	port   uint16
	rules  int
	kind   kind
	egress bool
	denied bool // it is pod 3 that asks, whom nobody allows, and on another port each time
}{
	{port: 80, rules: 1, kind: onePort},
	{port: 80, kind: nobody},
	{port: 80, rules: 10, kind: onePort, name: "10 rules for a port"},
	{port: 80, rules: 1000, kind: onePort, name: "1000 rules for a port"},
	{port: 10, rules: 10, kind: ownPort, name: "10 rules, a port each"},
	{port: 1000, rules: 1000, kind: ownPort, name: "1000 rules, a port each"},
	{port: 10, rules: 10, kind: ownRange, name: "10 rules, a range each"},
	{port: 256, rules: 256, kind: ownRange, name: "256 rules, a range each"},
	{port: 300, rules: 10, kind: wideRange, name: "10 rules, ranges over each other"},
	{port: 300, rules: 256, kind: wideRange, name: "256 rules, ranges over each other"},
	{port: 300, rules: 10, kind: wideRange, denied: true, name: "10 ranges over each other"},
	{port: 300, rules: 256, kind: wideRange, denied: true, name: "256 ranges over each other"},
	{port: 80, rules: 10, kind: allPorts, name: "10 rules for all ports"},
	{port: 80, rules: 1000, kind: allPorts, name: "1000 rules for all ports"},
	{port: 300, rules: 10, kind: ownName, egress: true, name: "10 egress rules, a port name each"},
	{port: 300, rules: 256, kind: ownName, egress: true, name: "256 egress rules, a port name each"},
}

type kind int

const (
	nobody    kind = iota // no group
	onePort               // one group, a member a rule
	allPorts              // likewise
	ownPort               // an exact group a rule
	ownRange              // a range a rule, none over another
	wideRange             // a range a rule, each over all that come after it
	ownName               // a port's name a rule, of which pod 1 gives the last to its port
)

const pod1 identity.Number = 1001 // of pod 1

// rules makes n of which the last is the one that allows pod 1; sets begin at set.
func rules(s *datapath.State, set uint32, n int, kind kind) (r datapath.Ruleset) {
	r.Default = 300
	if kind == nobody {
		return r
	}
	ids := make([]uint32, n)
	for i := range n {
		ids[i] = uint32(301 + i)
		group := datapath.PortGroup{Protocol: datapath.TCP, Low: uint16(i + 1), High: uint16(i + 1), Set: set + uint32(i), Labels: true, Rules: ids[i : i+1]}
		other := identity.Number(2000 + i)
		switch kind {
		case onePort, allPorts:
			s.Facts[datapath.Fact{Set: set, Identity: other}] = uint32(i)
			continue
		case ownRange:
			group.High++
		case wideRange:
			group.High = 65535
		case ownName:
			group.Low, group.High, group.PortName = 0, 65535, set+uint32(n+i)
			s.Facts[datapath.Fact{Set: group.PortName, Identity: other, Protocol: datapath.TCP, Port: 300}] = 0
		}
		s.Facts[datapath.Fact{Set: group.Set, Identity: other}] = 0
		r.Groups = append(r.Groups, group)
	}
	last := datapath.Fact{Set: set + uint32(n-1), Identity: pod1}
	switch kind {
	case onePort, allPorts:
		group := datapath.PortGroup{Protocol: datapath.TCP, Low: 80, High: 80, Set: set, Labels: true, Rules: ids}
		if kind == allPorts {
			group.Protocol, group.Low, group.High = datapath.Any, 0, 65535
		}
		r.Groups = []datapath.PortGroup{group}
		s.Facts[datapath.Fact{Set: set, Identity: pod1}] = uint32(n - 1)
		return r
	case ownName:
		s.Facts[datapath.Fact{Set: r.Groups[n-1].PortName, Identity: pod1, Protocol: datapath.TCP, Port: 300}] = 0
	}
	s.Facts[last] = 0
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
	n.veths = make([]int, len(receivers)+2)
	if err := n.pod(s, 1, 1, 1); err != nil {
		return nil, err
	}
	for i, r := range receivers {
		ruleset := uint32(2 + i)
		s.Rulesets[ruleset] = rules(s, 10000*ruleset, r.rules, r.kind)
		egress, ingress := uint32(1), ruleset
		if r.egress {
			egress, ingress = ruleset, 1
		}
		if err := n.pod(s, i+2, egress, ingress); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (n *node) pod(s *datapath.State, number int, egress, ingress uint32) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("pod", number)}, PeerName: fmt.Sprint("p", number)}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	l, err := netlink.LinkByName(link.Name)
	if err != nil {
		return err
	}
	n.veths[number] = l.Attrs().Index
	four, six := netip.MustParseAddr(address(number)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", number))
	s.Endpoints[uint32(number)] = datapath.Endpoint{Ifindex: uint32(l.Attrs().Index), MAC: [6]byte{2, 0, 0, 0, 0, byte(number)},
		Addr4: four, Addr6: six, Egress: egress, Ingress: ingress}
	for _, a := range []netip.Addr{four, six} {
		s.Peers[netip.PrefixFrom(a, a.BitLen())] = datapath.Peer{Identity: pod1 + identity.Number(number-1), Endpoint: uint32(number)}
	}
	return nil
}

func address(number int) string { return fmt.Sprintf("10.0.0.%d", number) }

// rows: the empty program, 1H, and what is measured.
func (n *node) rows(repeat int) []row {
	allowed := testnode.TCP("10.0.0.1", 1000, "10.0.0.2", 80, "A")
	rows := []row{
		{name: "empty", repeat: repeat, run: n.through(n.bench.Empty, 1, allowed, 0)},
		{name: "one hash lookup (1H)", repeat: repeat, run: n.through(n.bench.Onehash, 1, allowed, 0)},
		{name: establishedRow, repeat: repeat, run: n.established("10.0.0.1", "10.0.0.2")},
		{name: "established IPv6", repeat: repeat, run: n.established("fd00::1", "fd00::2")},
		{name: "denied, again and again", repeat: repeat / 4, run: n.through(n.stub, 1, testnode.TCP("10.0.0.1", 1000, "10.0.0.3", 80, "S"), 0)},
		{name: firstRow, repeat: firstRepeat, run: n.first(1, 2, 80, anySource)},
	}
	for i, r := range receivers {
		from, to, what := 1, i+2, firstRow+", "
		if r.egress {
			from, to = i+2, 1
		}
		mode := uint32(anySource)
		if r.denied {
			from, what, mode = 3, "denied on a new port, ", anyPort
		}
		if r.name != "" {
			rows = append(rows, row{what + r.name, firstRepeat, n.first(from, to, r.port, mode), r.rules > 10})
		}
	}
	return rows
}

func (n *node) established(src, dst string) func(int) (time.Duration, error) {
	data := n.through(n.stub, 1, testnode.TCP(src, 1000, dst, 80, "A"), 0)
	syn := n.through(n.stub, 1, testnode.TCP(src, 1000, dst, 80, "S"), 0)
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

// The feeder's modes (bpf/bench.bpf.c): what is another in each packet.
const (
	anySource = 2
	anyPort   = 3
)

// first opens a flow with every packet, from (or to) ports that the last round did not take:
// there are enough for mostRounds.
func (n *node) first(from, to int, port uint16, mode uint32) func(int) (time.Duration, error) {
	open := n.through(n.stub, from, testnode.TCP(address(from), 1000, address(to), port, "S"), mode)
	next := uint32(0)
	return func(repeat int) (time.Duration, error) {
		if err := n.bench.BenchNext.Set(next); err != nil {
			return 0, err
		}
		next += uint32(repeat)
		return open(repeat)
	}
}

// through feeds a pod's frame to the program by the feeder's mode.
func (n *node) through(p *ebpf.Program, from int, f testnode.Frame, mode uint32) func(int) (time.Duration, error) {
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
		opts := &ebpf.RunOptions{Data: frame, Repeat: uint32(repeat), Context: testnode.Context(n.veths[from])}
		began := time.Now()
		_, err := n.bench.Feed.Run(opts)
		return time.Since(began) / time.Duration(repeat), err
	}
}
