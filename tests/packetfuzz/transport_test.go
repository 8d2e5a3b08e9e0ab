package packetfuzz

import (
	"encoding/binary"
	"net/netip"

	"github.com/gopacket/gopacket/layers"
)

// payload is what the packet carries, cut at its stated length.
func (p *reader) payload(r *reading, data []byte, headers int) {
	r.kind, r.headers = flowPacket, headers
	if r.offset != 0 {
		r.kind = laterFragment
		if r.protocol == tcp && r.offset < 16 {
			r.wrong("fragment at %d rewrites a TCP header that was judged (RFC 3128)", r.offset)
		}
		return
	}
	switch r.protocol {
	case tcp:
		p.segment(r, data)
	case udp:
		p.datagram(r, data)
	case sctp:
		if p.decode(r, &p.sctp, data) {
			r.sourcePort, r.port = uint16(p.sctp.SrcPort), uint16(p.sctp.DstPort)
		}
	case icmp4, icmp6:
		if (r.protocol == icmp4) != r.source.Is4() {
			r.wrong("ICMP of the other family")
		} else if r.protocol == icmp4 {
			p.icmpV4(r, data)
		} else {
			p.icmpV6(r, data)
		}
	}
}

// segment: RFC 9293. What is wrong in options alone changes nothing of what the segment is.
// The combinations of flags that no TCP sends are Weir's own promise.
func (p *reader) segment(r *reading, data []byte) {
	if len(data) < 20 {
		r.wrong("TCP: %d bytes of header", len(data))
		return
	}
	t := &p.tcp
	p.truncated = false
	_ = t.DecodeFromBytes(data, p)
	if t.DataOffset < 5 || int(t.DataOffset)*4 > len(data) {
		r.wrong("TCP: data offset %d of %d bytes", t.DataOffset, len(data))
	}
	r.sourcePort, r.port = uint16(t.SrcPort), uint16(t.DstPort)
	r.flags = flags{t.SYN, t.ACK, t.FIN, t.RST}
	r.headers += int(t.DataOffset) * 4
	if t.SYN && (t.FIN || t.RST) || t.FIN && !t.ACK && !t.RST || !t.SYN && !t.ACK && !t.RST {
		r.refused = "TCP flags"
	}
}

// datagram: RFC 768. Its length holds the header, and a datagram that is no fragment has as
// much. A length of 0 is a jumbogram's (RFC 2675), which no IP packet here can be. Behind
// segmentation offload the length is not of the frame.
func (p *reader) datagram(r *reading, data []byte) {
	if len(data) < 8 {
		r.wrong("UDP: %d bytes of header", len(data))
		return
	}
	p.truncated = false
	_ = p.udp.DecodeFromBytes(data, p)
	length := int(p.udp.Length)
	if p.segments <= 1 && (length < 8 || length > len(data) && !r.first) {
		r.wrong("UDP: length %d of %d bytes", length, len(data))
	}
	r.sourcePort, r.port = uint16(p.udp.SrcPort), uint16(p.udp.DstPort)
	r.headers += 8
}

// icmpV4: RFC 792.
func (p *reader) icmpV4(r *reading, data []byte) {
	if !p.decode(r, &p.icmp4, data) {
		return
	}
	typ := p.icmp4.TypeCode.Type()
	r.code = [2]uint8{typ, p.icmp4.TypeCode.Code()}
	switch typ {
	case layers.ICMPv4TypeEchoRequest:
		r.sourcePort = p.icmp4.Id
	case layers.ICMPv4TypeEchoReply:
		r.port = p.icmp4.Id
	case layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4TypeTimeExceeded, layers.ICMPv4TypeParameterProblem:
		p.error(r, p.icmp4.Payload)
	default:
		r.kind = control
	}
}

// icmpV6: RFC 4443 for echoes and errors, 4861 and 6980 for NDP.
func (p *reader) icmpV6(r *reading, data []byte) {
	if len(data) < 8 {
		r.wrong("ICMPv6: %d bytes of header", len(data))
		return
	}
	p.decode(r, &p.icmp6, data)
	typ := p.icmp6.TypeCode.Type()
	r.code = [2]uint8{typ, p.icmp6.TypeCode.Code()}
	switch typ {
	case layers.ICMPv6TypeEchoRequest:
		p.decode(r, &p.echo, p.icmp6.Payload)
		r.sourcePort = p.echo.Identifier
	case layers.ICMPv6TypeEchoReply:
		p.decode(r, &p.echo, p.icmp6.Payload)
		r.port = p.echo.Identifier
	case layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6TypePacketTooBig, layers.ICMPv6TypeTimeExceeded, layers.ICMPv6TypeParameterProblem:
		p.error(r, data[8:])
	case layers.ICMPv6TypeNeighborSolicitation, layers.ICMPv6TypeNeighborAdvertisement:
		p.neighbour(r, p.icmp6.Payload)
	default:
		r.kind = control
	}
}

// neighbour: a solicitation or advertisement holds its target, is no fragment, has code 0,
// and came by no router. Options that do not parse are the receiver's to ignore or refuse.
func (p *reader) neighbour(r *reading, data []byte) {
	r.kind = neighbour
	if len(data) < 20 {
		r.malformed("NDP: %d bytes", len(data))
		return
	}
	target := &p.solicit.TargetAddress
	if r.code[0] == layers.ICMPv6TypeNeighborSolicitation {
		_ = p.solicit.DecodeFromBytes(data, p)
	} else {
		_ = p.advertise.DecodeFromBytes(data, p)
		target = &p.advertise.TargetAddress
	}
	r.target, _ = netip.AddrFromSlice(*target)
	switch {
	case r.first:
		r.malformed("NDP in a fragment (RFC 6980)")
	case r.hopLimit != 255:
		r.malformed("NDP with hop limit %d (RFC 4861 7.1)", r.hopLimit)
	case r.code[1] != 0:
		r.malformed("NDP with code %d (RFC 4861 7.1)", r.code[1])
	}
}

// error: RFC 792 and 4443. The packet that it speaks of is quoted in part: its header, and at
// least 8 bytes of what follows where that has ports or an echo's id. Its own length says
// nothing of the quote. There are no errors about other ICMP than echoes (RFC 1122 3.2.2).
func (p *reader) error(r *reading, data []byte) {
	r.kind = icmpError
	q := &reading{}
	r.inner = q
	var room int
	if r.source.Is4() {
		room = p.quoteV4(q, data)
	} else {
		room = p.quoteV6(q, data)
	}
	if q.fault == "" && q.offset == 0 {
		quotePorts(q, data[len(data)-room:])
	}
	if q.fault != "" {
		r.malformed("quoted packet: %s", q.fault)
	}
}

func (p *reader) quoteV4(q *reading, data []byte) (room int) {
	if len(data) < 20 {
		q.wrong("IPv4: %d bytes of header", len(data))
		return 0
	}
	whole := make([]byte, len(data))
	copy(whole, data)
	binary.BigEndian.PutUint16(whole[2:], uint16(len(data)))
	if !p.inner().decode(q, &p.quoted.ip4, whole) {
		return 0
	}
	ip := &p.quoted.ip4
	if ip.Version != 4 {
		q.wrong("IP version %d", ip.Version)
	}
	if ip.FragOffset != 0 {
		q.offset = int(ip.FragOffset) * 8
		q.wrong("a later fragment")
	}
	p.addresses(q, ip.SrcIP, ip.DstIP)
	q.protocol = uint8(ip.Protocol)
	return len(ip.Payload)
}

func (p *reader) quoteV6(q *reading, data []byte) (room int) {
	if len(data) < 40 {
		q.wrong("IPv6: %d bytes of header", len(data))
		return 0
	}
	ip := &p.inner().ip6
	_ = ip.DecodeFromBytes(data, p.quoted)
	if ip.Version != 6 {
		q.wrong("IP version %d", ip.Version)
	}
	p.addresses(q, ip.SrcIP, ip.DstIP)
	q.protocol = uint8(ip.NextHeader)
	return len(data) - 40
}

func (p *reader) inner() *reader {
	if p.quoted == nil {
		p.quoted = &reader{}
	}
	return p.quoted
}

// quotePorts reads the first 8 bytes that a transport quotes.
func quotePorts(q *reading, data []byte) {
	q.kind = flowPacket
	switch q.protocol {
	case tcp, udp, sctp, icmp4, icmp6:
		if len(data) < 8 {
			q.wrong("%d bytes of its transport", len(data))
			return
		}
	default:
		return
	}
	first, second := binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])
	if q.protocol != icmp4 && q.protocol != icmp6 {
		q.sourcePort, q.port = first, second
		return
	}
	id := binary.BigEndian.Uint16(data[4:])
	q.code = [2]uint8{data[0], data[1]}
	switch {
	case q.isRequest():
		q.sourcePort = id
	case q.protocol == icmp4 && data[0] == 0, q.protocol == icmp6 && data[0] == 129:
		q.port = id
	default:
		q.wrong("ICMP type %d", data[0])
	}
}
