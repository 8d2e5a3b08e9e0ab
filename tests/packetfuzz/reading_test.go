package packetfuzz

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// The reference: what a frame is according to gopacket's layers, and to the RFCs where
// gopacket is lenient or in doubt. It reads on past what Weir refuses, to say what it was.
//
// gopacket takes a total length of 0 for segmentation offload, a UDP length of 0 for a
// jumbogram, cuts payloads at lying lengths and says only that something was truncated,
// and does not look at IPv6's version. It refuses an IPv6 payload length of 0 without a
// jumbo option, which RFC 8200 does not. The checks beside each layer are explicit about it.

type kind uint8

const (
	nothing       kind = iota // no IP packet, no ARP
	flowPacket                // has a tuple of addresses, protocol and ports
	laterFragment             // has addresses, protocol and identification
	icmpError
	arpMessage
	neighbour // NDP solicitation or advertisement
	control   // other ICMP: routers', groups', obsolete
)

func (k kind) String() string {
	return [...]string{"nothing", "packet", "later fragment", "ICMP error", "ARP", "NDP", "control"}[k]
}

// tuple is what a packet is to policy. Ports of an ICMP echo: its id at the asker's end.
type tuple struct {
	protocol         uint8
	source, dest     netip.Addr
	sourcePort, port uint16
}

func (t tuple) reversed() tuple {
	return tuple{t.protocol, t.dest, t.source, t.port, t.sourcePort}
}

func (t tuple) String() string {
	return fmt.Sprintf("protocol %d %s -> %s", t.protocol, netip.AddrPortFrom(t.source, t.sourcePort), netip.AddrPortFrom(t.dest, t.port))
}

type reading struct {
	kind    kind
	fault   string // "" = a whole packet; else what contradicts, or is missing
	body    string // "" or a fault in what ARP, NDP or an ICMP error says; its packet is whole
	refused string // "" or what Weir says it never lets through, whole or not
	tuple
	flags    flags
	code     [2]uint8   // ICMP type and code
	target   netip.Addr // ARP, NDP: who is meant
	first    bool       // fragment with more to follow, or atomic
	offset   int        // of a later fragment, bytes
	id       uint32     // of a fragment
	length   int        // of the IP packet
	headers  int        // of the IP packet up to the payload: each segment has them
	hopLimit uint8
	inner    *reading // packet that an ICMP error speaks of
}

func (r *reading) String() string {
	s := fmt.Sprintf("%s %s", r.kind, r.tuple)
	if r.kind == icmpError && r.inner != nil {
		s += " about " + r.inner.String()
	}
	for what, text := range map[string]string{"fault: ": r.fault, "body: ": r.body, "refused: ": r.refused} {
		if text != "" {
			s += ", " + what + text
		}
	}
	return s
}

// flags of TCP that decide something.
type flags struct{ syn, ack, fin, rst bool }

// isRequest reports whether an ICMP packet asks for an echo.
func (r *reading) isRequest() bool {
	return r.protocol == icmp4 && r.code[0] == layers.ICMPv4TypeEchoRequest || r.protocol == icmp6 && r.code[0] == layers.ICMPv6TypeEchoRequest
}

// wrong notes the first fault.
func (r *reading) wrong(format string, args ...any) {
	if r.fault == "" {
		r.fault = fmt.Sprintf(format, args...)
	}
}

// malformed notes the first fault of a message.
func (r *reading) malformed(format string, args ...any) {
	if r.body == "" {
		r.body = fmt.Sprintf(format, args...)
	}
}

// reader holds the layers, for one goroutine.
type reader struct {
	eth       layers.Ethernet
	arp       layers.ARP
	ip4       layers.IPv4
	ip6       layers.IPv6
	fragment  layers.IPv6Fragment
	tcp       layers.TCP
	udp       layers.UDP
	sctp      layers.SCTP
	icmp4     layers.ICMPv4
	icmp6     layers.ICMPv6
	echo      layers.ICMPv6Echo
	solicit   layers.ICMPv6NeighborSolicitation
	advertise layers.ICMPv6NeighborAdvertisement
	quoted    *reader // for packets that ICMP errors speak of
	truncated bool
	segments  int
}

// SetTruncated is gopacket's note that a length runs past the data.
func (p *reader) SetTruncated() { p.truncated = true }

// layer is one of gopacket's.
type layer interface {
	gopacket.DecodingLayer
	gopacket.Layer
}

// decode fills a layer; what it says of truncation and error is a fault.
func (p *reader) decode(r *reading, l layer, data []byte) bool {
	p.truncated = false
	if err := l.DecodeFromBytes(data, p); err != nil {
		r.wrong("%v: %v", l.LayerType(), err)
		return false
	}
	if p.truncated {
		r.wrong("%v: a length runs past the data", l.LayerType())
	}
	return true
}

// read says what a frame is; segments > 1: one that segmentation offload made.
func (p *reader) read(frame []byte, segments int) *reading {
	r := &reading{}
	p.segments = segments
	if !p.decode(r, &p.eth, frame) {
		return r
	}
	switch p.eth.EthernetType {
	case layers.EthernetTypeIPv4:
		p.v4(r, p.eth.Payload)
	case layers.EthernetTypeIPv6:
		p.v6(r, p.eth.Payload)
	case layers.EthernetTypeARP:
		p.arpMessage(r, p.eth.Payload)
	default:
		r.wrong("ethertype %v", p.eth.EthernetType)
	}
	return r
}

// arpMessage: RFC 826 for Ethernet and IPv4, lengths as they have to be.
func (p *reader) arpMessage(r *reading, data []byte) {
	a := &p.arp
	r.kind = arpMessage
	if err := a.DecodeFromBytes(data, p); err != nil {
		r.malformed("%v", err)
		return
	}
	if a.AddrType != layers.LinkTypeEthernet || a.Protocol != layers.EthernetTypeIPv4 || a.HwAddressSize != 6 || a.ProtAddressSize != 4 {
		r.malformed("ARP of hardware %d size %d, protocol %v size %d", a.AddrType, a.HwAddressSize, a.Protocol, a.ProtAddressSize)
		return
	}
	r.source, _ = netip.AddrFromSlice(a.SourceProtAddress)
	r.target, _ = netip.AddrFromSlice(a.DstProtAddress)
	r.code[0] = uint8(min(a.Operation, 255))
}

// v4: RFC 791. The total length holds the header and does not pass the frame's end.
func (p *reader) v4(r *reading, data []byte) {
	available := len(data)
	ok := p.decode(r, &p.ip4, data)
	if len(data) < 20 {
		return
	}
	ip := &p.ip4
	if !ok {
		return
	}
	if ip.Version != 4 {
		r.wrong("IP version %d in an IPv4 frame", ip.Version)
	}
	r.length = int(binary.BigEndian.Uint16(ip.Contents[2:4]))
	if r.length == 0 && p.segments > 1 {
		r.length = available // larger than 65535: BIG TCP
	} else if r.length == 0 {
		r.wrong("total length 0")
	}
	if len(ip.Contents) != 20 {
		r.refused = "IPv4 options"
	}
	p.addresses(r, ip.SrcIP, ip.DstIP)
	r.protocol, r.hopLimit = uint8(ip.Protocol), ip.TTL
	r.id, r.offset = uint32(ip.Id), int(ip.FragOffset)*8
	r.first = r.offset == 0 && ip.Flags&layers.IPv4MoreFragments != 0
	p.payload(r, ip.Payload, len(ip.Contents))
}

// v6: RFC 8200, and 7112: a first fragment holds all headers.
func (p *reader) v6(r *reading, data []byte) {
	if len(data) < 40 {
		r.wrong("IPv6: %d bytes of header", len(data))
		return
	}
	length := int(binary.BigEndian.Uint16(data[4:6]))
	empty := length == 0 && p.segments <= 1
	if !empty || data[6] == 0 {
		if !p.decode(r, &p.ip6, data) {
			if length != 0 || p.segments <= 1 {
				return
			}
			r.fault = "" // its length of 0 means the frame's, in what offload made
		}
	} else {
		_ = p.ip6.DecodeFromBytes(data, p) // its complaint is of the length of 0: no payload, which may be
	}
	ip := &p.ip6
	if ip.Version != 6 {
		r.wrong("IP version %d in an IPv6 frame", ip.Version)
	}
	r.length = 40 + length
	payload := ip.Payload
	switch {
	case empty:
		payload = nil
	case length == 0:
		r.length, payload = len(data), data[40:]
	}
	p.addresses(r, ip.SrcIP, ip.DstIP)
	r.protocol, r.hopLimit = uint8(ip.NextHeader), ip.HopLimit
	p.chain(r, payload)
}

// extension headers by their numbers, RFC 7045; ESP hides what follows: it is a protocol.
var extensions = map[uint8]string{
	0: "hop-by-hop options", 43: "routing header", 51: "authentication header", 60: "destination options",
	135: "mobility header", 139: "host identity", 140: "shim6", 253: "experimental", 254: "experimental",
}

// chain follows IPv6's next headers. Fragment is the one that Weir lets through, and only as
// the one header there is.
func (p *reader) chain(r *reading, data []byte) {
	headers := 40
	if name, ok := extensions[r.protocol]; ok {
		r.refused = name
		return
	}
	if r.protocol == uint8(layers.IPProtocolIPv6Fragment) {
		f := &p.fragment
		if !p.decode(r, f, data) {
			return
		}
		r.protocol, r.id = uint8(f.NextHeader), f.Identification
		r.offset = int(f.FragmentOffset) * 8
		r.first = r.offset == 0
		data, headers = f.Payload, headers+8
		if name, ok := extensions[r.protocol]; ok || r.protocol == uint8(layers.IPProtocolIPv6Fragment) {
			r.refused = "fragment header, then " + name
			return
		}
	}
	p.payload(r, data, headers)
}

func (p *reader) addresses(r *reading, source, dest []byte) {
	r.source, _ = netip.AddrFromSlice(source)
	r.dest, _ = netip.AddrFromSlice(dest)
}
