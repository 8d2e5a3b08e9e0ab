package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/controlplane/routing"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/reader"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/testnode"
)

// A tunnel's key cannot be given to a program by TEST_RUN: these packets are real ones. The
// network sends them under any address it likes.
//
//	pod 10.0.1.5 --- node 192.0.2.1 --- network: nodes .2 (pods 10.0.2.0/24) and .3 (10.0.3.0/24), a stranger .66
const (
	tunnelPort = 8472
	podPort    = 9000
)

type tunnelScene struct {
	*testing.T
	*testnode.Node
	network *testnode.Network
	routing routing.VXLAN
	nodes   *source.Nodes
	pod     *testnode.LivePod
	heard   chan string // what came to the pod, with its sender
	denied  chan datapath.Event
}

func newTunnelScene(t *testing.T) *tunnelScene {
	return newWireScene(t, loader.Config{TunnelPort: tunnelPort})
}

// newWireScene has no tunnel where the configuration has none.
func newWireScene(t *testing.T, cfg loader.Config) *tunnelScene {
	s := &tunnelScene{T: t, Node: testnode.New(t, cfg), heard: make(chan string, 16), denied: make(chan datapath.Event, 64)}
	s.network = s.AddNetwork(t,
		[]netip.Prefix{prefix("192.0.2.1/24"), prefix("2001:db8::1/64")},
		[]netip.Prefix{
			prefix("192.0.2.2/24"), prefix("2001:db8::2/64"), prefix("192.0.2.3/24"), prefix("192.0.2.66/24"), prefix("2001:db8::66/64"),
			prefix("10.0.2.9/32"), prefix("fd00:2::9/128"), // what is no tunnel's
		})
	addrs := []netip.Addr{mustAddr("10.0.1.5"), mustAddr("fd00:1::5")}
	s.pod = s.AddLivePod(t, 1, addrs...)
	s.State.Rulesets[open] = datapath.Ruleset{Default: datapath.RuleNotIsolated, Allow: true}
	s.State.Endpoints[1] = datapath.Endpoint{Ifindex: uint32(s.pod.Ifindex), MAC: s.pod.MAC, Addr4: addrs[0], Addr6: addrs[1], Egress: open, Ingress: open}
	for _, a := range addrs {
		s.State.Peers[netip.PrefixFrom(a, a.BitLen())] = datapath.Peer{Identity: idA, Endpoint: 1}
	}
	for text, who := range map[string]identity.Number{
		"192.0.2.1/32": identity.Host, "2001:db8::1/128": identity.Host, "192.0.2.2/32": identity.RemoteNode, "2001:db8::2/128": identity.RemoteNode,
		"192.0.2.3/32": identity.RemoteNode, "10.0.0.0/16": identity.Unmanaged, "fd00::/16": identity.Unmanaged,
	} {
		s.State.Peers[prefix(text)] = datapath.Peer{Identity: who}
	}
	s.Commit(t)
	s.routing = routing.VXLAN{Port: tunnelPort, Attach: func(ifindex int, name string) error {
		return loader.AttachNetwork(s.Config.BPFFSDir, ifindex, name, loader.Tunnel, loader.XDPOff)
	}}
	s.nodes = &source.Nodes{
		Own: &source.Node{Name: "one", Addresses: []netip.Addr{mustAddr("192.0.2.1"), mustAddr("2001:db8::1")}, PodCIDRs: []netip.Prefix{prefix("10.0.1.0/24"), prefix("fd00:1::/64")}},
		Others: []source.Node{
			{Name: "two", Addresses: []netip.Addr{mustAddr("192.0.2.2"), mustAddr("2001:db8::2")}, PodCIDRs: []netip.Prefix{prefix("10.0.2.0/24"), prefix("fd00:2::/64")}},
			{Name: "three", Addresses: []netip.Addr{mustAddr("192.0.2.3")}, PodCIDRs: []netip.Prefix{prefix("10.0.3.0/24")}},
		},
	}
	s.must(s.Do(func() error {
		_, err := node.EnableForwarding()
		return err
	}))
	if cfg.TunnelPort != 0 {
		s.must(s.Do(func() error { return s.routing.Route(s.nodes, nil) }))
	}
	s.listen()
	s.watch()
	return s
}

func (s *tunnelScene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// listen hears what comes to the pod.
func (s *tunnelScene) listen() {
	var conn net.PacketConn
	s.must(<-s.pod.Thread(func() (err error) {
		conn, err = net.ListenPacket("udp", fmt.Sprint(":", podPort))
		return err
	}))
	s.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			s.heard <- fmt.Sprintf("%s from %s", b[:n], from.(*net.UDPAddr).AddrPort().Addr().Unmap())
		}
	}()
}

// watch takes the denials that the programs record.
func (s *tunnelScene) watch() {
	in, err := reader.Open(s.Config.BPFFSDir)
	s.must(err)
	s.Cleanup(func() { in.Close() })
	go func() {
		for {
			e, err := in.Read()
			if err != nil {
				return
			}
			if e.Kind == datapath.EventDenied {
				s.denied <- e
			}
		}
	}()
}

// trust makes the programs know the other nodes, as the agent does.
func (s *tunnelScene) trust() {
	s.State.Origins = map[netip.Prefix]datapath.Origin{
		prefix("192.0.2.2/32"): {Node: 2, Address: true}, prefix("2001:db8::2/128"): {Node: 2, Address: true},
		prefix("10.0.2.0/24"): {Node: 2}, prefix("fd00:2::/64"): {Node: 2},
		prefix("192.0.2.3/32"): {Node: 3, Address: true}, prefix("10.0.3.0/24"): {Node: 3},
	}
	s.Commit(s.T)
}

// sent is one datagram of the network's: what is in it, between two addresses.
type sent struct {
	what     string
	from     string // outer source
	vni      uint32
	inner    []byte
	head     []byte          // in place of the VXLAN header
	bare     bool            // inner is the datagram's payload, to the pod
	dropped  datapath.Reason // 0: it arrives, unless
	silent   bool            // the kernel drops it before any program
	sender   string          // whom the pod hears it from
	unlisted bool            // counted and not recorded
}

func (s *tunnelScene) send(d sent) error {
	return s.network.Do(func() error {
		from := mustAddr(d.from)
		to := netip.AddrPortFrom(mustAddr("192.0.2.1"), tunnelPort)
		if from.Is6() {
			to = netip.AddrPortFrom(mustAddr("2001:db8::1"), tunnelPort)
		}
		payload, port := d.inner, uint16(0)
		if d.bare {
			port = 5000 // that of the tunnel's packets: theirs is its flow
			to = netip.AddrPortFrom(mustAddr("10.0.1.5"), podPort)
			if from.Is6() {
				to = netip.AddrPortFrom(mustAddr("fd00:1::5"), podPort)
			}
		} else {
			head := d.head
			if head == nil {
				head = binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, d.vni<<8)
			}
			payload = append(bytes.Clone(head), d.inner...)
		}
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, port)), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(payload)
		return err
	})
}

// try sends and wants exactly what d says of it.
func (s *tunnelScene) try(d sent) {
	s.Helper()
	before := s.Drops(s.T)
	s.must(s.send(d))
	var heard string
	deadline := time.After(5 * time.Second)
	for done := false; !done; {
		select {
		case heard = <-s.heard:
			done = true
		case <-deadline:
			done = true
		case <-time.After(20 * time.Millisecond):
			done = d.silent || d.dropped != 0 && s.Drops(s.T)[d.dropped] > before[d.dropped]
		}
	}
	if d.dropped != 0 || d.silent {
		select {
		case heard = <-s.heard:
		case <-time.After(100 * time.Millisecond):
		}
	}
	want := ""
	if d.dropped == 0 && !d.silent {
		want = "ping from " + d.sender
	}
	if heard != want {
		s.Errorf("%s: the pod heard %q, want %q", d.what, heard, want)
	}
	drops := diff(before, s.Drops(s.T))
	for _, noise := range []bpf.WeirDropReason{bpf.WeirDropReasonDROP_MULTICAST, bpf.WeirDropReasonDROP_NEIGHBOUR} {
		if datapath.Reason(noise) != d.dropped {
			delete(drops, datapath.Reason(noise)) // the kernel's own chatter
		}
	}
	if d.dropped == 0 && len(drops) != 0 || d.dropped != 0 && (len(drops) != 1 || drops[d.dropped] != 1) {
		s.Errorf("%s: dropped for %v, want %v", d.what, drops, d.dropped)
	}
	if d.dropped != 0 && !d.unlisted {
		s.recorded(d)
	}
}

func (s *tunnelScene) recorded(d sent) {
	s.Helper()
	for timeout := time.After(5 * time.Second); ; {
		select {
		case e := <-s.denied:
			if e.Reason == d.dropped {
				return
			}
		case <-timeout:
			s.Errorf("%s: no record of the drop", d.what)
			return
		}
	}
}

func reasonOf(r bpf.WeirDropReason) datapath.Reason { return datapath.Reason(r) }

func TestTunnelTrustsNodesForTheirOwnPods(t *testing.T) {
	const vni = datapath.TunnelNetwork
	s := newTunnelScene(t)
	network, stranger, liar, bypassed := reasonOf(bpf.WeirDropReasonDROP_TUNNEL_NETWORK), reasonOf(bpf.WeirDropReasonDROP_TUNNEL_NODE),
		reasonOf(bpf.WeirDropReasonDROP_TUNNEL_SOURCE), reasonOf(bpf.WeirDropReasonDROP_TUNNEL_BYPASSED)
	in4 := func(src string) []byte { return testnode.UDP(src, 5000, "10.0.1.5", podPort).Bytes(t) }
	in6 := func(src string) []byte { return testnode.UDP(src, 5000, "fd00:1::5", podPort).Bytes(t) }
	broadcast := func(frame []byte) []byte { return append(bytes.Repeat([]byte{0xff}, 6), frame[6:]...) }

	// No node is known: nothing comes in.
	s.try(sent{what: "before nodes are known", from: "192.0.2.2", vni: vni, inner: in4("10.0.2.9"), dropped: stranger})
	s.try(sent{what: "before nodes are known, to everybody's hardware address", from: "2001:db8::2", vni: vni, inner: broadcast(in6("fd00:2::9")), dropped: stranger})

	s.trust()
	arp := testnode.UDP("10.0.2.9", 1, "10.0.1.5", 2)
	arp.EtherType = layers.EthernetTypeARP
	optioned := testnode.UDP("10.0.2.9", 5000, "10.0.1.5", podPort)
	optioned.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: make([]byte, 5)}}
	for _, d := range []sent{
		{what: "a pod of node two", from: "192.0.2.2", vni: vni, inner: in4("10.0.2.9"), sender: "10.0.2.9"},
		{what: "its IPv6", from: "192.0.2.2", vni: vni, inner: in6("fd00:2::9"), sender: "fd00:2::9"},
		{what: "by outer IPv6", from: "2001:db8::2", vni: vni, inner: in4("10.0.2.9"), sender: "10.0.2.9"},
		{what: "both IPv6", from: "2001:db8::2", vni: vni, inner: in6("fd00:2::9"), sender: "fd00:2::9"},
		{what: "to everybody's hardware address", from: "192.0.2.2", vni: vni, inner: broadcast(in4("10.0.2.9")), sender: "10.0.2.9"},
		{what: "node two itself", from: "192.0.2.2", vni: vni, inner: in4("192.0.2.2"), sender: "192.0.2.2"},
		{what: "node two itself, IPv6 in IPv4", from: "192.0.2.2", vni: vni, inner: in6("2001:db8::2"), sender: "2001:db8::2"},
		{what: "a pod of node three", from: "192.0.2.3", vni: vni, inner: in4("10.0.3.9"), sender: "10.0.3.9"},

		{what: "from a stranger", from: "192.0.2.66", vni: vni, inner: in4("10.0.2.9"), dropped: stranger},
		{what: "from a stranger, outer IPv6", from: "2001:db8::66", vni: vni, inner: in6("fd00:2::9"), dropped: stranger},
		{what: "from a stranger, as itself", from: "192.0.2.66", vni: vni, inner: in4("192.0.2.66"), dropped: stranger},
		{what: "node three for node two's pod", from: "192.0.2.3", vni: vni, inner: in4("10.0.2.9"), dropped: liar},
		{what: "node three for node two's pod, IPv6", from: "192.0.2.3", vni: vni, inner: in6("fd00:2::9"), dropped: liar},
		{what: "node three for node two", from: "192.0.2.3", vni: vni, inner: in4("192.0.2.2"), dropped: liar},
		{what: "for a pod of this node", from: "192.0.2.2", vni: vni, inner: in4("10.0.1.5"), dropped: liar},
		{what: "for another pod of this node", from: "192.0.2.2", vni: vni, inner: in6("fd00:1::7"), dropped: liar},
		{what: "for this node", from: "192.0.2.2", vni: vni, inner: in4("192.0.2.1"), dropped: liar},
		{what: "for loopback", from: "192.0.2.2", vni: vni, inner: in4("127.0.0.1"), dropped: liar},
		{what: "for loopback, IPv6", from: "192.0.2.2", vni: vni, inner: in6("::1"), dropped: liar},
		{what: "for the world", from: "192.0.2.2", vni: vni, inner: in4("203.0.113.9"), dropped: liar},
		{what: "for a mapped address", from: "192.0.2.2", vni: vni, inner: in6("::ffff:10.0.2.9"), dropped: liar},

		{what: "of another network", from: "192.0.2.2", vni: vni + 1, inner: in4("10.0.2.9"), dropped: network},
		{what: "of network 0", from: "2001:db8::2", vni: 0, inner: in4("10.0.2.9"), dropped: network},
		{what: "without a network", from: "192.0.2.2", head: []byte{0, 0, 0, 0, 0, vni >> 8, vni & 0xff, 0}, inner: in4("10.0.2.9"), silent: true},
		{what: "with unknown flags", from: "192.0.2.2", head: []byte{0xff, 0, 0, 0, 0, vni >> 8, vni & 0xff, 0}, inner: in4("10.0.2.9"), silent: true},
		{what: "with a group's policy", from: "192.0.2.2", head: []byte{0x88, 0, 0, 9, 0, vni >> 8, vni & 0xff, 0}, inner: in4("10.0.2.9"), silent: true},

		{what: "ARP", from: "192.0.2.2", vni: vni, inner: arp.Bytes(t), dropped: reasonOf(bpf.WeirDropReasonDROP_NEIGHBOUR), unlisted: true},
		{what: "IP options", from: "192.0.2.2", vni: vni, inner: optioned.Bytes(t), dropped: reasonOf(bpf.WeirDropReasonDROP_IP_OPTIONS)},
		{what: "half a header", from: "192.0.2.2", vni: vni, inner: in4("10.0.2.9")[:38], dropped: reasonOf(bpf.WeirDropReasonDROP_TRUNCATED)},
	} {
		s.try(d)
	}

	// What is another node's pod's and comes without the tunnel, also on a flow that lives.
	s.must(s.network.Do(func() error {
		for _, to := range []string{"10.0.1.0/24", "fd00:1::/64"} {
			via := mustAddr("192.0.2.1")
			if prefix(to).Addr().Is6() {
				via = mustAddr("2001:db8::1")
			}
			_, dst, _ := net.ParseCIDR(to)
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	}))
	s.try(sent{what: "by the tunnel, as before", from: "192.0.2.2", vni: vni, inner: in4("10.0.2.9"), sender: "10.0.2.9"})
	s.try(sent{what: "past the tunnel", from: "10.0.2.9", inner: []byte("ping"), bare: true, dropped: bypassed})
	s.try(sent{what: "past the tunnel, IPv6", from: "fd00:2::9", inner: []byte("ping"), bare: true, dropped: bypassed})
	s.try(sent{what: "a node itself, past the tunnel", from: "192.0.2.2", inner: []byte("ping"), bare: true, sender: "192.0.2.2"})
	s.try(sent{what: "the tunnel's packet from a pod's address", from: "10.0.2.9", vni: vni, inner: in4("10.0.2.9"), dropped: bypassed})

	// A node that left is a stranger from the commit on.
	delete(s.State.Origins, prefix("192.0.2.3/32"))
	delete(s.State.Origins, prefix("10.0.3.0/24"))
	s.Commit(t)
	s.must(s.Kernel.Settle())
	s.try(sent{what: "a node that left", from: "192.0.2.3", vni: vni, inner: in4("10.0.3.9"), dropped: stranger})

	// By a device that is no uplink nothing is held against the tunnel but at its own end.
	s.must(s.Do(func() error {
		return loader.AttachNetwork(s.Config.BPFFSDir, s.network.Uplink, "up", loader.Plain, loader.XDPOff)
	}))
	s.try(sent{what: "from a pod's address, by a plain device", from: "10.0.2.9", vni: vni, inner: in4("10.0.2.9"), dropped: stranger})

	// Without programs the device hears nothing but what is for everybody.
	s.must(s.Do(func() error { return loader.DetachNetwork(s.Config.BPFFSDir, datapath.TunnelDevice) }))
	s.try(sent{what: "without programs", from: "192.0.2.2", vni: vni, inner: in4("10.0.2.9"), silent: true})
}

// A pod writes to no tunnel, wherever NAT makes its packet go.
func TestPodsDoNotWriteToTunnels(t *testing.T) {
	s := newSceneWith(t, open, loader.Config{TunnelPort: tunnelPort})
	s.State.Peers[prefix("192.0.2.2/32")] = datapath.Peer{Identity: identity.RemoteNode}
	s.Commit(t)
	tunnel := dropped(bpf.WeirDropReasonDROP_TUNNEL)
	for to, want := range map[string]outcome{
		nodeAddr: tunnel, "192.0.2.2": tunnel, outside: tunnel, "10.0.0.77": tunnel, "2001:db8::77": tunnel,
		"10.0.0.2": redirected, "fd00::2": redirected, // pods have no tunnel
	} {
		from := "10.0.0.1"
		if mustAddr(to).Is6() {
			from = "fd00::1"
		}
		s.expect(t, to, want, func() testnode.Result { return s.FromPod(t, s.a, testnode.UDP(from, 5000, to, tunnelPort)) })
	}
	s.expect(t, "another port", next, func() testnode.Result {
		return s.FromPod(t, s.a, testnode.UDP("10.0.0.1", 5000, outside, tunnelPort+1))
	})
	s.expect(t, "TCP", next, func() testnode.Result {
		return s.FromPod(t, s.a, testnode.TCP("10.0.0.1", 5000, outside, tunnelPort, "S"))
	})
	// A Service whose backend is a node's tunnel: as NAT left it, from the node's own address.
	frame := testnode.UDP(nodeAddr, 5000, "192.0.2.2", tunnelPort).Bytes(t)
	s.expect(t, "behind NAT", tunnel, func() testnode.Result {
		return s.Run(t, "to_network", frame, s.uplink, s.a.Ifindex, uint16(s.a.Number))
	})
}
