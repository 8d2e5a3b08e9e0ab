package bypass

import (
	"encoding/binary"

	"github.com/weirnet/weir/datapath"
)

// Headers: what moves the transport header, or hides the network header.
var headers = []bypass{{
	id: "B04", name: "ipv4_options",
	title: "IPv4 options (IHL > 5) move the transport header",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		syn := segment(1, closedTCP, "S")
		// What a reader at the usual place takes for ports to an open one.
		looks := append(ports(openTCP, openTCP), 0, 0, 0, 0)
		for _, options := range [][]byte{
			{1, 1, 1, 1},                 // no operation
			{0, 0, 0, 0},                 // end of options
			{7, 7, 4, 0, 0, 0, 0, 0},     // record route
			{131, 7, 4, 10, 77, 0, 9, 0}, // loose source route
			{137, 7, 4, 10, 77, 0, 9, 0}, // strict source route
			{68, 8, 5, 0, 0, 0, 0, 0},    // timestamp
			{148, 4, 0, 0},               // router alert
			looks,                        // nonsense
			make([]byte, 40), looks[:4],  // as long as can be
			append([]byte{148, 4, 0, 0}, 1, 1, 1, 1), // two of them
		} {
			a.drop("options", m, ipOptions, v4Options(m.Addr4, b.Addr4, protoTCP, options, syn))
		}
		a.drop("options in a fragment", m, ipOptions, piece4(v4Options(m.Addr4, b.Addr4, protoTCP, looks, syn), 1, 64, false))
		a.drop("options, from outside", a.outside, ipOptions, v4Options(beyond4, b.Addr4, protoTCP, []byte{1, 1, 1, 1}, syn), v4Options(beyond4, b.Addr4, protoTCP, make([]byte, 40), syn))
		a.drop("a header longer than the packet", m, ipOptions, with(v4(m.Addr4, b.Addr4, protoTCP, syn), 14, 0x4f))
		a.pass("no options", m, b, v4(m.Addr4, b.Addr4, protoTCP, segment(1, openTCP, "S")))
	},
	tests: []string{"tests/packet TestParserFailsClosed"},
	note:  "a header length below five words is dropped by the kernel's own IP input elsewhere, and here as a bad header",
}, {
	id: "B05", name: "ipv6_extension_headers",
	title: "IPv6 extension headers: hop-by-hop, destination, routing, AH, chains of 8 and more, header after fragment",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		syn := segment(1, openTCP, "S")
		for _, kind := range []byte{extHopByHop, extRouting, extAuth, extDestination, 135, 139, 140, 253, 254} {
			a.drop("one header", m, extensionHeader, v6(m.Addr6, b.Addr6, kind, extension(protoTCP, syn)))
			a.drop("one header behind the fragment header", m, extensionHeader,
				v6(m.Addr6, b.Addr6, extFragment, piece6(kind, uint32(kind), 0, false, extension(protoTCP, syn))))
		}
		a.drop("from outside", a.outside, extensionHeader, v6(beyond6, b.Addr6, extDestination, extension(protoTCP, syn)),
			v6(beyond6, b.Addr6, extFragment, piece6(extDestination, 7, 0, false, extension(protoTCP, syn))))
		for _, n := range []int{2, 8, 9} {
			next, rest := chain(extDestination, n, protoTCP, syn)
			a.drop("a chain", m, extensionHeader, v6(m.Addr6, b.Addr6, next, rest))
		}
		next, rest := chain(extDestination, 1, extFragment, piece6(protoTCP, 1, 0, false, syn))
		a.drop("a fragment header behind another", m, extensionHeader, v6(m.Addr6, b.Addr6, next, rest))
		a.drop("type 0 routing", m, extensionHeader,
			v6(m.Addr6, b.Addr6, extRouting, append([]byte{protoTCP, 2, 0, 1, 0, 0, 0, 0}, append(make([]byte, 16), syn...)...)))
		a.drop("jumbo payload", m, extensionHeader,
			with(v6(m.Addr6, b.Addr6, extHopByHop, append([]byte{protoTCP, 0, 0xc2, 4, 0, 1, 0, 0}, syn...)), 18, 0, 0))
		a.drop("no next header", m, policy, v6(m.Addr6, b.Addr6, extNone, syn))
		a.drop("a payload of nothing", m, truncated, v6(m.Addr6, b.Addr6, protoTCP, nil))
		a.pass("no header", m, b, v6(m.Addr6, b.Addr6, protoTCP, syn))
	},
	tests: []string{"tests/packet TestParserFailsClosed"},
}, {
	id: "B07", name: "more_headers_than_walked",
	title: "more extension headers than the parser walks",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		for _, n := range []int{16, 64, 150} {
			for _, kind := range []byte{extHopByHop, extDestination} {
				next, rest := chain(kind, n, protoTCP, segment(1, openTCP, "S"))
				a.drop("a long chain", m, extensionHeader, v6(m.Addr6, b.Addr6, next, rest))
			}
		}
	},
	note: "it walks none: any but the fragment header is dropped",
}, {
	id: "B08", name: "link_layer",
	title:  "VLAN 0, stacked tags, LLC/SNAP, unknown ethertype",
	public: "CVE-2021-27853",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		inner4, inner6 := tcp(m.Addr4, 1, b.Addr4, closedTCP, "S"), tcp(m.Addr6, 1, b.Addr6, closedTCP, "S")
		tagged := func(inner []byte, tags ...uint16) []byte {
			ether := binary.BigEndian.Uint16(inner[12:])
			payload := inner[14:]
			for i := len(tags) - 1; i >= 0; i -= 2 {
				payload = append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tags[i]), ether), payload...)
				ether = tags[i-1]
			}
			return ethernet(ether, payload)
		}
		for _, inner := range [][]byte{inner4, inner6} {
			a.drop("a tag", m, vlan,
				tagged(inner, 0x8100, 0), tagged(inner, 0x8100, 0xe000), tagged(inner, 0x8100, 7), tagged(inner, 0x8100, 4095),
				tagged(inner, 0x88a8, 0), tagged(inner, 0x88a8, 7))
			a.drop("stacked tags", m, vlan,
				tagged(inner, 0x8100, 0, 0x8100, 0), tagged(inner, 0x88a8, 0, 0x8100, 0), tagged(inner, 0x8100, 7, 0x88a8, 7, 0x8100, 0))
			a.drop("an old or vendor's tag", m, ethertype, tagged(inner, 0x9100, 0), tagged(inner, 0x9200, 7))
			ether := inner[12:14]
			snap := append([]byte{0xaa, 0xaa, 3, 0, 0, 0}, append(ether[:2:2], inner[14:]...)...)
			a.drop("LLC and SNAP", m, ethertype, ethernet(uint16(len(snap)), snap), ethernet(uint16(len(snap)), append([]byte{0x42, 0x42, 3}, snap...)))
			for _, e := range []uint16{0x0801, 0x0806 + 0x1000, 0x8035, 0x8847, 0x8848, 0x8863, 0x8864, 0x88cc, 0x88e5, 0x88f7, 0x894f, 0xffff, 0x05ff} {
				a.drop("another ethertype", m, ethertype, ethernet(e, inner[14:]))
			}
		}
		a.drop("IPv4 as IPv6", m, badHeader, ethernet(0x86dd, append(inner4[14:], make([]byte, 20)...)))
		a.drop("IPv6 as IPv4", m, badHeader, ethernet(0x0800, inner6[14:]))
		for _, c := range []byte{0x05, 0x25, 0x35, 0x55, 0xf5, 0x40, 0x44} {
			a.drop("another version, or a header too short", m, badHeader, with(tcp(m.Addr4, 1, b.Addr4, openTCP, "S"), 14, c))
		}
		a.offloaded()
		a.drop("a length past the frame", m, truncated,
			with(tcp(m.Addr4, 1, b.Addr4, openTCP, "S"), 16, 0xff, 0xff), with(tcp(m.Addr6, 1, b.Addr6, openTCP, "S"), 18, 0xff, 0xff))
	},
	tests: []string{"tests/packet TestParserFailsClosed"},
}, {
	id: "B38", name: "rare_protocols",
	title: "unknown or rare protocol: SCTP, UDP-Lite, DCCP, GRE, ESP",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		payload := append(ports(openTCP, openTCP), make([]byte, 28)...)
		inner := tcp(m.Addr4, 1, b.Addr4, closedTCP, "S")[14:]
		for _, protocol := range []byte{0, 2, 4, 33, 41, 46, 47, 50, 51, 89, 94, 97, 103, 108, 112, 115, 132, 136, 137, 143, 200, 255} {
			a.drop("a protocol that no rule names", m, policy, v4(m.Addr4, b.Addr4, protocol, payload))
		}
		for _, protocol := range []byte{2, 4, 33, 41, 46, 47, 50, 59, 89, 108, 112, 132, 136, 137, 255} {
			a.drop("the same in IPv6", m, policy, v6(m.Addr6, b.Addr6, protocol, payload))
		}
		a.drop("a packet in a packet", m, policy, v4(m.Addr4, b.Addr4, 4, inner), v6(m.Addr6, b.Addr6, 4, inner))
		a.drop("the other family's ICMP", m, badHeader, v4(m.Addr4, b.Addr4, protoICMPv6, payload), v6(m.Addr6, b.Addr6, protoICMP, payload))
		a.pass("any protocol where a rule has all", a.alice, b,
			v4(a.alice.Addr4, b.Addr4, 47, payload), v4(a.alice.Addr4, b.Addr4, 136, payload), v6(a.alice.Addr6, b.Addr6, 50, payload))
	},
	tests: []string{"tests/node TestSCTP"},
}}

// offloaded sends frames of many segments, as the kernel makes them where they leave.
func (a *attempt) offloaded() {
	m, b := a.mallory, a.bob
	const tcp4 = 1 // VIRTIO_NET_HDR_GSO_TCPV4; the kernel refuses a kind that is not the frame's
	long := func(port uint16) []byte {
		return v4(m.Addr4, b.Addr4, protoTCP, append(segment(8, port, "S"), make([]byte, 1000)...))
	}
	send := func(what string, reason datapath.Reason, o offload, frame []byte) {
		a.Helper()
		a.quiet(a)
		a.pace(1)
		before := a.drops(a.T)
		if err := m.sendOffloaded(o, frame); err != nil {
			a.Errorf("%s: %v", what, err)
			return
		}
		a.settled(what, before, func(d map[datapath.Reason]uint64) bool { return d[reason] > 0 })
		a.nothingArrives(what)
		a.note("dropped: "+reason.String(), 1)
	}
	send("segments", policy, offload{1, tcp4, 54, 100, 34, 16}, long(closedTCP))
	send("a length of nothing", policy, offload{1, tcp4, 54, 100, 34, 16}, with(long(closedTCP), 16, 0, 0))
	send("a length of less", truncated, offload{1, tcp4, 54, 100, 34, 16}, with(long(openTCP), 16, 0, 30))
	a.quiet(a)
	if err := m.sendOffloaded(offload{1, tcp4, 54, 100, 34, 16}, long(openTCP)); err != nil || b.find(func(f []byte) bool { return isTo(f, b.Addr4, openTCP) }) == nil {
		a.Errorf("segments to an open port do not arrive: %v", err)
	}
	a.note("passed", 1)
}
