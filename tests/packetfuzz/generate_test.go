package packetfuzz

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// largest frame that is made.
const largest = 1400

// field is a number in a frame that its reader believes, or should not.
type field struct{ at, size int }

// generator makes frames: whole ones of what policy allows, whole ones of anything, and
// either with lies, cuts and noise. The same seed makes the same frames.
type generator struct {
	*rand.Rand
	fields []field // of the frame under way
	last   []byte  // the frame before
	talks  map[*way][]ends
}

// ends are who a frame is from and for, and what it is. reply: the tuple is a talk's turned
// around.
type ends struct {
	from, to place
	port     port
	reply    bool
}

func newGenerator(seed int64) *generator {
	g := &generator{Rand: rand.New(rand.NewPCG(uint64(seed), 0)), talks: map[*way][]ends{}, last: make([]byte, 60)}
	all := allEnds()
	for i := range ways {
		w := &ways[i]
		for _, e := range all {
			if fits(w, e) {
				g.talks[w] = append(g.talks[w], e)
			}
		}
	}
	return g
}

// allEnds are the policy's talks, both ways around.
func allEnds() (all []ends) {
	add := func(t talk, p port) {
		all = append(all, ends{t.from, t.to, p, false}, ends{t.to, t.from, p, true})
	}
	for _, half := range [][]talk{egress, ingress} {
		for _, t := range half {
			for _, p := range t.ports {
				add(t, p)
			}
			if t.anything {
				for _, p := range []port{{icmp4, 0}, {icmp4, 0}, {tcp, 8080}, {udp, 9}, {gre, 0}, {esp, 0}, {ipip, 0}, {sctp, 5000}} {
					add(t, p)
				}
			}
		}
	}
	for _, p := range services {
		add(talk{from: podA, to: service}, p)
	}
	return all
}

func fits(w *way, e ends) bool {
	if e.from != w.sender && !(w.sender == host && e.from == outside) {
		return false
	}
	return w.hook != "to_pod" || e.to == w.at
}

// next makes a sample. clean: as built, without a lie.
func (g *generator) next() (c sample, clean bool) {
	w := &ways[g.IntN(len(ways))]
	g.fields = g.fields[:0]
	b := g.ethernet(w)
	c = sample{way: w, segments: 1}
	if g.IntN(20) == 0 {
		c.segments = 2 + g.IntN(40)
	}
	clean = g.IntN(3) == 0
	if !clean {
		for n := 1 + g.IntN(3); n > 0; n-- {
			b = g.mutate(b)
		}
	}
	g.last = append(g.last[:0], b...)
	c.frame = b
	return c, clean
}

func chance[T any](g *generator, percent int, a, b T) T {
	if g.IntN(100) < percent {
		return a
	}
	return b
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// ethernet is a frame's begin: mostly an IP packet, sometimes tagged or something else.
func (g *generator) ethernet(w *way) []byte {
	v6 := g.IntN(2) == 1
	ether := uint16(0x0800)
	if v6 {
		ether = 0x86dd
	}
	b := []byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 2, 0, 0, 0, 0, 1}
	kind := g.IntN(100)
	if kind < 3 { // 802.1Q, or QinQ
		for n := 1 + g.IntN(2); n > 0; n-- {
			b = g.be16(b, pick(g, uint16(0x8100), 0x88a8, 0x9100))
			b = g.be16(b, uint16(g.IntN(4096)))
		}
	}
	switch {
	case kind >= 3 && kind < 6:
		b = g.be16(b, 0x0806)
		return g.padding(g.arp(b, w))
	case kind == 6: // 802.3 with LLC and SNAP
		b = g.be16(b, uint16(40+g.IntN(40)))
		b = append(b, 0xaa, 0xaa, 3, 0, 0, 0)
	case kind == 7:
		ether = pick(g, uint16(0x88cc), 0x8847, 0x8863, 0x0600, 0x22f0)
	}
	b = g.be16(b, ether)
	return g.padding(g.ip(b, w, v6))
}

// padding is what a NIC adds to a short frame, and sometimes more.
func (g *generator) padding(b []byte) []byte {
	switch g.IntN(6) {
	case 0:
		for len(b) < 60 {
			b = append(b, 0)
		}
	case 1:
		b = g.noise(b, g.IntN(40))
	}
	return b
}

func (g *generator) noise(b []byte, n int) []byte {
	for ; n > 0; n-- {
		b = append(b, byte(g.Uint32()))
	}
	return b
}

// be16 appends a number and notes it as a field.
func (g *generator) be16(b []byte, v uint16) []byte {
	g.fields = append(g.fields, field{len(b), 2})
	return binary.BigEndian.AppendUint16(b, v)
}

func (g *generator) byte(b []byte, v byte) []byte {
	g.fields = append(g.fields, field{len(b), 1})
	return append(b, v)
}

// ends says who a packet is from and for.
func (g *generator) ends(w *way, v6 bool) (e ends, from, to netip.Addr) {
	family := 0
	if v6 {
		family = 1
	}
	e = ends{place(1 + g.IntN(int(places)-1)), place(1 + g.IntN(int(places)-1)), port{pick(g, uint8(tcp), udp, sctp, icmp4, icmp6, gre, esp, ipip, 41, 51, 59, 2, 0, 43, 44, 60), uint16(g.IntN(1024))}, g.IntN(2) == 0}
	if talks := g.talks[w]; len(talks) > 0 && g.IntN(100) < 80 {
		e = pick(g, talks...)
	}
	from, to = addresses[e.from][family], addresses[e.to][family]
	odd := [2][]string{
		{"127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.1.1", "8.8.8.8"},
		{"::1", "::", "ff02::1", "ff02::16", "::ffff:10.0.0.1", "::ffff:10.0.0.2", "fe80::1", "fe80::ecee:eeff:feee:eeee", "2001:db8:9::9"},
	}[family]
	if !from.IsValid() || g.IntN(40) == 0 {
		from = addr(pick(g, odd...))
	}
	if !to.IsValid() || g.IntN(40) == 0 {
		to = addr(pick(g, odd...))
	}
	if e.port.protocol == icmp4 && v6 {
		e.port.protocol = icmp6
	}
	return e, from, to
}

// ip appends an IP packet.
func (g *generator) ip(b []byte, w *way, v6 bool) []byte {
	e, from, to := g.ends(w, v6)
	if g.IntN(25) == 0 && (e.port.protocol == icmp4 || e.port.protocol == icmp6) {
		e.port.number = 1 // other ICMP than echoes
	}
	f := g.fragment(e.port.protocol)
	if v6 {
		return g.v6(b, e, from, to, f)
	}
	return g.v4(b, e, from, to, f)
}

// fragment is a packet's place in a larger one.
type fragmentOf struct {
	on     bool
	offset uint16 // in units of 8 bytes
	more   bool
	id     uint16
}

func (g *generator) fragment(protocol uint8) fragmentOf {
	f := fragmentOf{id: uint16(g.IntN(6))}
	if g.IntN(8) != 0 {
		return f
	}
	f.on = true
	switch g.IntN(4) {
	case 0: // first
		f.more = true
	case 1: // atomic
	default:
		f.offset, f.more = uint16(pick(g, 1, 2, 3, 5, 185, 8191)), g.IntN(2) == 0
	}
	return f
}

func (g *generator) v4(b []byte, e ends, from, to netip.Addr, f fragmentOf) []byte {
	start := len(b)
	options := 0
	if g.IntN(30) == 0 {
		options = 4 * (1 + g.IntN(10))
	}
	b = g.byte(b, 0x45+byte(options/4))
	b = append(b, 0)
	b = g.be16(b, 0)
	b = g.be16(b, f.id)
	bits := f.offset
	if f.more {
		bits |= 0x2000
	}
	if !f.on && g.IntN(2) == 0 {
		bits |= 0x4000
	}
	b = g.be16(b, bits)
	b = append(b, 64)
	b = g.byte(b, e.port.protocol)
	b = append(b, 0, 0)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	if options > 0 {
		b = g.options(b, options)
	}
	b = g.carried(b, e, from, to, f)
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

func (g *generator) options(b []byte, n int) []byte {
	end := len(b) + n
	switch g.IntN(3) {
	case 0: // record route
		b = append(b, 7, byte(n), 4)
	case 1: // no operation
		b = append(b, 1, 1)
	case 2: // loose source route
		b = append(b, 131, byte(n), 4)
	}
	return g.noise(b, end-len(b))
}

func (g *generator) v6(b []byte, e ends, from, to netip.Addr, f fragmentOf) []byte {
	start := len(b)
	b = append(b, 0x60, 0, 0, 0)
	b = g.be16(b, 0)
	next := len(b)
	b = g.byte(b, e.port.protocol)
	b = g.byte(b, pick(g, byte(64), 255))
	b16, t16 := from.As16(), to.As16()
	b = append(append(b, b16[:]...), t16[:]...)
	chain := 0
	if g.IntN(20) == 0 {
		chain = 1 + g.IntN(3)
	}
	before := chain
	if f.on {
		before = g.IntN(chain + 1)
	}
	for i := 0; i < chain || f.on && i == before; i++ {
		number := pick(g, byte(0), 43, 60, 51, 135, 139, 140, 253, 254)
		if f.on && i == before {
			number = 44
		}
		b[next] = number
		next = len(b)
		b = g.extension(b, number, e.port.protocol, f)
	}
	b = g.carried(b, e, from, to, f)
	binary.BigEndian.PutUint16(b[start+4:], uint16(len(b)-start-40))
	return b
}

// extension appends one header; its first byte is the next one's number.
func (g *generator) extension(b []byte, number, next uint8, f fragmentOf) []byte {
	b = g.byte(b, next)
	if number == 44 {
		bits := f.offset << 3
		if f.more {
			bits |= 1
		}
		b = append(b, 0)
		b = g.be16(b, bits)
		return append(b, 0, 0, 0, byte(f.id))
	}
	n := g.IntN(3)
	if number == 51 { // in units of 4, less 2
		b = g.byte(b, byte(n*2))
		return g.noise(b, n*8+6)
	}
	b = g.byte(b, byte(n))
	b = append(b, pick(g, byte(1), 5, 0)) // PadN, router alert, Pad1
	return g.noise(b, n*8+5)
}

// carried appends what the IP header carries; a later fragment's is noise.
func (g *generator) carried(b []byte, e ends, from, to netip.Addr, f fragmentOf) []byte {
	if f.on && f.offset > 0 {
		return g.noise(b, 8*(1+g.IntN(8)))
	}
	return g.transport(b, e, from, to, true)
}
