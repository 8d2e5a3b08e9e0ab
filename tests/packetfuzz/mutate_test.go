package packetfuzz

import (
	"encoding/binary"
	"slices"
)

// mutate tells a lie in a field that was built, or does what a bad wire, or somebody bad,
// would do to bytes.
func (g *generator) mutate(b []byte) []byte {
	switch g.IntN(12) {
	case 0, 1, 2, 3, 4:
		g.lie(b)
	case 5: // cut short
		return b[:14+g.IntN(len(b)-14+1)]
	case 6: // and more
		return limit(g.noise(b, 1+g.IntN(64)))
	case 7:
		b[12+g.IntN(len(b)-12)] ^= 1 << g.IntN(8)
	case 8:
		b[12+g.IntN(len(b)-12)] = pick(g, byte(0), 1, 0x7f, 0x80, 0xff, 44, 6, 17, byte(g.Uint32()))
	case 9: // a piece is missing
		at := 12 + g.IntN(len(b)-12)
		n := min(1+g.IntN(16), len(b)-at)
		return whole(slices.Delete(b, at, at+n))
	case 10: // or there twice
		at := 12 + g.IntN(len(b)-12)
		n := min(1+g.IntN(16), len(b)-at)
		return limit(slices.Insert(b, at, slices.Clone(b[at:at+n])...))
	case 11: // the end of another
		at := min(12+g.IntN(len(b)-12), len(g.last))
		return whole(append(b[:at], g.last[at:]...))
	}
	return b
}

func limit(b []byte) []byte { return b[:min(len(b), largest)] }

// whole keeps a frame at the least there is: an Ethernet header.
func whole(b []byte) []byte {
	for len(b) < 14 {
		b = append(b, 0)
	}
	return limit(b)
}

// lie changes a field by a little, or to an end of its range, or to anything.
func (g *generator) lie(b []byte) {
	f := pick(g, g.fields...)
	if f.at+f.size > len(b) {
		return
	}
	if f.size == 1 {
		b[f.at] = g.other(uint16(b[f.at]))[1]
		return
	}
	v := g.other(binary.BigEndian.Uint16(b[f.at:]))
	copy(b[f.at:], v[:])
}

func (g *generator) other(v uint16) (out [2]byte) {
	switch g.IntN(6) {
	case 0:
		v += uint16(g.IntN(17)) - 8
	case 1:
		v = pick(g, uint16(0), 1, 0xffff, 0x8000, 0x2000, 0x00ff)
	case 2:
		v ^= 1 << g.IntN(16)
	case 3:
		v = uint16(g.IntN(128))
	case 4:
		v = uint16(g.Uint32())
	case 5:
		v -= uint16(pick(g, 8, 14, 20, 40))
	}
	binary.BigEndian.PutUint16(out[:], v)
	return out
}
