// Package testnode runs the real programs on real maps in a network namespace of the
// test's own, one packet at a time (BPF_PROG_TEST_RUN). The packets enter by the pinned
// stubs, as a link would hand them over.
package testnode

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/identity"
)

// Verdicts of TC programs.
const (
	Next     = -1 // accepted, to the stack
	Drop     = 2
	Redirect = 7
)

// MarkShift is the place of the mark's 16 bits.
const MarkShift = 16

// Bits of the mark (bpf/contract.h, enum mark_bits).
const (
	MarkEgress  = 0x4000
	MarkIngress = 0x8000
)

// Node is a namespace with pods' interfaces. Not for concurrent use.
type Node struct {
	Kernel *maps.Kernel
	State  *datapath.State
	Dir    string // bpffs
	Config loader.Config
	work   chan func()
	progs  map[string]*ebpf.Program
	pods   uint32
}

// Pod is an endpoint of the node.
type Pod struct {
	Number  uint32
	Ifindex int
	Addr4   string
	Addr6   string
}

// New makes the namespace, mounts a bpffs, loads the programs and opens the maps. All goes
// with the test.
func New(t testing.TB, cfg loader.Config) *Node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it loads BPF programs")
	}
	if cfg.Update == 0 {
		cfg.Update = -1 // a slow machine's test would hear of its flows again
	}
	n := &Node{work: make(chan func()), progs: map[string]*ebpf.Program{}, Config: cfg}
	n.Dir = mountBPFFS(t)
	n.Config.BPFFSDir = filepath.Join(n.Dir, "weir")
	go n.thread()
	t.Cleanup(func() { close(n.work) })
	n.must(t, "namespace", func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	n.Load(t)
	n.State = emptyState()
	return n
}

// Load loads the programs (again: as a starting agent does) and opens the maps.
func (n *Node) Load(t testing.TB) {
	t.Helper()
	n.must(t, "load", func() error {
		loaded, err := loader.Load(n.Config)
		if err != nil {
			return err
		}
		t.Cleanup(func() { loaded.Close() })
		k, err := maps.Open(n.Config.BPFFSDir)
		if err != nil {
			return err
		}
		n.Kernel = k
		if n.Config.FlowShare != 0 {
			k.FlowShare = n.Config.FlowShare
		}
		t.Cleanup(func() { k.Close() })
		return nil
	})
}

// Next loads programs that need maps of their own; those in force go on until Switch.
func (n *Node) Next(t testing.TB, sizes loader.Sizes) *loader.Loaded {
	t.Helper()
	n.Config.Sizes = sizes
	var loaded *loader.Loaded
	n.must(t, "load", func() (err error) {
		if loaded, err = loader.Load(n.Config); err != nil {
			return err
		}
		t.Cleanup(func() { loaded.Close() })
		if !loaded.Next {
			return fmt.Errorf("the maps in force were adopted")
		}
		if n.Kernel, err = maps.OpenNext(n.Config.BPFFSDir); err != nil {
			return err
		}
		t.Cleanup(func() { n.Kernel.Close() })
		if n.Config.FlowShare != 0 {
			n.Kernel.FlowShare = n.Config.FlowShare
		}
		return nil
	})
	return loaded
}

func emptyState() *datapath.State {
	return &datapath.State{
		Endpoints: map[uint32]datapath.Endpoint{}, Facts: map[datapath.Fact]uint32{},
		Rulesets: map[uint32]datapath.Ruleset{}, Frontends: map[datapath.Frontend]struct{}{},
		Peers: map[netip.Prefix]datapath.Peer{
			netip.MustParsePrefix("0.0.0.0/0"): {Identity: identity.World},
			netip.MustParsePrefix("::/0"):      {Identity: identity.World},
		},
	}
}

func mountBPFFS(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "weirt-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs on %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
		os.Remove(dir)
	})
	return dir
}

// thread runs all that has to happen in the namespace; it is never handed back.
func (n *Node) thread() {
	runtime.LockOSThread()
	for f := range n.work {
		f()
	}
}

// Do runs f in the node's namespace.
func (n *Node) Do(f func() error) error {
	done := make(chan error)
	n.work <- func() { done <- f() }
	return <-done
}

func (n *Node) must(t testing.TB, what string, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// AddPod makes a veth pair and an endpoint with the addresses ("" = none) and identity.
// It is enforced from the next Commit on.
func (n *Node) AddPod(t testing.TB, addr4, addr6 string, id identity.Number, egress, ingress uint32) Pod {
	t.Helper()
	n.pods++
	p := Pod{Number: n.pods, Addr4: addr4, Addr6: addr6}
	p.Ifindex = n.AddDevice(t, fmt.Sprintf("pod%d", n.pods))
	ep := datapath.Endpoint{Ifindex: uint32(p.Ifindex), MAC: [6]byte{2, 0, 0, 0, 0, byte(n.pods)}, Egress: egress, Ingress: ingress}
	for _, a := range []string{addr4, addr6} {
		if a == "" {
			continue
		}
		addr := netip.MustParseAddr(a)
		if addr.Is4() {
			ep.Addr4 = addr
		} else {
			ep.Addr6 = addr
		}
		n.State.Peers[netip.PrefixFrom(addr, addr.BitLen())] = datapath.Peer{Identity: id, Endpoint: p.Number}
	}
	n.State.Endpoints[p.Number] = ep
	return p
}

// AddDevice makes a veth pair and returns its ifindex.
func (n *Node) AddDevice(t testing.TB, name string) int {
	t.Helper()
	index := 0
	n.must(t, "veth "+name, func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		index = l.Attrs().Index
		return nil
	})
	return index
}

// Set changes a pod's rulesets, from the next Commit on.
func (n *Node) Set(p Pod, egress, ingress uint32) {
	ep := n.State.Endpoints[p.Number]
	ep.Egress, ep.Ingress = egress, ingress
	n.State.Endpoints[p.Number] = ep
}

// Commit makes the node enforce its State and returns the epoch.
func (n *Node) Commit(t testing.TB) uint64 {
	t.Helper()
	s := *n.State
	s.Endpoints, s.Peers = clone(s.Endpoints), clone(s.Peers)
	s.Facts, s.Rulesets, s.Frontends = clone(s.Facts), clone(s.Rulesets), clone(s.Frontends)
	s.Ways = clone(s.Ways)
	epoch, err := n.Kernel.Commit(&s)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return epoch
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// Result is what a hook did with a packet.
type Result struct {
	Verdict int
	Mark    uint16 // our bits
	Frame   []byte
}

// skb is struct __sk_buff as BPF_PROG_TEST_RUN takes and gives it.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TCIndex                                  uint32
	CB                                                                          [5]uint32
	Hash, TCClassid, Data, DataEnd, NapiID, Family                              uint32
	RemoteIP4, LocalIP4                                                         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GSOSegs                                                            uint32
	SK                                                                          uint64
	GSOSize                                                                     uint32
	TstampType                                                                  uint8
	_                                                                           [3]uint8
	Hwtstamp                                                                    uint64
}

// Context is the context of a TEST_RUN of a frame received by ifindex.
func Context(ifindex int) any {
	return skb{Ifindex: uint32(ifindex), IngressIfindex: uint32(ifindex)}
}

// Bytes is Context as the kernel reads it.
func Bytes(ifindex int) []byte {
	in := skb{Ifindex: uint32(ifindex), IngressIfindex: uint32(ifindex)}
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in)))
}

// Run hands a frame to a hook (from_pod, to_pod, to_network, from_network) at the
// interface ifindex, as received by ingress (0 = made by the node itself) with our mark.
func (n *Node) Run(t testing.TB, hook string, frame []byte, ifindex, ingress int, mark uint16) Result {
	t.Helper()
	in := skb{Mark: uint32(mark) << MarkShift, Ifindex: uint32(ifindex), IngressIfindex: uint32(ingress)}
	var out skb
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64), Context: in, ContextOut: &out}
	var ret uint32
	n.must(t, fmt.Sprintf("%s of %d bytes %x", hook, len(frame), frame), func() (err error) {
		p, err := n.program(hook)
		if err != nil {
			return err
		}
		ret, err = p.Run(&opts)
		return err
	})
	return Result{Verdict: int(int32(ret)), Mark: uint16(out.Mark >> MarkShift), Frame: opts.DataOut}
}

// RunXDP hands a frame to the shield at an interface.
func (n *Node) RunXDP(t testing.TB, stub string, frame []byte, ifindex int) uint32 {
	t.Helper()
	ctx := struct{ Data, DataEnd, DataMeta, IngressIfindex, RxQueue, EgressIfindex uint32 }{
		DataEnd: uint32(len(frame)), IngressIfindex: uint32(ifindex)}
	var ret uint32
	n.must(t, stub, func() error {
		p, err := n.program(stub)
		if err != nil {
			return err
		}
		ret, err = p.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64), Context: ctx})
		return err
	})
	return ret
}

func (n *Node) program(hook string) (*ebpf.Program, error) {
	if p := n.progs[hook]; p != nil {
		return p, nil
	}
	p, err := ebpf.LoadPinnedProgram(filepath.Join(n.Config.BPFFSDir, "progs", "stub_"+hook), nil)
	if err != nil {
		return nil, err
	}
	n.progs[hook] = p
	return p, nil
}

// FromPod, ToPod and ToNetwork are the usual calls of Run.
func (n *Node) FromPod(t testing.TB, p Pod, f Frame) Result {
	t.Helper()
	return n.Run(t, "from_pod", f.Bytes(t), p.Ifindex, p.Ifindex, 0)
}

// ToPod hands the pod a frame from outside, received by the device ingress (0: the node's).
func (n *Node) ToPod(t testing.TB, p Pod, f Frame, ingress int, mark uint16) Result {
	t.Helper()
	return n.Run(t, "to_pod", f.Bytes(t), p.Ifindex, ingress, mark)
}

// Drops returns how often each reason was counted since before.
func (n *Node) Drops(t testing.TB) map[datapath.Reason]uint64 {
	t.Helper()
	c, err := n.Kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c.Drops
}
