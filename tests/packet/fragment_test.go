package packet

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/testnode"
)

var (
	fragmentUnknown = dropped(bpf.WeirDropReasonDROP_FRAGMENT_UNKNOWN)
	fragmentShort   = dropped(bpf.WeirDropReasonDROP_FRAGMENT_SHORT)
)

// piece is a fragment of a frame: bytes at..at+size of its IP payload.
func piece(t testing.TB, f testnode.Frame, id uint32, at, size int, more bool) []byte {
	t.Helper()
	b := f.Bytes(t)
	header := 14 + 20
	if mustAddr(f.Src).Is6() {
		header = 14 + 40
	}
	payload := b[header+at:]
	if size < len(payload) {
		payload = payload[:size]
	}
	flags := uint16(0)
	if more {
		flags = 1
	}
	out := append([]byte(nil), b[:header]...)
	if header == 14+20 {
		binary.BigEndian.PutUint16(out[16:], uint16(20+len(payload)))
		binary.BigEndian.PutUint16(out[18:], uint16(id))
		binary.BigEndian.PutUint16(out[20:], uint16(at/8)|flags<<13)
		return append(out, payload...)
	}
	binary.BigEndian.PutUint16(out[18:], uint16(8+len(payload)))
	next := out[20]
	out[20] = 44
	out = append(out, next, 0, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(out[header+2:], uint16(at)|flags)
	binary.BigEndian.PutUint32(out[header+4:], id)
	return append(out, payload...)
}

// datagram is a frame that goes in three pieces.
type datagram struct{ first, middle, last []byte }

func pieces(t testing.TB, f testnode.Frame, id uint32) datagram {
	t.Helper()
	return datagram{piece(t, f, id, 0, 64, true), piece(t, f, id, 64, 64, true), piece(t, f, id, 128, 1000, false)}
}

// raw hands bytes to a pod's from_pod.
func (s *scene) raw(t *testing.T, what string, p testnode.Pod, frame []byte, want outcome) {
	t.Helper()
	s.expect(t, what, want, func() testnode.Result { return s.Run(t, "from_pod", frame, p.Ifindex, p.Ifindex, 0) })
}

// long is a frame of a flow from a to b with 200 bytes to say.
func (s *scene) long(protocol layers.IPProtocol, port uint16, v6 int) testnode.Frame {
	f := testnode.Frame{Src: s.a.Addr4, Dst: s.b.Addr4, Protocol: protocol, Sport: port, Dport: 80, Flags: "PA", ICMPID: port, ICMPType: 8, Payload: make([]byte, 200)}
	if v6 == 1 {
		f.Src, f.Dst = s.a.Addr6, s.b.Addr6
		if protocol == layers.IPProtocolICMPv4 {
			f.Protocol, f.ICMPType = layers.IPProtocolICMPv6, 128
		}
	}
	return f
}

var fragmentable = []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolICMPv4, layers.IPProtocolSCTP, layers.IPProtocolGRE}

// Pieces follow their first, both ways, whatever comes between; nothing else does (B1, B3, B6).
func TestFragments(t *testing.T) {
	s := newScene(t, fromAAny)
	s.Set(s.b, closed, fromAAny)
	s.Commit(t)
	for i, protocol := range fragmentable {
		for v6 := range 2 {
			what := fmt.Sprintf("%v, v6 %d: ", protocol, v6)
			f := s.long(protocol, uint16(1000+i), v6)
			back := answer(f, "PA")
			d, r, other := pieces(t, f, 7), pieces(t, back, 7), pieces(t, f, 8)
			s.raw(t, what+"last before first", s.a, d.last, fragmentUnknown)
			s.raw(t, what+"middle before first", s.a, d.middle, fragmentUnknown)
			s.raw(t, what+"first", s.a, d.first, redirected)
			s.raw(t, what+"another's piece between", s.a, other.middle, fragmentUnknown)
			s.raw(t, what+"last before middle", s.a, d.last, redirected)
			s.raw(t, what+"middle", s.a, d.middle, redirected)
			s.raw(t, what+"middle twice", s.a, d.middle, redirected)
			s.raw(t, what+"first twice", s.a, d.first, redirected)
			s.raw(t, what+"middle after that", s.a, d.middle, redirected)
			s.raw(t, what+"answer's last before its first", s.b, r.last, fragmentUnknown)
			s.raw(t, what+"answer's first", s.b, r.first, redirected)
			s.raw(t, what+"answer's last", s.b, r.last, redirected)
			s.raw(t, what+"a's pieces sent by c", s.c, d.last, dropped(bpf.WeirDropReasonDROP_SPOOFED_SOURCE))
			own := f
			own.Src = map[int]string{0: s.c.Addr4, 1: s.c.Addr6}[v6]
			s.raw(t, what+"c's piece with a's id", s.c, pieces(t, own, 7).last, fragmentUnknown)
			same := f
			same.Protocol = layers.IPProtocolIGMP // the id is another protocol's
			s.raw(t, what+"another protocol's piece with the id", s.a, pieces(t, same, 7).last, fragmentUnknown)
		}
	}
}

// A denied first leaves nothing to follow, also where an allowed one had its id; an allowed
// one with other ports takes the later pieces to its own flow (B2, B3).
func TestFirstFragmentsOfOneID(t *testing.T) {
	s := newScene(t, fromAUDP)
	for v6 := range 2 {
		what := fmt.Sprintf("v6 %d: ", v6)
		f := s.long(layers.IPProtocolUDP, 1000, v6)
		f.Dport = 53
		denied, again := f, f
		denied.Dport, again.Sport = 54, 1001
		d, no, other := pieces(t, f, 7), pieces(t, denied, 7), pieces(t, again, 7)
		s.raw(t, what+"denied", s.a, no.first, policyDrop)
		s.raw(t, what+"its last", s.a, no.last, fragmentUnknown)
		s.raw(t, what+"allowed", s.a, d.first, redirected)
		s.raw(t, what+"denied, over it", s.a, no.first, policyDrop)
		s.raw(t, what+"last of either", s.a, d.last, fragmentUnknown)
		s.raw(t, what+"allowed", s.a, d.first, redirected)
		s.raw(t, what+"allowed, over it", s.a, other.first, redirected)
		w := s.watch(t)
		was := w.flow(again).Side
		s.raw(t, what+"last of either", s.a, d.last, redirected)
		if is := w.flow(again).Side; is == was {
			t.Errorf("%sthe piece is not counted on the newest first's flow", what)
		}
	}
}

// What cuts a header short, or writes over one that was judged, is an attack (B2).
func TestShortAndOverlappingFragments(t *testing.T) {
	s := newScene(t, open)
	for v6 := range 2 {
		what := fmt.Sprintf("v6 %d: ", v6)
		for i, protocol := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolICMPv4, layers.IPProtocolSCTP} {
			whole := []int{20, 8, 8, 12}[i]
			f := s.long(protocol, 1000, v6)
			for size := 0; size < whole; size += 4 {
				s.raw(t, fmt.Sprint(what, protocol, " first of bytes ", size), s.a, piece(t, f, 9, 0, size, true), fragmentShort)
			}
			s.raw(t, fmt.Sprint(what, protocol, " first of its header alone"), s.a, piece(t, f, 9, 0, whole+(8-whole%8)%8, true), redirected)
		}
		f := s.long(layers.IPProtocolTCP, 1000, v6)
		s.raw(t, what+"first", s.a, piece(t, f, 10, 0, 64, true), redirected)
		s.raw(t, what+"over its flags", s.a, piece(t, f, 10, 8, 64, true), fragmentShort)
		s.raw(t, what+"behind them", s.a, piece(t, f, 10, 64, 64, true), redirected)
	}
	f := s.long(layers.IPProtocolUDP, 1000, 1)
	s.raw(t, "an atomic fragment", s.a, piece(t, f, 11, 0, 1000, false), redirected)
	f.Dport, f.Src = 81, s.c.Addr6
	s.Set(s.c, closed, open)
	s.Commit(t)
	s.raw(t, "an atomic fragment, forbidden", s.c, piece(t, f, 11, 0, 1000, false), policyDrop)
}

// Later pieces need the flow as well as their first: they fall with it, and live on with it.
func TestFragmentsNeedTheirFlow(t *testing.T) {
	w := newScene(t, open).watch(t)
	for v6 := range 2 {
		what := fmt.Sprintf("v6 %d: ", v6)
		f := w.long(layers.IPProtocolUDP, 1000, v6)
		d := pieces(t, f, 7)
		w.raw(t, what+"first", w.a, d.first, redirected)
		w.Set(w.c, open, []uint32{open, closed}[w.Kernel.Epoch()%2])
		w.Commit(t)
		w.raw(t, what+"last, after a change of others", w.a, d.last, redirected)
		w.Set(w.b, open, closed)
		w.Commit(t)
		w.raw(t, what+"last, forbidden", w.a, d.last, policyDrop)
		w.Set(w.b, open, open)
		w.Commit(t)
		w.raw(t, what+"last, allowed again", w.a, d.last, redirected)
		w.lapse(time.Hour, f)
		w.raw(t, what+"last, the flow is over", w.a, d.last, fragmentUnknown)
	}
	d := pieces(t, w.long(layers.IPProtocolUDP, 1000, 0), 7)
	w.raw(t, "first again", w.a, d.first, redirected)
	w.eventually("the first is too old", func() bool {
		before := w.Drops(t)[datapath.Reason(bpf.WeirDropReasonDROP_FRAGMENT_UNKNOWN)]
		w.Run(t, "from_pod", d.last, w.a.Ifindex, w.a.Ifindex, 0)
		return w.Drops(t)[datapath.Reason(bpf.WeirDropReasonDROP_FRAGMENT_UNKNOWN)] > before
	})
}

// From outside, at the pod's door and, for a flow that is there, at the uplink; and to the
// outside.
func TestFragmentsAcrossTheEdge(t *testing.T) {
	s := newScene(t, open)
	for v6 := range 2 {
		what := fmt.Sprintf("v6 %d: ", v6)
		f := s.long(layers.IPProtocolUDP, 1000, v6)
		f.Src = []string{outside, "2001:db8::9"}[v6]
		in, out := pieces(t, f, 7), pieces(t, answer(f, ""), 8)
		door := func(what string, frame []byte, want outcome) {
			t.Helper()
			s.expect(t, what, want, func() testnode.Result { return s.Run(t, "to_pod", frame, s.b.Ifindex, s.uplink, 0) })
		}
		uplink := func(what string, frame []byte, decided bool) {
			t.Helper()
			s.expect(t, what, next, func() testnode.Result {
				r := s.Run(t, "from_network", frame, s.uplink, s.uplink, 0)
				if got := r.Mark == mEI; got != decided {
					t.Errorf("%s: decided at the uplink %v, want %v", what, got, decided)
				}
				return r
			})
		}
		uplink(what+"a new flow's first, at the uplink", in.first, false)
		uplink(what+"its last, at the uplink", in.last, false)
		door(what+"last before first", in.last, fragmentUnknown)
		door(what+"first", in.first, next)
		door(what+"last", in.last, next)
		again := pieces(t, f, 17)
		uplink(what+"its next datagram's first, at the uplink", again.first, true)
		uplink(what+"last, at the uplink", again.last, false)
		door(what+"last, at the door", again.last, next)
		s.raw(t, what+"answer's last before its first", s.b, out.last, fragmentUnknown)
		s.raw(t, what+"answer's first", s.b, out.first, next)
		s.raw(t, what+"answer's last", s.b, out.last, next)
	}
}

// Review 23: a pod's fragments take no room from its neighbours', nor does the outside.
func TestFragmentsHaveTheirShare(t *testing.T) {
	s := newScene(t, open)
	f := s.long(layers.IPProtocolUDP, 1000, 0)
	d := pieces(t, f, 7)
	s.raw(t, "a's first", s.a, d.first, redirected)
	before := s.fragments(t, s.a)
	if len(before) != 1 {
		t.Fatalf("a has %d fragments noted, want 1", len(before))
	}
	c := f
	c.Src = s.c.Addr4
	for id := range uint32(20 * bpf.WeirLimitsFRAGMENTS) {
		s.Run(t, "from_pod", piece(t, c, id, 0, 64, true), s.c.Ifindex, s.c.Ifindex, 0)
	}
	if n := len(s.fragments(t, s.c)); n < int(bpf.WeirLimitsFRAGMENTS)/2 {
		t.Errorf("c has %d fragments noted after so many", n)
	}
	if after := s.fragments(t, s.a); !slices.Equal(after, before) { // however long it took
		t.Errorf("c's fragments changed what is noted of a's: %v, was %v", after, before)
	}
	s.raw(t, "a's first again", s.a, d.first, redirected)
	s.raw(t, "a's last beside c's", s.a, d.last, redirected)
}

// fragments are what is noted of a pod's, by the mixes that name the datagrams.
func (s *scene) fragments(t *testing.T, p testnode.Pod) (out []uint64) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(maps.Path(s.Config.BPFFSDir, bpf.WeirMapFragments), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	first := uint32(bpf.WeirLimitsFRAGMENTS_OUTSIDE) + p.Number*uint32(bpf.WeirLimitsFRAGMENTS)
	for place := first; place < first+uint32(bpf.WeirLimitsFRAGMENTS); place++ {
		var f bpf.WeirFragment
		if err := m.Lookup(place, &f); err != nil {
			t.Fatal(err)
		}
		if f.Check != 0 {
			out = append(out, f.Check)
		}
	}
	return out
}
