package bypass

// ICMP, and the neighbours' protocols.
var icmp = []bypass{{
	id: "B09", name: "icmp_as_a_hole",
	title:  "ICMP as a hole: echo through deny-all, blanket ICMPv6 accept, tunnel in ICMP",
	public: "GHSA-c66w-hq56-4q97",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		hidden := tcp(m.Addr4, 1, b.Addr4, closedTCP, "S")[14:]
		a.drop("echo to a pod with two open ports", m, policy, echo(m.Addr4, b.Addr4, 7, false), echo(m.Addr6, b.Addr6, 7, false))
		a.drop("echo to a pod that nobody may reach", m, policy, echo(m.Addr4, al.Addr4, 7, false), echo(m.Addr6, al.Addr6, 7, false))
		a.drop("echo whose id is an open port", m, policy, echo(m.Addr4, b.Addr4, openTCP, false), echo(m.Addr6, b.Addr6, openUDP, false))
		a.drop("a packet in an echo", m, policy, v4(m.Addr4, b.Addr4, protoICMP, append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, hidden...)))
		a.drop("a reply to no request", m, icmpType, echo(m.Addr4, b.Addr4, 7, true), echo(m.Addr6, b.Addr6, 7, true),
			v4(m.Addr4, b.Addr4, protoICMP, append([]byte{0, 0, 0, 0, 0, 1, 0, 1}, hidden...)))
		for _, typ := range []byte{1, 4, 5, 9, 10, 13, 14, 15, 17, 18, 30, 40, 42, 253} {
			a.drop("another type", m, icmpType, v4(m.Addr4, b.Addr4, protoICMP, append([]byte{typ, 0, 0, 0, 0, 1, 0, 1}, hidden...)))
		}
		for _, typ := range []byte{0, 5, 100, 127, 138, 139, 140, 141, 144, 148, 155, 160, 200, 255} {
			a.drop("another type of ICMPv6", m, icmpType, v6(m.Addr6, b.Addr6, protoICMPv6, append([]byte{typ, 0, 0, 0, 0, 1, 0, 1}, hidden...)))
		}
		a.drop("half an ICMP header", m, truncated, v4(m.Addr4, b.Addr4, protoICMP, []byte{8, 0, 0, 0}), v6(m.Addr6, b.Addr6, protoICMPv6, []byte{128, 0, 0, 0}))
		a.pass("echo where a rule has all", al, b, echo(al.Addr4, b.Addr4, 7, false), echo(al.Addr6, b.Addr6, 7, false))
		a.pass("its reply", b, al, echo(b.Addr4, al.Addr4, 7, true), echo(b.Addr6, al.Addr6, 7, true))
	},
	tests: []string{"tests/packet TestReverseConnectionOnAnOldTuple"},
}, {
	id: "B10", name: "forged_icmp_error",
	title: "forged ICMP error with a chosen inner tuple",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		flow4, flow6 := udp(al.Addr4, 1010, b.Addr4, 7), udp(al.Addr6, 1010, b.Addr6, 7)
		a.pass("alice's flow to bob", al, b, flow4, flow6)
		error4 := func(src, dst string, typ, code byte, inner []byte) []byte {
			return v4(src, dst, protoICMP, append([]byte{typ, code, 0, 0, 0, 0, 2, 0}, inner[14:]...))
		}
		error6 := func(src, dst string, typ, code byte, inner []byte) []byte {
			return v6(src, dst, protoICMPv6, append([]byte{typ, code, 0, 0, 0, 0, 5, 0}, inner[14:]...))
		}
		for _, c := range [][2]byte{{3, 3}, {3, 4}, {3, 1}, {11, 0}, {12, 0}} {
			a.drop("to its sender, from a third pod", m, icmpUnrelated, error4(m.Addr4, al.Addr4, c[0], c[1], flow4))
			a.drop("in its receiver's name", m, spoofed, error4(b.Addr4, al.Addr4, c[0], c[1], flow4))
			a.drop("in its receiver's name, from outside", a.outside, foreignSource, error4(b.Addr4, al.Addr4, c[0], c[1], flow4))
		}
		for _, c := range [][2]byte{{1, 4}, {2, 0}, {3, 0}, {4, 1}} {
			a.drop("the same in IPv6", m, icmpUnrelated, error6(m.Addr6, al.Addr6, c[0], c[1], flow6))
			a.drop("the same in IPv6", m, spoofed, error6(b.Addr6, al.Addr6, c[0], c[1], flow6))
			a.drop("the same in IPv6, from outside", a.outside, foreignSource, error6(b.Addr6, al.Addr6, c[0], c[1], flow6))
		}
		own := udp(m.Addr4, 1011, b.Addr4, openUDP)
		a.pass("mallory's flow to bob", m, b, own)
		a.drop("to bob, about what mallory sent", m, icmpUnrelated, error4(m.Addr4, b.Addr4, 3, 4, own))
		a.drop("about a packet that bob never sent", m, icmpUnrelated, error4(m.Addr4, b.Addr4, 3, 4, udp(b.Addr4, openUDP, m.Addr4, 1012)))
		a.drop("about bob's flow with alice", m, icmpUnrelated, error4(m.Addr4, b.Addr4, 3, 4, udp(b.Addr4, 7, al.Addr4, 1010)))
		a.drop("about something that is no packet", m, icmpUnrelated, error4(m.Addr4, b.Addr4, 3, 4, make([]byte, 60)),
			error4(m.Addr4, b.Addr4, 3, 4, make([]byte, 14)))
		a.drop("a redirect", m, icmpType, error4(m.Addr4, al.Addr4, 5, 1, flow4))
		a.pass("bob's true error", b, al, error4(b.Addr4, al.Addr4, 3, 3, flow4), error6(b.Addr6, al.Addr6, 1, 4, flow6))
		a.pass("the flow goes on", al, b, flow4, flow6)
	},
	tests: []string{"tests/packet TestICMPErrors", "tests/node TestRefusalsComeBack"},
}, {
	id: "B11", name: "router_and_neighbour_spoofing",
	title:  "rogue router advertisement, NDP or ARP spoofing, DHCP from a pod",
	public: "CVE-2020-10749, CVE-2020-13597",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		const local, all = "fe80::1", "ff02::1"
		nd := func(src, dst string, typ byte, target string) []byte {
			body := append([]byte{typ, 0, 0, 0, 0x60, 0, 0, 0}, v6(target, target, 0, nil)[22:38]...)
			return v6(src, dst, protoICMPv6, append(body, 2, 1, 2, 0, 0, 0, 0, 1))
		}
		for _, dst := range []string{b.Addr6, all} {
			a.drop("router advertisement", m, multicast, nd(m.Addr6, dst, 134, local), nd(local, dst, 134, local))
			a.drop("router solicitation, redirect", m, multicast, nd(m.Addr6, dst, 133, local), nd(m.Addr6, dst, 137, beyond6))
			a.drop("neighbour solicitation for another", m, neighbour, nd(m.Addr6, dst, 135, b.Addr6), nd(b.Addr6, dst, 135, m.Addr6))
			a.drop("neighbour advertisement of another", m, neighbour,
				nd(m.Addr6, dst, 136, b.Addr6), nd(m.Addr6, dst, 136, "fe80::ecee:eeff:feee:eeee"), nd(m.Addr6, dst, 136, "2001:db8::1"))
		}
		a.drop("MLD", m, multicast, v6(m.Addr6, "ff02::16", extHopByHop, extension(protoICMPv6, make([]byte, 28))), nd(m.Addr6, "ff02::16", 143, local), nd(m.Addr6, all, 130, local))
		arp := func(op byte, sender, target string) []byte {
			p := append([]byte{0, 1, 8, 0, 6, 4, 0, op, 2, 0, 0, 0, 0, 1}, v4(sender, target, 0, nil)[26:30]...)
			return ethernet(0x0806, append(append(p, make([]byte, 6)...), v4(sender, target, 0, nil)[30:34]...))
		}
		for op := byte(1); op <= 4; op++ {
			for _, sender := range []string{b.Addr4, "169.254.1.1", "192.0.2.1", "0.0.0.0"} {
				a.drop("ARP in another's name", m, neighbour, arp(op, sender, sender), arp(op, sender, m.Addr4), arp(op, sender, b.Addr4))
			}
		}
		a.drop("ARP for another", m, neighbour, arp(1, m.Addr4, b.Addr4), arp(1, m.Addr4, m.Addr4), arp(8, m.Addr4, b.Addr4))
		a.drop("half an ARP packet", m, truncated, arp(1, m.Addr4, b.Addr4)[:30])
		dhcp := append([]byte{1, 1, 6, 0}, make([]byte, 236)...)
		a.drop("DHCP discovery", m, spoofed, v4("0.0.0.0", "255.255.255.255", protoUDP, datagram(68, 67, dhcp)))
		a.drop("DHCP in the gateway's name", m, spoofed, v4("169.254.1.1", b.Addr4, protoUDP, datagram(67, 68, dhcp)))
		a.drop("DHCP to a pod", m, policy, v4(m.Addr4, b.Addr4, protoUDP, datagram(67, 68, dhcp)), v6(m.Addr6, b.Addr6, protoUDP, datagram(547, 546, dhcp)))
		a.drop("DHCP to everybody", m, multicast,
			v4(m.Addr4, "255.255.255.255", protoUDP, datagram(67, 68, dhcp)), v6(m.Addr6, "ff02::1:2", protoUDP, datagram(546, 547, dhcp)))
		a.drop("IGMP, and other multicast", m, multicast, v4(m.Addr4, "224.0.0.22", 2, make([]byte, 16)),
			udp(m.Addr4, 5353, "224.0.0.251", 5353), udp(m.Addr6, 5353, "ff02::fb", 5353), v4(m.Addr4, "224.0.0.5", 89, make([]byte, 24)))
	},
	tests: []string{"tests/packet TestParserFailsClosed", "cni TestAdd"},
	note:  "both ends of a pod's link have permanent neighbours and the pod takes no router advertisement",
}}
