package packet

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/tests/testnode"
)

const (
	decided = uint16(bpf.WeirMarkBitsMARK_EGRESS | bpf.WeirMarkBitsMARK_INGRESS)
	shared  = uint16(bpf.WeirMarkBitsMARK_SHARED)
)

// share puts pods on links of another plugin's.
func (s *scene) share(t *testing.T, pods ...testnode.Pod) {
	t.Helper()
	for _, p := range pods {
		ep := s.State.Endpoints[p.Number]
		ep.Shared = true
		s.State.Endpoints[p.Number] = ep
	}
	s.Commit(t)
}

// neighbour is NDP about a target, from a pod's MAC.
func neighbour(t *testing.T, typ uint8, src, target string) []byte {
	b := set(icmp6("fd00::1", "ff02::1", typ).Bytes(t), 21, 255)
	from, about := netip.MustParseAddr(src).As16(), netip.MustParseAddr(target).As16()
	copy(b[22:], from[:])
	b = append(append(b[:55], 0, 0, 0, 0, 0, 0, 0), about[:]...)
	return set16(b, 18, 24)
}

func arpOp(from, whoHas string, op byte) []byte { return set(arp(from, whoHas), 21, op) }

// A pod on a shared link asks for whom it likes and speaks as itself alone; on its own link
// nothing of that is so.
func TestNeighboursOnASharedLink(t *testing.T) {
	const nameOfA, nameOfB = "fe80::ff:fe00:1", "fe80::ff:fe00:2" // EUI-64 of 02:00:00:00:00:01 and 02
	s := newScene(t, open)
	a4, b4, a6, b6 := s.a.Addr4, s.b.Addr4, s.a.Addr6, s.b.Addr6
	refused := dropped(bpf.WeirDropReasonDROP_NEIGHBOUR)
	cases := []struct {
		name       string
		frame      []byte
		shared, of outcome // on a shared link, on one of Weir's
	}{
		{"ARP for a pod", arp(a4, b4), next, refused},
		{"ARP for anybody", arp(a4, "192.0.2.77"), next, refused},
		{"ARP for Weir's gateway", arp(a4, "169.254.1.1"), next, next},
		{"answer", arpOp(a4, b4, 2), next, next},
		{"gratuitous", arp(a4, a4), next, refused},
		{"probe of its own address", arp("0.0.0.0", a4), next, refused},
		{"probe of another's", arp("0.0.0.0", b4), refused, refused},
		{"probe answered", arpOp("0.0.0.0", b4, 2), refused, refused},
		{"as another", arp(b4, a4), refused, refused},
		{"answer as another", arpOp(b4, a4, 2), refused, refused},
		{"reverse ARP", arpOp(a4, a4, 3), refused, refused},
		{"longer addresses", set(arp(a4, b4), 18, 8), refused, refused},
		{"solicitation", neighbour(t, 135, a6, b6), next, refused},
		{"by its name on the link", neighbour(t, 135, nameOfA, b6), next, refused},
		{"by another's name", neighbour(t, 135, nameOfB, b6), refused, refused},
		{"as another", neighbour(t, 135, b6, "fd00::3"), refused, refused},
		{"is my address free", neighbour(t, 135, "::", a6), next, refused},
		{"is my name free", neighbour(t, 135, "::", nameOfA), next, refused},
		{"is another's free", neighbour(t, 135, "::", b6), refused, refused},
		{"advertisement", neighbour(t, 136, a6, a6), next, next},
		{"of its name", neighbour(t, 136, a6, nameOfA), next, refused},
		{"by its name", neighbour(t, 136, nameOfA, a6), next, next},
		{"of another's", neighbour(t, 136, a6, b6), refused, refused},
		{"of another's name", neighbour(t, 136, a6, nameOfB), refused, refused},
		{"by nobody", neighbour(t, 136, "::", a6), refused, next},
		{"by a router", set(neighbour(t, 135, a6, b6), 21, 254), refused, refused},
		{"in a fragment", asFragment(neighbour(t, 135, a6, b6)), refused, refused},
	}
	for _, on := range []bool{false, true} {
		if on {
			s.share(t, s.a)
		}
		for _, c := range cases {
			want := c.of
			if on {
				want = c.shared
			}
			r := s.expect(t, c.name, want, func() testnode.Result { return s.Run(t, "from_pod", c.frame, s.a.Ifindex, s.a.Ifindex, 0) })
			if r.Verdict == testnode.Next && r.Mark != 0 {
				t.Errorf("%s: mark %#x", c.name, r.Mark)
			}
		}
	}
	// At a pod's door: neighbours' talk, which was theirs to say, where it shares its link.
	for _, frame := range [][]byte{arp(b4, a4), neighbour(t, 135, b6, a6)} {
		for _, from := range []int{s.b.Ifindex, s.uplink} {
			s.expect(t, "shared", next, func() testnode.Result { return s.Run(t, "to_pod", frame, s.a.Ifindex, from, 0) })
			s.expect(t, "not shared", refused, func() testnode.Result { return s.Run(t, "to_pod", frame, s.c.Ifindex, from, 0) })
		}
		s.expect(t, "the node's", next, func() testnode.Result { return s.Run(t, "to_pod", frame, s.c.Ifindex, 0, 0) })
	}
	unknown := set16(arp(a4, b4), 12, 0x88cc)
	s.expect(t, "unknown ethertype", dropped(bpf.WeirDropReasonDROP_ETHERTYPE), func() testnode.Result {
		return s.Run(t, "from_pod", unknown, s.a.Ifindex, s.a.Ifindex, 0)
	})
}

// On a shared link the sender says by MAC whose door a frame goes to: there it is held
// against the address that was judged, whatever is decided. NAT's other addresses on the way
// back are no matter.
func TestDoorsOfASharedLink(t *testing.T) {
	astray := dropped(bpf.WeirDropReasonDROP_DESTINATION)
	s := newScene(t, fromA80)
	s.share(t, s.a, s.b, s.c)
	f := tcp(s.a.Addr4, 1000, s.b.Addr4, 80, "S")
	for _, what := range []string{"first", "live"} {
		r := s.from(t, what, s.a, f, next)
		if r.Mark&^uint16(bpf.WeirMarkBitsMARK_ENDPOINT) != decided|shared || r.Mark&uint16(bpf.WeirMarkBitsMARK_ENDPOINT) != uint16(s.a.Number) {
			t.Errorf("%s: mark %#x", what, r.Mark)
		}
		s.to(t, what+", at b", s.b, f, s.a.Ifindex, r.Mark, next)
		s.to(t, what+", at c", s.c, f, s.a.Ifindex, r.Mark, astray)
		f = tcp(s.a.Addr4, 1000, s.b.Addr4, 80, "A")
	}
	back := answer(f, "A")
	r := s.from(t, "answer", s.b, back, next)
	back.Src, back.Sport = "10.96.0.1", 443 // un-NATed
	s.to(t, "answer by a Service's address", s.a, back, s.b.Ifindex, r.Mark, next)
	s.to(t, "the same at c", s.c, back, s.b.Ifindex, r.Mark, astray)
	// An answer to the outside, a stray and an error have no receiver here.
	out := testnode.UDP(s.a.Addr4, 1, outside, 53)
	r = s.from(t, "to the outside", s.a, out, next)
	if r.Mark != uint16(s.a.Number)|uint16(bpf.WeirMarkBitsMARK_EGRESS) {
		t.Errorf("to the outside: mark %#x", r.Mark)
	}
	s.to(t, "to the outside, at c", s.c, out, s.a.Ifindex, r.Mark, astray)
	stray := tcp(s.a.Addr4, 2000, s.b.Addr4, 80, "R")
	r = s.from(t, "stray", s.a, stray, next)
	s.to(t, "stray, at b", s.b, stray, s.a.Ifindex, r.Mark, next)
	s.to(t, "stray, at c", s.c, stray, s.a.Ifindex, r.Mark, astray)
	// Who is no pod of ours has no mark, and its own live flow to b.
	s.Set(s.b, open, open)
	s.Commit(t)
	in := tcp(outside, 5, s.b.Addr4, 80, "S")
	s.to(t, "from outside", s.b, in, s.uplink, 0, next)
	s.to(t, "from outside, live", s.b, in, s.uplink, 0, next)
	s.to(t, "from outside, live, at c", s.c, in, s.uplink, 0, astray)
}

// Weir's own links are as they were: a decided packet is not looked at again.
func TestOwnLinksHaveNoDoors(t *testing.T) {
	s := newScene(t, open)
	s.share(t, s.b)
	f := tcp(s.a.Addr4, 1000, s.b.Addr4, 80, "S")
	if r := s.from(t, "to a shared link, by the stack", s.a, f, next); r.Mark != uint16(s.a.Number)|decided {
		t.Errorf("mark %#x", r.Mark)
	}
	s.from(t, "between own links", s.a, tcp(s.a.Addr4, 1000, s.c.Addr4, 80, "S"), redirected)
}
