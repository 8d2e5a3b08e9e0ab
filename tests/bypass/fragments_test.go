package bypass

// Fragments: what is not the beginning of a datagram has no ports to judge by.
var fragments = []bypass{{
	id: "B01", name: "non_first_fragment",
	title:  "non-first IPv4 fragment: payload read as ports",
	public: "cilium #5181, #5321",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		for id, protocol := range []byte{protoTCP, protoUDP, protoSCTP, protoICMP} {
			// The payload says what an allowed packet's ports say.
			like := append(ports(openTCP, openTCP), segment(openTCP, openTCP, "S")...)
			last := piece4(v4(m.Addr4, b.Addr4, protocol, like), uint16(100+id), 64, false)
			middle := piece4(v4(m.Addr4, b.Addr4, protocol, like), uint16(100+id), 64, true)
			a.drop("a fragment whose first never was", m, fragmentUnknown, last, middle)
			a.drop("the same from outside", a.outside, fragmentUnknown, piece4(v4(beyond4, b.Addr4, protocol, like), uint16(100+id), 64, false))
		}
		a.pass("the same payload whole", m, b, v4(m.Addr4, b.Addr4, protoTCP, segment(openTCP, openTCP, "S")))
	},
	tests: []string{"tests/packet TestFragments", "tests/packet TestParserFailsClosed"},
}, {
	id: "B02", name: "tiny_first_fragment",
	title: "tiny first fragment, truncated transport header: the parser gives up and passes",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		syn := segment(openTCP, openTCP, "S")
		for i, n := range []int{0, 1, 3, 4, 8, 12, 16, 19} {
			a.drop("a first fragment with a part of TCP's header", m, fragmentShort,
				piece4(v4(m.Addr4, b.Addr4, protoTCP, syn[:n]), uint16(200+i), 0, true))
			a.drop("a packet with a part of TCP's header", m, truncated, v4(m.Addr4, b.Addr4, protoTCP, syn[:n]))
		}
		for i, n := range []int{0, 4, 7} {
			a.drop("a first fragment with a part of UDP's header", m, fragmentShort,
				piece4(v4(m.Addr4, b.Addr4, protoUDP, datagram(1, openUDP, nil)[:n]), uint16(220+i), 0, true))
			a.drop("a packet with a part of UDP's header", m, truncated, v4(m.Addr4, b.Addr4, protoUDP, datagram(1, openUDP, nil)[:n]))
			a.drop("the same in IPv6", m, truncated, v6(m.Addr6, b.Addr6, protoUDP, datagram(1, openUDP, nil)[:n]))
		}
		a.drop("a first fragment with a part of SCTP's header", m, fragmentShort,
			piece4(v4(m.Addr4, b.Addr4, protoSCTP, make([]byte, 8)), 230, 0, true))
		// TCP's flags and options would come from the second fragment.
		a.drop("TCP's flags in a fragment of their own", m, fragmentShort,
			piece4(v4(m.Addr4, b.Addr4, protoTCP, syn[8:]), 231, 1, false))
		long := segment(1, openTCP, "S")
		long[12] = 0xf0
		a.drop("a first fragment that ends in TCP's options", m, badHeader,
			piece4(v4(m.Addr4, b.Addr4, protoTCP, append(long, 0, 0, 0, 0)), 232, 0, true))
		a.drop("a length that ends in the header", m, truncated, with(tcp(m.Addr4, 1, b.Addr4, openTCP, "S"), 16, 0, 28))
	},
}, {
	id: "B03", name: "fragments_out_of_order",
	title:  "fragments out of order, last first, duplicate, overlapping, first one missing",
	public: "cilium #25709",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		payload := make([]byte, 64)
		first := func(id, port uint16) []byte {
			return piece4(v4(m.Addr4, b.Addr4, protoUDP, datagram(1, port, payload)), id, 0, true)
		}
		later := func(id, offset uint16, more bool) []byte {
			return piece4(v4(m.Addr4, b.Addr4, protoUDP, payload), id, offset, more)
		}
		a.drop("last first", m, fragmentUnknown, later(1, 17, false))
		a.pass("then its first", m, b, first(1, openUDP))
		a.pass("the middle, and the last again", m, b, later(1, 9, true), later(1, 17, false))
		a.pass("duplicates of an allowed datagram", m, b, first(1, openUDP), later(1, 9, true), later(1, 9, true))
		a.drop("a first to a closed port", m, policy, first(2, closedUDP))
		a.drop("what would follow it", m, fragmentUnknown, later(2, 9, true), later(2, 17, false))
		a.pass("a first to an open port", m, b, first(3, openUDP))
		a.drop("a second first of that datagram, to a closed port", m, policy, first(3, closedUDP))
		a.drop("takes the later ones along", m, fragmentUnknown, later(3, 9, true), later(3, 17, false))
		a.drop("another pod's datagram of that number", a.eve, fragmentUnknown,
			piece4(v4(a.eve.Addr4, b.Addr4, protoUDP, payload), 1, 9, false))
		a.drop("its fragments from another pod", a.eve, spoofed, later(1, 9, false))
		a.pass("a first of TCP", m, b, piece4(v4(m.Addr4, b.Addr4, protoTCP, append(segment(5, openTCP, "S"), payload[:44]...)), 4, 0, true))
		a.drop("an overlap of TCP's flags", m, fragmentShort, piece4(v4(m.Addr4, b.Addr4, protoTCP, segment(5, closedTCP, "A")[8:]), 4, 1, false))
		a.drop("a closed port's first after it", m, policy, piece4(v4(m.Addr4, b.Addr4, protoTCP, append(segment(5, closedTCP, "S"), payload[:44]...)), 4, 0, true))
		a.drop("and what followed before", m, fragmentUnknown, piece4(v4(m.Addr4, b.Addr4, protoTCP, payload), 4, 8, false))
	},
	tests: []string{"tests/packet TestFragments"},
	note:  "fragments that come before their first are dropped and not kept: their datagram is lost",
}, {
	id: "B06", name: "ipv6_fragments",
	title:  "IPv6 fragments, atomic fragments too",
	public: "cilium #46132",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		payload := make([]byte, 64)
		frag := func(next byte, id uint32, offset uint16, more bool, part []byte) []byte {
			return v6(m.Addr6, b.Addr6, extFragment, piece6(next, id, offset, more, part))
		}
		a.drop("an atomic fragment to a closed port", m, policy,
			frag(protoTCP, 1, 0, false, segment(1, closedTCP, "S")), frag(protoUDP, 2, 0, false, datagram(1, closedUDP, nil)))
		a.pass("an atomic fragment to an open port", m, b, frag(protoUDP, 3, 0, false, datagram(1, openUDP, nil)))
		a.drop("a fragment whose first never was", m, fragmentUnknown,
			frag(protoTCP, 4, 64, false, segment(1, openTCP, "S")), frag(protoUDP, 5, 64, true, datagram(1, openUDP, payload)))
		a.pass("a first and its last", m, b, frag(protoUDP, 6, 0, true, datagram(1, openUDP, payload[:56])), frag(protoUDP, 6, 8, false, payload))
		a.drop("that last as another protocol's", m, fragmentUnknown, frag(protoTCP, 6, 8, false, payload))
		a.drop("a second first, to a closed port", m, policy, frag(protoUDP, 6, 0, true, datagram(1, closedUDP, payload[:56])))
		a.drop("takes the last along", m, fragmentUnknown, frag(protoUDP, 6, 8, false, payload))
		a.drop("a first fragment with a part of a header", m, fragmentShort,
			frag(protoTCP, 7, 0, true, segment(1, openTCP, "S")[:8]), frag(protoUDP, 8, 0, true, nil), v6(m.Addr6, b.Addr6, extFragment, nil))
		a.drop("a chain that goes on behind the fragment header", m, extensionHeader,
			frag(extDestination, 9, 0, true, extension(protoTCP, segment(1, openTCP, "S"))),
			frag(extFragment, 10, 0, false, piece6(protoTCP, 11, 0, false, segment(1, openTCP, "S"))),
			frag(extDestination, 9, 8, false, payload))
		a.drop("an echo in an atomic fragment", m, policy, frag(protoICMPv6, 12, 0, false, []byte{128, 0, 0, 0, 0, 1, 0, 1}))
	},
	tests: []string{"tests/packet TestParserFailsClosed"},
}}
