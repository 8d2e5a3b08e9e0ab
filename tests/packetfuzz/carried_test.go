package packetfuzz

import (
	"encoding/binary"
	"net/netip"
)

// ports of a talk: the asker's is one of a few, so that flows see many packets.
func (g *generator) ports(e ends) (from, to uint16) {
	asker := 1024 + uint16(g.IntN(12))
	if g.IntN(30) == 0 {
		asker = uint16(g.Uint32())
	}
	if e.reply {
		return e.port.number, asker
	}
	return asker, e.port.number
}

// transport appends what a whole packet carries. deep: it may quote or wrap another.
func (g *generator) transport(b []byte, e ends, from, to netip.Addr, deep bool) []byte {
	switch e.port.protocol {
	case tcp:
		return g.tcp(b, e)
	case udp:
		return g.udp(b, e)
	case sctp:
		source, dest := g.ports(e)
		b = g.be16(g.be16(b, source), dest)
		b = g.noise(b, 8)
		return append(b, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0, 10, 0, 10, 0, 0, 0, 1) // INIT
	case icmp4, icmp6:
		return g.icmp(b, e, from, to, deep)
	case gre:
		b = g.be16(b, 0)
		b = g.be16(b, pick(g, uint16(0x0800), 0x86dd, 0x6558))
		return g.wrapped(b, e, from, to, deep)
	case ipip, 41:
		return g.wrapped(b, e, from, to, deep)
	case esp:
		return g.noise(b, 8+4*g.IntN(8))
	}
	return g.noise(b, g.IntN(24))
}

func (g *generator) tcp(b []byte, e ends) []byte {
	source, dest := g.ports(e)
	b = g.be16(g.be16(b, source), dest)
	b = g.noise(b, 8)
	options := 4 * pick(g, 0, 0, 0, 2, 5, 10)
	b = g.byte(b, byte(5+options/4)<<4)
	// SYN, or in the middle of a flow, or its end; sometimes what no TCP sends.
	flags := pick(g, byte(0x02), 0x02, 0x02, 0x10, 0x18, 0x12, 0x11, 0x04, 0x14, 0xc2)
	if g.IntN(25) == 0 {
		flags = byte(g.Uint32())
	}
	b = g.byte(b, flags)
	b = append(b, 0x20, 0, 0, 0, 0, 0)
	for i := 0; i < options; i++ {
		b = append(b, 1)
	}
	return g.noise(b, pick(g, 0, 0, 5, 100))
}

func (g *generator) udp(b []byte, e ends) []byte {
	source, dest := g.ports(e)
	n := pick(g, 0, 4, 32, 200)
	b = g.be16(g.be16(b, source), dest)
	b = g.be16(b, uint16(8+n))
	return g.noise(append(b, 0, 0), n)
}

// icmp: an echo; with a port number, another message.
func (g *generator) icmp(b []byte, e ends, from, to netip.Addr, deep bool) []byte {
	v6 := e.port.protocol == icmp6
	if deep && g.IntN(3) == 0 {
		return g.icmpError(b, v6, from, to)
	}
	request, reply := byte(8), byte(0)
	other := []byte{13, 17, 5, 9, 10, 4, 3}
	if v6 {
		request, reply = 128, 129
		other = []byte{130, 131, 132, 133, 134, 135, 135, 136, 136, 137, 143, 151, 1}
	}
	typ := request
	if e.reply {
		typ = reply
	}
	if e.port.number != 0 {
		typ = pick(g, other...)
	}
	b = g.byte(b, typ)
	b = g.byte(b, 0)
	b = append(b, 0, 0)
	if v6 && (typ == 135 || typ == 136) {
		target := pick(g, gateways[1], from, from, to).As16()
		b = append(append(b, 0, 0, 0, 0), target[:]...)
		return append(b, 1, 1, 2, 0, 0, 0, 0, 1)
	}
	b = g.be16(b, uint16(g.IntN(8)))
	return g.noise(append(b, 0, 1), g.IntN(16))
}

// icmpError quotes a packet from the error's receiver, mostly to its sender.
func (g *generator) icmpError(b []byte, v6 bool, from, to netip.Addr) []byte {
	typ := pick(g, byte(3), 11, 12)
	if v6 {
		typ = pick(g, byte(1), 2, 3, 4)
	}
	b = g.byte(b, typ)
	b = append(b, byte(g.IntN(4)), 0, 0, 0, 0, 0, 0)
	quoted := ends{port: port{tcp, uint16(g.IntN(1024))}, from: placeOf(to)}
	for _, e := range g.shuffled() {
		if e.from == placeOf(to) && (e.to == placeOf(from) || g.IntN(3) == 0) && e.to != service {
			quoted = e
			break
		}
	}
	source, dest := to, from
	if quoted.to != nowhere && quoted.to != placeOf(from) {
		if a := addresses[quoted.to][family(v6)]; a.IsValid() {
			dest = a
		}
	}
	if g.IntN(20) == 0 {
		source, dest = dest, source
	}
	start := len(b)
	b = g.bare(b, quoted, source, dest, v6)
	if g.IntN(2) == 0 { // quoted in part
		if keep := start + header(v6) + pick(g, 8, 8, 8, 0, 4, 6, 7, 12); keep < len(b) {
			b = b[:keep]
		}
	}
	return b
}

func (g *generator) shuffled() []ends {
	all := allEnds()
	g.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func header(v6 bool) int {
	if v6 {
		return 40
	}
	return 20
}

// wrapped is an IP packet within another: what a tunnel carries.
func (g *generator) wrapped(b []byte, e ends, from, to netip.Addr, deep bool) []byte {
	if !deep {
		return g.noise(b, 20)
	}
	return g.bare(b, ends{port: port{tcp, 80}}, from, to, from.Is6())
}

// bare appends an IP packet without frills.
func (g *generator) bare(b []byte, e ends, from, to netip.Addr, v6 bool) []byte {
	if v6 != from.Is6() || v6 != to.Is6() {
		return g.noise(b, 28)
	}
	if e.port.protocol == icmp4 && v6 {
		e.port.protocol = icmp6
	}
	start := len(b)
	if v6 {
		b = g.be16(append(b, 0x60, 0, 0, 0), 0)
		b = append(g.byte(b, e.port.protocol), 64)
	} else {
		b = append(g.byte(b, 0x45), 0)
		b = g.be16(b, 0)
		b = append(b, 0, 7)
		b = append(g.be16(b, 0), 64)
		b = append(g.byte(b, e.port.protocol), 0, 0)
	}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	b = g.transport(b, e, from, to, false)
	if v6 {
		binary.BigEndian.PutUint16(b[start+4:], uint16(len(b)-start-40))
	} else {
		binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	}
	return b
}

// arp: a pod asks for its gateway or answers for itself, or says something else.
func (g *generator) arp(b []byte, w *way) []byte {
	b = g.be16(g.be16(b, 1), 0x0800)
	b = g.byte(g.byte(b, 6), 4)
	op := uint16(pick(g, 1, 1, 2, 2, 8))
	b = g.be16(b, op)
	own := chance(g, 85, w.sender, place(1+g.IntN(int(places)-1)))
	target := gateways[0]
	if g.IntN(4) == 0 {
		target = addresses[1+g.IntN(int(places)-1)][0]
	}
	b = append(b, 2, 0, 0, 0, 0, byte(own))
	b = append(b, addresses[own][0].AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, target.AsSlice()...)
}
