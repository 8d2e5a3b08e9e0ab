package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/testnode"
)

// Node two's pods have 10.1.2.0/24 and fd00:2::/64, node three's 10.1.3.0/24: this node has a way
// to two's.
const (
	nodeTwo   = 0x2_0000_0002
	nodeThree = 3
	two4      = "10.1.2.9"
	two6      = "fd00:2::9"
	three4    = "10.1.3.9"
	idTwo     = identity.Number(1012)
	wayMTU    = 1500
)

// nodes is a scene with ways: by the uplink, or by a tunnel.
type nodes struct {
	*watch
	device int // that the ways are by
	hook   string
	mac    []byte // of device
	tunnel bool
}

func newNodes(t *testing.T, tunnel bool, bIngress uint32, cfg loader.Config) *nodes {
	t.Helper()
	if cfg.Pickup == 0 {
		cfg.Pickup = -1 // the table is not new
	}
	s := newSceneWith(t, bIngress, cfg)
	n := &nodes{watch: s.watch(t), device: s.uplink, hook: "from_network", tunnel: tunnel}
	if tunnel {
		n.device = s.AddDevice(t, "tunnel")
	}
	n.hardware()
	for text, who := range map[string]identity.Number{
		"10.1.0.0/16": identity.Unmanaged, "fd00:2::/64": identity.Unmanaged, "192.0.2.2/32": identity.RemoteNode,
		two4 + "/32": idTwo, two6 + "/128": idTwo, three4 + "/32": idTwo,
	} {
		s.State.Peers[prefix(text)] = datapath.Peer{Identity: who}
	}
	s.State.Facts[datapath.Fact{Set: setA, Identity: idTwo}] = 0
	s.State.Origins = map[netip.Prefix]datapath.Origin{
		prefix("192.0.2.2/32"): {Node: nodeTwo, Address: true}, prefix("10.1.2.0/24"): {Node: nodeTwo}, prefix("fd00:2::/64"): {Node: nodeTwo},
		prefix("10.1.3.0/24"): {Node: nodeThree},
	}
	n.ways()
	s.Commit(t)
	return n
}

func (n *nodes) hardware() {
	n.t.Helper()
	err := n.Do(func() error {
		link, err := netlink.LinkByIndex(n.device)
		if err == nil {
			n.mac = link.Attrs().HardwareAddr
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// ways has the ways to node two be there from the next commit on.
func (n *nodes) ways() {
	four, six := mustAddr("192.0.2.2"), mustAddr("2001:db8::2")
	if n.tunnel {
		six = four
	}
	n.State.Ways = map[datapath.WayKey]datapath.Way{
		{Node: nodeTwo}:           {Ifindex: uint32(n.device), MTU: wayMTU, Addr: four, Tunnel: n.tunnel},
		{Node: nodeTwo, V6: true}: {Ifindex: uint32(n.device), MTU: wayMTU, Addr: six, Tunnel: n.tunnel},
	}
}

// path is how the flow's packets go: "nodes", "bpf" or "stack"; "" where there is no flow.
func (n *nodes) path(f testnode.Frame) string {
	n.t.Helper()
	flow := n.flow(f)
	switch {
	case flow == nil:
		return ""
	case flow.State&uint32(bpf.WeirFlowStateFLOW_PATH_NODES) != 0:
		key, side := n.key(f)
		if flow.Ifindex[side] != uint32(bpf.WeirIfaceClassIFACE_OUTSIDE) {
			side ^= 1
		}
		want := uint32(nodeTwo & 0xffffffff)
		if key.Family == 6 {
			want |= uint32(bpf.WeirWayKeyWAY_V6)
		}
		if got := binary.NativeEndian.Uint32(flow.Side[side].Mac[:]); got != want {
			n.t.Errorf("%+v: the entry has the way %#x, want %#x", f, got, want)
		}
		return "nodes"
	case flow.State&uint32(bpf.WeirFlowStateFLOW_PATH_BPF) != 0:
		return "bpf"
	}
	return "stack"
}

// out has a pod send f: by its way, or by the stack with a mark.
func (n *nodes) out(what string, p testnode.Pod, f testnode.Frame, byWay bool) testnode.Result {
	n.t.Helper()
	want := next
	if byWay {
		want = redirected
	}
	got := n.from(n.t, what, p, f, want)
	if byWay != (got.Mark == 0) {
		n.t.Errorf("%s: mark %#x", what, got.Mark)
	}
	if mac := got.Frame[:12]; byWay && n.tunnel && !bytes.Equal(mac, bytes.Repeat([]byte{0xee}, 12)) {
		n.t.Errorf("%s: the hardware addresses in the tunnel are %x", what, mac)
	}
	return got
}

// begins are frames that begin flows from src to dst, one for each protocol that may pass the stack.
func begins(src, dst string, port uint16) map[string]testnode.Frame {
	return map[string]testnode.Frame{
		"TCP": tcp(src, port, dst, 80, "S"), "UDP": testnode.UDP(src, port, dst, 53), "ICMP": testnode.Echo(src, dst, port, false),
	}
}

// each runs f by both kinds of way in both families: with a pod of node two's.
func each(t *testing.T, bIngress uint32, f func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string)) {
	for name, tunnel := range map[string]bool{"by the uplink": false, "by a tunnel": true} {
		t.Run(name, func(t *testing.T) {
			n := newNodes(t, tunnel, bIngress, loader.Config{})
			f(t, n, func(p testnode.Pod) string { return p.Addr4 }, two4)
			f(t, n, func(p testnode.Pod) string { return p.Addr6 }, two6)
		})
	}
}

// What a pod says to another node's goes by the way, from a flow's first packet to its last, and is
// told of like any other.
func TestToAnotherNode(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		for name, f := range begins(own(n.a), two, 1000) {
			n.out(name, n.a, f, true)
			if got := n.path(f); got != "nodes" {
				t.Errorf("%s: the path is %q", name, got)
			}
			if e := n.events(datapath.EventNew, f, 1)[0]; e.Path != uint8(bpf.WeirFlowPathPATH_BPF) || e.Identity[1] != idTwo {
				t.Errorf("%s: the event has the path %d and identity %d", name, e.Path, e.Identity[1])
			}
			n.out(name+" again", n.a, f, true)
			if flow := n.flow(f); flow.Side[0].Packets+flow.Side[1].Packets != 2 {
				t.Errorf("%s: counted %d and %d packets", name, flow.Side[0].Packets, flow.Side[1].Packets)
			}
		}
		syn := tcp(own(n.a), 1000, two, 80, "S")
		n.out("data", n.a, flags(syn, "PA"), true)
		n.out("FIN", n.a, flags(syn, "FA"), true)
		n.out("RST", n.a, flags(syn, "R"), true)
		n.out("SYN on the closed connection", n.a, syn, true)
		if got := n.path(syn); got != "nodes" {
			t.Errorf("the new connection's path is %q", got)
		}
	})
}

// What the stack may know, or what has no way, goes by the stack.
func TestToAnotherNodeByTheStack(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		a, c := own(n.a), own(n.c)
		syn := tcp(a, 2000, two, 80, "S")
		for what, f := range map[string]testnode.Frame{
			"data of no connection": tcp(a, 2001, two, 80, "PA"), "SYN+ACK": tcp(a, 2002, two, 80, "SA"), "FIN": tcp(a, 2003, two, 80, "FA"),
			"RST":  tcp(a, 2004, two, 80, "R"),
			"SCTP": {Src: a, Dst: two, Protocol: layers.IPProtocolSCTP, Sport: 2005, Dport: 80}, "GRE": {Src: a, Dst: two, Protocol: layers.IPProtocolGRE},
		} {
			n.out(what, n.a, f, false)
			if got := n.path(f); got == "nodes" {
				t.Errorf("%s: the path is %q", what, got)
			}
		}
		n.raw(t, "a first fragment", n.a, piece(t, testnode.Frame{Src: a, Dst: two, Protocol: layers.IPProtocolUDP, Sport: 2006, Dport: 53, Payload: make([]byte, 200)}, 7, 0, 64, true), next)

		n.State.Frontends[datapath.Frontend{Addr: mustAddr(two), Protocol: datapath.TCP, Port: 80}] = struct{}{}
		n.Commit(t)
		n.out("a frontend", n.a, syn, false)
		clear(n.State.Frontends)

		ep := n.State.Endpoints[n.c.Number]
		for what, set := range map[string]func(*datapath.Endpoint){
			"a pod that takes no redirect": func(e *datapath.Endpoint) { e.NoRedirect = true },
			"a pod on a shared link":       func(e *datapath.Endpoint) { e.Shared = true },
		} {
			other := ep
			set(&other)
			n.State.Endpoints[n.c.Number] = other
			n.Commit(t)
			n.out(what, n.c, tcp(c, 2007, two, 80, "S"), false)
			n.State.Endpoints[n.c.Number] = ep
			n.Commit(t)
		}

		clear(n.State.Ways)
		n.State.Ways[datapath.WayKey{Node: nodeTwo & 0xffffffff, V6: mustAddr(two).Is6()}] = datapath.Way{Ifindex: uint32(n.device), MTU: wayMTU, Addr: mustAddr("192.0.2.66")}
		n.Commit(t)
		n.must(n.Kernel.Settle())
		n.out("a node with another's key", n.a, tcp(a, 2008, two, 80, "S"), false)
		n.ways()
		n.Commit(t)
		n.must(n.Kernel.Settle())
		n.out("and with its own", n.a, tcp(a, 2009, two, 80, "S"), true)
	})
	n := newNodes(t, false, open, loader.Config{})
	for _, to := range []string{"192.0.2.2", three4, outside, nodeAddr, "10.1.9.9"} {
		n.out("to "+to, n.a, tcp(n.a.Addr4, 2010, to, 80, "S"), false)
	}
}

func (n *nodes) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// While the table is new, the stack may translate datagrams of which it says nothing.
func TestToAnotherNodeFromANewTable(t *testing.T) {
	n := newNodes(t, false, open, loader.Config{Pickup: time.Hour})
	for name, f := range begins(n.a.Addr4, two4, 1000) {
		n.out(name, n.a, f, name != "UDP")
	}
}

// A flow keeps its path while its way is there: the stack has what has none for as long.
func TestWayGoesAndComes(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		syn, stack := tcp(own(n.a), 3000, two, 80, "S"), tcp(own(n.a), 3001, two, 80, "S")
		n.out("SYN", n.a, syn, true)
		clear(n.State.Ways)
		n.Commit(t)
		n.must(n.Kernel.Settle())
		if got := n.out("without a way", n.a, flags(syn, "A"), false); got.Mark != uint16(n.a.Number)|testnode.MarkEgress {
			t.Errorf("without a way: mark %#x", got.Mark)
		}
		n.out("a flow from then", n.a, stack, false)
		n.ways()
		n.Commit(t)
		n.must(n.Kernel.Settle())
		n.out("with it again", n.a, flags(syn, "A"), true)
		n.out("the flow from then", n.a, flags(stack, "A"), false)
	})
}

// Turned off, no flow begins past the stack, and those that did go on.
func TestHostRoutingTurnedOff(t *testing.T) {
	n := newNodes(t, false, open, loader.Config{})
	syn := tcp(n.a.Addr4, 3000, two4, 80, "S")
	n.out("SYN", n.a, syn, true)
	n.Config.NoHostRouting = true
	n.must(n.Kernel.Close())
	n.Load(t)
	n.Commit(t)
	n.out("the connection goes on", n.a, flags(syn, "A"), true)
	for name, f := range begins(n.a.Addr4, two4, 3001) {
		n.out(name, n.a, f, false)
	}
}

// What is too long for the way is the stack's business: it tells the sender, or cuts it up.
func TestTooLongForTheWay(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		syn := tcp(own(n.a), 4000, two, 80, "S")
		n.out("SYN", n.a, syn, true)
		header := 40
		if mustAddr(two).Is6() {
			header = 60
		}
		data := flags(syn, "PA")
		data.Payload = make([]byte, wayMTU-header)
		n.out("as long as may be", n.a, data, true)
		data.Payload = make([]byte, wayMTU-header+1)
		n.out("longer", n.a, data, false)

		hook, err := n.Hook("from_pod")
		n.must(err)
		defer hook.Close()
		for _, s := range []struct {
			each, many int
			want       int
		}{{wayMTU - header, 2, testnode.Redirect}, {wayMTU - header + 1, 2, testnode.Next}, {100, 30, testnode.Redirect}} {
			data.Payload = make([]byte, s.each*s.many)
			hook.Segments, hook.SegmentSize = s.many, s.each
			var got int
			n.must(n.Do(func() (err error) {
				got, err = hook.Run(data.Bytes(t), n.a.Ifindex, n.a.Ifindex, 0)
				return err
			}))
			if got != s.want {
				t.Errorf("%d segments of %d bytes: verdict %d, want %d", s.many, s.each, got, s.want)
			}
		}
	})
}

// Pieces of datagrams go by the stack, all of them: the way may be too narrow for some, and who puts
// them together there (conntrack) would wait for the others.
func TestFragmentsToAnotherNode(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		f := testnode.UDP(own(n.a), 5000, two, 53)
		n.out("a datagram", n.a, f, true)
		f.Payload = make([]byte, wayMTU+500)
		first, last := piece(t, f, 7, 0, wayMTU/8*8, true), piece(t, f, 7, wayMTU/8*8, 2*wayMTU, false)
		n.raw(t, "last before first", n.a, last, fragmentUnknown)
		for _, p := range []struct {
			what  string
			frame []byte
		}{{"too long a first", first}, {"its last", last}, {"a first", piece(t, f, 8, 0, 64, true)}, {"its next", piece(t, f, 8, 64, 64, true)}} {
			got := n.expect(t, p.what, next, func() testnode.Result { return n.Run(t, "from_pod", p.frame, n.a.Ifindex, n.a.Ifindex, 0) })
			if want := uint16(n.a.Number) | testnode.MarkEgress; got.Mark != want {
				t.Errorf("%s: mark %#x, want %#x", p.what, got.Mark, want)
			}
		}
		f.Payload = nil
		n.out("a datagram after them", n.a, f, true)
	})
}

// A policy's change reaches flows past the stack as any other.
func TestRevokedToAnotherNode(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		for name, f := range begins(own(n.a), two, 6000) {
			n.out(name, n.a, f, true)
		}
		n.Set(n.a, closed, open)
		n.Commit(t)
		for name, f := range begins(own(n.a), two, 6000) {
			n.from(t, name+", forbidden", n.a, f, policyDrop)
		}
		n.Set(n.a, open, open)
		n.Commit(t)
		for name, f := range begins(own(n.a), two, 6000) {
			n.out(name+", allowed again", n.a, f, true)
			if got := n.path(f); got != "nodes" {
				t.Errorf("%s: the path is %q", name, got)
			}
		}
		n.State.Peers[prefix("198.51.100.7/32")] = datapath.Peer{Identity: identity.World}
		n.Set(n.a, toWorld, open)
		n.Commit(t)
		n.Set(n.a, open, open)
		n.Commit(t)
		for name, f := range begins(own(n.a), two, 6000) {
			n.out(fmt.Sprint(name, " of another epoch"), n.a, f, true)
		}
	})
}

// Programs on other maps take over flows past the stack, with their ways: those are filled before.
func TestNewMapsKeepFlowsPastTheStack(t *testing.T) {
	each(t, open, func(t *testing.T, n *nodes, own func(testnode.Pod) string, two string) {
		out, in := tcp(own(n.a), 7000, two, 80, "S"), tcp(two, 7001, own(n.b), 80, "S")
		n.out("out", n.a, out, true)
		n.in("in", n.b, in, true, 0)
		next := n.Next(t, loader.Sizes{"flows": 2048 + 16*uint32(len(two))})
		n.Commit(t)
		n.switchTo(t, next, len(n.taken(t)), 0)
		var err error
		n.tables, err = n.Tables()
		n.must(err)
		for what, f := range map[string]testnode.Frame{"out": out, "in": in} {
			if got := n.path(f); got != "nodes" {
				t.Errorf("%s: the path is %q", what, got)
			}
		}
		n.in("the answer", n.a, answer(out, "SA"), true, 0)
		n.out("on", n.a, flags(out, "A"), true)
		n.out("the other answer", n.b, answer(in, "SA"), true)
		n.in("on", n.b, flags(in, "A"), true, 0)
	})
}

// taken are the flows in force.
func (n *nodes) taken(t *testing.T) (all []bpf.WeirFlowKey) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(maps.Path(n.Config.BPFFSDir, bpf.WeirMapFlows), nil)
	n.must(err)
	defer m.Close()
	var key bpf.WeirFlowKey
	var flow bpf.WeirFlow
	entries := m.Iterate()
	for entries.Next(&key, &flow) {
		all = append(all, key)
	}
	n.must(entries.Err())
	return all
}
