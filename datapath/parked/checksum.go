package parked

import "encoding/binary"

// complete gives a frame the checksum that its sender left to a device: what stands in its
// place until then is the sum of the pseudo header. Any other is left as it is, wrong ones too.
func complete(frame []byte) {
	const (
		ethernet, ipv4, ipv6 = 14, 0x0800, 0x86dd
		tcp, udp             = 6, 17
	)
	if len(frame) < ethernet+20 {
		return
	}
	var addresses, l4 []byte
	var protocol byte
	ip := frame[ethernet:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case ipv4:
		header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if header < 20 || total < header || total > len(ip) {
			return
		}
		addresses, l4, protocol = ip[12:20], ip[header:total], ip[9]
	case ipv6:
		if len(ip) < 40 {
			return
		}
		payload := int(binary.BigEndian.Uint16(ip[4:]))
		if 40+payload > len(ip) {
			return
		}
		addresses, l4, protocol = ip[8:40], ip[40:40+payload], ip[6]
	default:
		return
	}
	at := map[byte]int{tcp: 16, udp: 6}[protocol]
	if at == 0 || len(l4) < at+2 {
		return
	}
	pseudo := add(uint32(protocol)+uint32(len(l4)), addresses)
	if binary.BigEndian.Uint16(l4[at:]) != pseudo {
		return
	}
	sum := ^add(0, l4) // with the pseudo header's
	if sum == 0 && protocol == udp {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(l4[at:], sum)
}

// add is the ones' complement sum (RFC 1071).
func add(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
