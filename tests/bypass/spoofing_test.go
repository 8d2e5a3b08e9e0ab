package bypass

import "encoding/binary"

// Spoofing: packets in another's name, or hidden in another packet.
var spoofing = []bypass{{
	id: "B12", name: "forged_source",
	title: "raw socket: source address of another pod, a node, a Service, loopback",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		a.apply("service.yaml", serviceYAML)
		for _, c := range []struct{ src4, src6 string }{
			{a.alice.Addr4, a.alice.Addr6}, {b.Addr4, b.Addr6}, // a pod that may, the receiver itself
			{"192.0.2.1", "2001:db8::1"}, {"169.254.1.1", "fe80::ecee:eeff:feee:eeee"}, // the node
			{serviceIP4, serviceIP6}, {beyond4, beyond6},
			{"10.77.0.200", "fd77::200"}, // a pod that is not there
			{"127.0.0.1", "::1"}, {"0.0.0.0", "::"}, {"224.0.0.1", "ff02::1"}, {"255.255.255.255", "fe80::1"},
		} {
			a.drop("in another's name", m, spoofed, tcp(c.src4, 1, b.Addr4, openTCP, "S"), udp(c.src4, 1, b.Addr4, openUDP),
				v6(c.src6, b.Addr6, protoTCP, segment(1, openTCP, "S")), v6(c.src6, b.Addr6, protoUDP, datagram(1, openUDP, nil)))
			a.drop("in another's name, to outside", m, spoofed, tcp(c.src4, 1, beyond4, 80, "S"), v6(c.src6, beyond6, protoTCP, segment(1, 80, "S")))
		}
		// IPv4 addresses in IPv6's clothes.
		a.drop("its own IPv4 address, mapped", m, spoofed, v6("::ffff:"+m.Addr4, b.Addr6, protoTCP, segment(1, openTCP, "S")))
		a.drop("to a mapped address", m, badHeader, v6(m.Addr6, "::ffff:"+b.Addr4, protoTCP, segment(1, openTCP, "S")))
		a.drop("from outside, in the name of a pod here", a.outside, foreignSource,
			tcp(a.alice.Addr4, 1, b.Addr4, 80, "S"), tcp(a.alice.Addr6, 1, b.Addr6, 80, "S"), tcp(b.Addr4, 1, b.Addr4, 80, "S"))
		a.drop("from outside, in the node's name", a.outside, foreignSource, tcp("192.0.2.1", 1, b.Addr4, 80, "S"), tcp("2001:db8::1", 1, b.Addr6, 80, "S"))
		a.drop("from outside, in loopback's name", a.outside, badSource, tcp("127.0.0.1", 1, b.Addr4, 80, "S"))
		a.pass("in its own", m, b, tcp(m.Addr4, 1, b.Addr4, openTCP, "S"), tcp(m.Addr6, 1, b.Addr6, openTCP, "S"))
	},
	tests: []string{"tests/packet TestParserFailsClosed", "tests/packet TestShield", "tests/packet TestForgedTupleOfALiveFlow"},
}, {
	id: "B13", name: "poisoned_flow_of_a_neighbour",
	title: "flow-table poisoning of a neighbour on the same node",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		flow := [][]byte{tcp(al.Addr4, 1300, b.Addr4, 80, "S"), udp(al.Addr4, 1300, b.Addr4, 53), tcp(al.Addr6, 1300, b.Addr6, 80, "S"), udp(al.Addr6, 1300, b.Addr6, 53)}
		back := [][]byte{tcp(b.Addr4, 80, al.Addr4, 1300, "SA"), udp(b.Addr4, 53, al.Addr4, 1300), tcp(b.Addr6, 80, al.Addr6, 1300, "SA"), udp(b.Addr6, 53, al.Addr6, 1300)}
		a.drop("before the flow is there", m, spoofed, flow...)
		a.drop("an answer before it", m, spoofed, back...)
		a.pass("alice's flows to bob", al, b, flow...)
		for _, forged := range [][][]byte{flow, back, {
			tcp(al.Addr4, 1300, b.Addr4, 80, "R"), tcp(b.Addr4, 80, al.Addr4, 1300, "RA"), tcp(al.Addr4, 1300, b.Addr4, 80, "FA"),
			tcp(al.Addr6, 1300, b.Addr6, 80, "R"), tcp(al.Addr6, 1300, b.Addr6, 80, "PA"),
		}} {
			a.drop("forged by a third pod", m, spoofed, forged...)
			a.drop("forged by a pod whose egress is isolated", a.eve, spoofed, forged...)
			a.drop("forged from outside", a.outside, foreignSource, forged...)
		}
		a.pass("bob's answers", b, al, back...)
		a.pass("alice goes on", al, b, tcp(al.Addr4, 1300, b.Addr4, 80, "A"), tcp(al.Addr6, 1300, b.Addr6, 80, "A"))
	},
	tests: []string{"tests/packet TestForgedTupleOfALiveFlow"},
}, {
	id: "B35", name: "loopback_from_the_network",
	title:  "loopback services reached from the network",
	public: "CVE-2020-8558",
	try: func(a *attempt) {
		m := a.mallory
		a.drop("from a pod", m, destination, tcp(m.Addr4, 1, "127.0.0.1", 80, "S"), tcp(m.Addr4, 1, "127.9.9.9", 80, "S"), udp(m.Addr4, 1, "127.0.0.53", 53), tcp(m.Addr4, 1, "0.0.0.0", 80, "S"))
		a.drop("from a pod, IPv6", m, badHeader, v6(m.Addr6, "::1", protoTCP, segment(1, 80, "S")), v6(m.Addr6, "::", protoTCP, segment(1, 80, "S")),
			v6(m.Addr6, "::ffff:127.0.0.1", protoTCP, segment(1, 80, "S")))
		a.drop("from outside", a.outside, destination, tcp(beyond4, 1, "127.0.0.1", 80, "S"), udp(beyond4, 1, "127.0.0.53", 53))
		a.drop("from outside, as loopback", a.outside, badSource, tcp("127.0.0.1", 1, "192.0.2.1", 80, "S"), tcp("127.0.0.1", 1, a.bob.Addr4, openTCP, "S"))
	},
	tests: []string{"tests/packet TestParserFailsClosed"},
}, {
	id: "B37", name: "tunnel_injection",
	title: "tunnel injection: a pod sends VXLAN, Geneve or IPIP to a node with a chosen inner header",
	try: func(a *attempt) {
		e := a.eve
		inner := tcp(a.alice.Addr4, 1, a.bob.Addr4, 80, "S")
		for _, node := range []string{"192.0.2.1", "192.0.2.10"} {
			a.drop("from a pod that may not reach the node", e, policy,
				v4(e.Addr4, node, protoUDP, datagram(1, 4789, vxlan(inner))), v4(e.Addr4, node, protoUDP, datagram(1, 8472, vxlan(inner))),
				v4(e.Addr4, node, protoUDP, datagram(1, 6081, append([]byte{0, 0, 0x65, 0x58, 0, 0, 1, 0}, inner...))),
				v4(e.Addr4, node, 4, inner[14:]), v4(e.Addr4, node, 41, inner[14:]),
				v4(e.Addr4, node, 47, append([]byte{0, 0, 8, 0}, inner[14:]...)))
		}
	},
	note:  "where there is a tunnel, its port is closed to pods, and only what the sender's own node sent comes out of it",
	tests: []string{"tests/packet TestPodsDoNotWriteToTunnels", "tests/packet TestTunnelTrustsNodesForTheirOwnPods"},
}}

// vxlan is the header of network 1 before a frame.
func vxlan(inner []byte) []byte { return append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...) }

// sportOf is the source port of an IPv4 frame.
func sportOf(frame []byte) uint16 { return binary.BigEndian.Uint16(frame[34:]) }
