package flowlog

import (
	"net/netip"

	"github.com/weirnet/weir/datapath"
)

// CBOR's major types (RFC 8949).
const (
	cborUnsigned = 0 << 5
	cborNegative = 1 << 5
	cborBytes    = 2 << 5
	cborText     = 3 << 5
	cborArray    = 4 << 5
	cborMap      = 5 << 5
	cborTrue     = 0xf5
)

// appendHead adds the head of an item: its type and its value or length.
func appendHead(to []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(to, major|byte(n))
	case n < 1<<8:
		return append(to, major|24, byte(n))
	case n < 1<<16:
		return append(to, major|25, byte(n>>8), byte(n))
	case n < 1<<32:
		return append(to, major|26, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(to, major|27, byte(n>>56), byte(n>>48), byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

func appendSigned(to []byte, n int64) []byte {
	if n < 0 {
		return appendHead(to, cborNegative, uint64(-1-n))
	}
	return appendHead(to, cborUnsigned, uint64(n))
}

// fields is a map with numbers as keys on its way.
type fields struct {
	text []byte
	n    int
}

func (f *fields) key(k uint64) {
	f.text = appendHead(f.text, cborUnsigned, k)
	f.n++
}

// unsigned leaves out what is zero, as do the others.
func (f *fields) unsigned(k, n uint64) {
	if n != 0 {
		f.key(k)
		f.text = appendHead(f.text, cborUnsigned, n)
	}
}

func (f *fields) string(k uint64, s string) {
	if s != "" {
		f.key(k)
		f.text = append(appendHead(f.text, cborText, uint64(len(s))), s...)
	}
}

func (f *fields) bool(k uint64, b bool) {
	if b {
		f.key(k)
		f.text = append(f.text, cborTrue)
	}
}

// pair is an array of two, zero or not.
func (f *fields) pair(k, a, b uint64) {
	f.key(k)
	f.text = appendHead(appendHead(appendHead(f.text, cborArray, 2), cborUnsigned, a), cborUnsigned, b)
}

// places are never negative.
func (f *fields) places(k uint64, p *[2]int) {
	if p != nil {
		f.pair(k, uint64(p[0]), uint64(p[1]))
	}
}

func (f *fields) address(k uint64, a netip.AddrPort) {
	var room [64]byte
	b, _ := a.AppendBinary(room[:0]) // never fails
	f.key(k)
	f.text = append(appendHead(f.text, cborBytes, uint64(len(b))), b...)
}

// append adds f as its tags say, in the order of its numbers.
func (r *packedRecord) append(to []byte) []byte {
	start := len(to)
	f := fields{text: append(to, cborMap|24, 0)} // the number of fields comes last
	f.key(1)
	f.text = appendHead(f.text, cborUnsigned, r.Seq)
	f.key(2)
	f.text = appendSigned(f.text, r.At)
	f.places(3, &r.Parties)
	f.places(4, &r.Rules)
	f.places(5, r.Services)
	f.places(6, r.Processes)
	f.string(7, r.Ifname)
	f.unsigned(8, r.Suppressed)
	f.unsigned(9, r.Lost)
	f.string(10, r.Cause)
	f.unsigned(20, uint64(r.Kind))
	f.unsigned(21, r.Created)
	if r.Age != 0 {
		f.key(22)
		f.text = appendSigned(f.text, int64(r.Age))
	}
	f.unsigned(23, r.Epoch)
	f.address(24, r.Source)
	f.address(25, r.Destination)
	f.unsigned(26, uint64(r.Protocol))
	f.unsigned(27, uint64(r.Ifindex))
	f.pair(28, uint64(r.Endpoint[0]), uint64(r.Endpoint[1]))
	f.pair(29, uint64(r.Identity[0]), uint64(r.Identity[1]))
	f.pair(30, uint64(r.Rule[0]), uint64(r.Rule[1]))
	f.bool(31, r.Dropped)
	f.unsigned(32, uint64(r.Reason))
	f.unsigned(33, uint64(r.Direction))
	f.unsigned(34, uint64(r.Judged))
	f.unsigned(35, uint64(r.Path))
	f.unsigned(36, uint64(r.End))
	f.unsigned(37, uint64(r.ICMPType))
	f.unsigned(38, uint64(r.ICMPCode))
	f.bool(39, r.PickedUp)
	f.unsigned(40, uint64(r.TCPFlags))
	f.pair(41, r.Packets[0], r.Packets[1])
	f.pair(42, r.Bytes[0], r.Bytes[1])
	if r.TCP != nil {
		f.ends(43, r.TCP)
	}
	f.string(44, r.KernelReason)
	f.unsigned(45, uint64(r.Service))
	f.text[start+1] = byte(f.n)
	return f.text
}

// ends are structs without numbers: their fields' names are the keys.
func (f *fields) ends(k uint64, ends *[2]datapath.TCPEnd) {
	f.key(k)
	f.text = appendHead(f.text, cborArray, 2)
	for _, e := range ends {
		f.text = appendHead(f.text, cborMap, 3)
		f.text = append(append(appendHead(f.text, cborText, 5), "Known"...), cborTrue&^1)
		if e.Known {
			f.text[len(f.text)-1] = cborTrue
		}
		f.text = appendSigned(append(appendHead(f.text, cborText, 3), "RTT"...), int64(e.RTT))
		f.text = appendHead(append(appendHead(f.text, cborText, 11), "Retransmits"...), cborUnsigned, e.Retransmits)
	}
}
