package bypass

import (
	"encoding/binary"
	"net/netip"

	"github.com/weirnet/weir/tests/testnode"
)

// Protocol numbers, by the names that frames are made with.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132

	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extAuth        = 51
	extNone        = 59
	extDestination = 60
)

// Ports of bob: mallory and eve may reach TCP 8080 and UDP 9000 there, and no other.
const (
	openTCP   = 8080
	openUDP   = 9000
	closedTCP = 22
	closedUDP = 53
)

// bytesOf serialises a frame; all that these tests make can be.
func bytesOf(f testnode.Frame) []byte {
	b, err := f.Serialize()
	if err != nil {
		panic(err)
	}
	return b
}

func tcp(src string, sport uint16, dst string, dport uint16, flags string) []byte {
	return bytesOf(testnode.TCP(src, sport, dst, dport, flags))
}

func udp(src string, sport uint16, dst string, dport uint16) []byte {
	return bytesOf(testnode.UDP(src, sport, dst, dport))
}

func echo(src, dst string, id uint16, reply bool) []byte {
	return bytesOf(testnode.Echo(src, dst, id, reply))
}

// v4 is an IPv4 frame with any payload.
func v4(src, dst string, protocol byte, payload []byte) []byte {
	return v4Options(src, dst, protocol, nil, payload)
}

// v4Options has options, a multiple of four bytes, in its header.
func v4Options(src, dst string, protocol byte, options, payload []byte) []byte {
	h := make([]byte, 20, 20+len(options)+len(payload))
	h[0] = 0x45 + byte(len(options)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(cap(h)))
	h[8], h[9] = 64, protocol
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(h[12:], s[:])
	copy(h[16:], d[:])
	return ethernet(0x0800, fixed(append(append(h, options...), payload...)))
}

// fixed sets an IPv4 header's checksum.
func fixed(p []byte) []byte {
	p[10], p[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < int(p[0]&0xf)*4; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	return p
}

// v6 is an IPv6 frame: next is the first header of payload.
func v6(src, dst string, next byte, payload []byte) []byte {
	h := make([]byte, 40, 40+len(payload))
	h[0], h[6], h[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(h[8:], s[:])
	copy(h[24:], d[:])
	return ethernet(0x86dd, append(h, payload...))
}

func ethernet(ethertype uint16, payload []byte) []byte {
	f := make([]byte, 14, 14+len(payload))
	copy(f[6:], []byte{2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(f[12:], ethertype)
	return append(f, payload...)
}

// segment is a TCP header, flags by testnode's letters.
func segment(sport, dport uint16, flags string) []byte {
	return tcp("10.0.0.1", sport, "10.0.0.2", dport, flags)[34:]
}

// datagram is a UDP header with a payload.
func datagram(sport, dport uint16, payload []byte) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h, sport)
	binary.BigEndian.PutUint16(h[2:], dport)
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	return append(h, payload...)
}

// ports are the four bytes that a reader of ports would take for them.
func ports(sport, dport uint16) []byte { return datagram(sport, dport, nil)[:4] }

// extension is one extension header of eight bytes (AH counts in other units) before rest.
func extension(next byte, rest []byte) []byte {
	return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, rest...)
}

// chain puts n headers of a kind before a header and its rest; it returns the first's number.
func chain(kind byte, n int, next byte, rest []byte) (byte, []byte) {
	for range n {
		next, rest = kind, extension(next, rest)
	}
	return next, rest
}

// piece4 makes a frame a fragment: offset in units of eight bytes.
func piece4(frame []byte, id, offset uint16, more bool) []byte {
	p := frame[14:]
	binary.BigEndian.PutUint16(p[4:], id)
	if more {
		offset |= 0x2000
	}
	binary.BigEndian.PutUint16(p[6:], offset)
	fixed(p)
	return frame
}

// piece6 is IPv6's fragment header before its part.
func piece6(next byte, id uint32, offset uint16, more bool, part []byte) []byte {
	h := make([]byte, 8, 8+len(part))
	h[0] = next
	offset <<= 3
	if more {
		offset |= 1
	}
	binary.BigEndian.PutUint16(h[2:], offset)
	binary.BigEndian.PutUint32(h[4:], id)
	return append(h, part...)
}

// with changes bytes of a frame.
func with(frame []byte, at int, bytes ...byte) []byte {
	copy(frame[at:], bytes)
	return frame
}
