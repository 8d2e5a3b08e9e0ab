package packet

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

// Whatever the parser does not understand whole is dropped on a pod's interface, with its
// reason. Each case changes a frame that is allowed.
func TestParserFailsClosed(t *testing.T) {
	s := newScene(t, open)
	a4, b4, a6, b6 := s.a.Addr4, s.b.Addr4, s.a.Addr6, s.b.Addr6
	v4, v6 := tcp(a4, 1, b4, 80, "S"), tcp(a6, 1, b6, 80, "S")
	frag := func(f testnode.Frame, off uint16, more bool) testnode.Frame {
		f.FragOff, f.MoreFrags, f.ID = off, more, 77
		return f
	}
	ether := func(f testnode.Frame, e layers.EthernetType) testnode.Frame { f.EtherType = e; return f }
	options := v4
	options.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}}
	timestamp := testnode.Echo(a4, b4, 1, false)
	timestamp.ICMPType = 13
	for _, c := range []struct {
		name   string
		frame  []byte
		reason bpf.WeirDropReason
	}{
		{"unknown ethertype", ether(v4, 0x88cc).Bytes(t), bpf.WeirDropReasonDROP_ETHERTYPE},
		{"VLAN tag", ether(v4, layers.EthernetTypeDot1Q).Bytes(t), bpf.WeirDropReasonDROP_VLAN},
		{"QinQ tag", ether(v4, layers.EthernetTypeQinQ).Bytes(t), bpf.WeirDropReasonDROP_VLAN},
		{"IPv4 in an IPv6 frame", ether(v4, layers.EthernetTypeIPv6).Bytes(t), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"options (B4)", options.Bytes(t), bpf.WeirDropReasonDROP_IP_OPTIONS},
		{"header shorter than it says", set(v4.Bytes(t), 14, 0x44), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"version 5", set(v4.Bytes(t), 14, 0x55), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"total length past the frame", set16(v4.Bytes(t), 16, 4000), bpf.WeirDropReasonDROP_TRUNCATED},
		{"total length inside the header", set16(v4.Bytes(t), 16, 12), bpf.WeirDropReasonDROP_TRUNCATED},
		{"total length inside TCP (B2)", set16(v4.Bytes(t), 16, 28), bpf.WeirDropReasonDROP_TRUNCATED},
		{"TCP header longer than the packet", set(v4.Bytes(t), 46, 0xf0), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"TCP header too short", set(v4.Bytes(t), 46, 0x40), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"UDP length below its header", set16(testnode.UDP(a4, 1, b4, 2).Bytes(t), 38, 4), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"no flags (B15)", tcp(a4, 1, b4, 80, "").Bytes(t), bpf.WeirDropReasonDROP_TCP_FLAGS},
		{"Xmas", tcp(a4, 1, b4, 80, "FPU").Bytes(t), bpf.WeirDropReasonDROP_TCP_FLAGS},
		{"FIN alone", tcp(a4, 1, b4, 80, "F").Bytes(t), bpf.WeirDropReasonDROP_TCP_FLAGS},
		{"SYN and FIN", tcp(a4, 1, b4, 80, "SF").Bytes(t), bpf.WeirDropReasonDROP_TCP_FLAGS},
		{"SYN and RST", tcp(a4, 1, b4, 80, "SR").Bytes(t), bpf.WeirDropReasonDROP_TCP_FLAGS},
		{"short first fragment", set16(frag(v4, 0, true).Bytes(t), 16, 36), bpf.WeirDropReasonDROP_FRAGMENT_SHORT},
		{"fragment at offset 1", frag(v4, 1, false).Bytes(t), bpf.WeirDropReasonDROP_FRAGMENT_SHORT},
		{"later fragment without its first (B1, B3)", frag(v4, 100, false).Bytes(t), bpf.WeirDropReasonDROP_FRAGMENT_UNKNOWN},
		{"hop-by-hop (B5)", set(v6.Bytes(t), 20, 0), bpf.WeirDropReasonDROP_EXTENSION_HEADER},
		{"MLD report: hop-by-hop to a group", rawV6{a6, "ff02::16", 0, 0}.Bytes(t), bpf.WeirDropReasonDROP_MULTICAST},
		{"routing header", set(v6.Bytes(t), 20, 43), bpf.WeirDropReasonDROP_EXTENSION_HEADER},
		{"AH", set(v6.Bytes(t), 20, 51), bpf.WeirDropReasonDROP_EXTENSION_HEADER},
		{"destination options", set(v6.Bytes(t), 20, 60), bpf.WeirDropReasonDROP_EXTENSION_HEADER},
		{"IPv6 payload past the frame", set16(v6.Bytes(t), 18, 4000), bpf.WeirDropReasonDROP_TRUNCATED},
		{"ICMPv6 in IPv4", set(v4.Bytes(t), 23, 58), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"ICMP timestamp", timestamp.Bytes(t), bpf.WeirDropReasonDROP_ICMP_TYPE},
		{"a frame that ends in its ports", v4.Bytes(t)[:38], bpf.WeirDropReasonDROP_TRUNCATED},
		{"router advertisement (B11)", icmp6(a6, "ff02::1", 134).Bytes(t), bpf.WeirDropReasonDROP_MULTICAST},
		{"redirect", icmp6(a6, b6, 137).Bytes(t), bpf.WeirDropReasonDROP_MULTICAST},
		{"v4-mapped source", tcp6("::ffff:10.0.0.1", b6).Bytes(t), bpf.WeirDropReasonDROP_SPOOFED_SOURCE},
		{"v4-mapped destination (B28)", tcp6(a6, "::ffff:10.0.0.2").Bytes(t), bpf.WeirDropReasonDROP_BAD_HEADER},
		{"to the node's loopback (B35)", tcp(a4, 1, "127.0.0.1", 80, "S").Bytes(t), bpf.WeirDropReasonDROP_DESTINATION},
		{"to 0.0.0.0", tcp(a4, 1, "0.0.0.0", 80, "S").Bytes(t), bpf.WeirDropReasonDROP_DESTINATION},
		{"to everybody (B11)", testnode.UDP(a4, 1, "255.255.255.255", 67).Bytes(t), bpf.WeirDropReasonDROP_MULTICAST},
		{"to a group", testnode.UDP(a4, 1, "224.0.0.251", 5353).Bytes(t), bpf.WeirDropReasonDROP_MULTICAST},
		{"to a group, IPv6", tcp6(a6, "ff02::fb").Bytes(t), bpf.WeirDropReasonDROP_MULTICAST},
		{"to the node by its name on the link (B32)", tcp6(a6, "fe80::ecee:eeff:feee:eeee").Bytes(t), bpf.WeirDropReasonDROP_DESTINATION},
		{"loopback source (B12)", tcp("127.0.0.1", 1, b4, 80, "S").Bytes(t), bpf.WeirDropReasonDROP_SPOOFED_SOURCE},
		{"node's source", tcp(nodeAddr, 1, b4, 80, "S").Bytes(t), bpf.WeirDropReasonDROP_SPOOFED_SOURCE},
	} {
		s.expect(t, c.name, dropped(c.reason), func() testnode.Result {
			return s.Run(t, "from_pod", c.frame, s.a.Ifindex, s.a.Ifindex, 0)
		})
	}
	s.from(t, "the frame as it was", s.a, v4, redirected)
	s.from(t, "the frame as it was", s.a, v6, redirected)
}

// gopacket writes v4-mapped addresses as IPv4; these need the other header.
func tcp6(src, dst string) rawV6 { return rawV6{src, dst, 6, 0} }

func icmp6(src, dst string, typ uint8) rawV6 { return rawV6{src, dst, 58, typ} }

type rawV6 struct {
	src, dst string
	next     uint8
	icmp     uint8
}

func (r rawV6) Bytes(t *testing.T) []byte {
	b := tcp("fd00::1", 1, "fd00::2", 80, "S").Bytes(t)
	b[20] = r.next
	src, dst := mustAddr(r.src).As16(), mustAddr(r.dst).As16()
	copy(b[22:], src[:])
	copy(b[38:], dst[:])
	if r.next == 58 {
		b[54] = r.icmp
	}
	return b
}

func set(b []byte, at int, v byte) []byte {
	b[at] = v
	return b
}

func set16(b []byte, at int, v uint16) []byte {
	binary.BigEndian.PutUint16(b[at:], v)
	return b
}

// Review 11 (M4): the families never cover each other.
func TestFamiliesAreApart(t *testing.T) {
	s := newScene(t, open)
	delete(s.State.Peers, prefix("0.0.0.0/0"))
	s.State.Peers[prefix("::/0")] = datapath.Peer{Identity: 2, Block: blockIn}
	s.Set(s.a, toWorld, open)
	s.Commit(t)
	s.from(t, "IPv6 by ::/0", s.a, tcp(s.a.Addr6, 1, "2001:db8::1", 80, "S"), next)
	s.from(t, "IPv4 is not in it", s.a, tcp(s.a.Addr4, 1, "198.51.100.1", 80, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))
}

// Promise 8: an address of the cluster that nobody has shown us is not the world.
func TestUnmanagedIsNotWorld(t *testing.T) {
	s := newScene(t, open)
	s.Set(s.a, toWorld, open)
	s.Commit(t)
	s.from(t, "world", s.a, tcp(s.a.Addr4, 1, outside, 80, "S"), next)
	s.from(t, "unmanaged", s.a, tcp(s.a.Addr4, 1, "10.0.7.7", 80, "S"), dropped(bpf.WeirDropReasonDROP_UNMANAGED_PEER))
}

// Review 20: an interface that is no endpoint, and a pod that has no such family, drop.
func TestUnknownInterface(t *testing.T) {
	s := newScene(t, open)
	f := tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S")
	s.expect(t, "no endpoint", dropped(bpf.WeirDropReasonDROP_NO_ENDPOINT), func() testnode.Result {
		return s.Run(t, "from_pod", f.Bytes(t), s.uplink, s.uplink, 0)
	})
	d := s.AddPod(t, "10.0.0.4", "", idC, 0, open)
	s.Commit(t)
	s.from(t, "no ruleset yet", d, tcp(d.Addr4, 1, s.b.Addr4, 80, "S"), dropped(bpf.WeirDropReasonDROP_NO_RULESET))
	s.from(t, "no IPv6", d, tcp("fd00::4", 1, s.b.Addr6, 80, "S"), dropped(bpf.WeirDropReasonDROP_FAMILY))
	s.to(t, "not the pod's address", s.b, tcp(outside, 1, "10.0.0.77", 80, "S"), s.uplink, 0, dropped(bpf.WeirDropReasonDROP_DESTINATION))
	s.to(t, "multicast source", s.b, tcp("224.0.0.1", 1, s.b.Addr4, 80, "S"), s.uplink, 0, dropped(bpf.WeirDropReasonDROP_BAD_SOURCE))
}

// Review 12 and 26: denials count exactly, their record has a budget.
func TestDenialsAreCountedExactly(t *testing.T) {
	s := newScene(t, closed)
	const packets = 1000
	for i := 0; i < packets; i++ {
		s.FromPod(t, s.a, tcp(s.a.Addr4, uint16(1024+i), s.b.Addr4, 80, "S"))
	}
	counts, err := s.Kernel.Denials()
	if err != nil || len(counts) != 1 {
		t.Fatalf("denials %v (%v), want one count", counts, err)
	}
	d := counts[0]
	if d.Packets != packets || d.Bytes != packets*40 || d.Rule != ruleDeny || d.Endpoint != s.a.Number || d.Direction != datapath.Ingress {
		t.Errorf("count %+v: want %d packets by rule %d, ingress, charged to the sender", d, packets, ruleDeny)
	}
	c, _ := s.Kernel.Counters()
	if c.DenialsEmitted+c.DenialsLost+c.DenialsSuppressed != packets {
		t.Errorf("recorded %d + lost %d + suppressed %d is not %d", c.DenialsEmitted, c.DenialsLost, c.DenialsSuppressed, packets)
	}
	if c.DenialsSuppressed == 0 || c.DenialsCached < packets-1 {
		t.Errorf("suppressed %d, cached %d: the budget and the cache did nothing", c.DenialsSuppressed, c.DenialsCached)
	}
	if c.FlowsNew != 0 {
		t.Errorf("%d flows of denied packets", c.FlowsNew)
	}
}

func TestShield(t *testing.T) {
	const pass, drop = 2, 1
	s := newScene(t, open)
	for _, c := range []struct {
		name string
		f    testnode.Frame
		want uint32
	}{
		{"own address", tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S"), pass},
		{"own address", tcp(s.a.Addr6, 1, s.b.Addr6, 80, "S"), pass},
		{"another's address", tcp(s.c.Addr4, 1, s.b.Addr4, 80, "S"), drop},
		{"another's address", tcp(s.c.Addr6, 1, s.b.Addr6, 80, "S"), drop},
	} {
		if got := s.RunXDP(t, "shield_pod", c.f.Bytes(t), s.a.Ifindex); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if got := s.RunXDP(t, "shield_pod", tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S").Bytes(t), s.uplink); got != drop {
		t.Errorf("no endpoint: %d, want drop", got)
	}
}

// The shield on an uplink drops by source, an address or a whole prefix, and counts it apart.
func TestShieldDeniesBySource(t *testing.T) {
	const pass, drop = 2, 1
	s := newScene(t, open)
	list := []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("203.0.113.0/25"), netip.MustParsePrefix("2001:db8:bad::/48"), netip.MustParsePrefix("2001:db8::7/128")}
	if err := s.Kernel.Deny(list); err != nil {
		t.Fatal(err)
	}
	dropped := func() uint64 {
		t.Helper()
		c, err := s.Kernel.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return c.Drops[datapath.ReasonShield]
	}
	for _, c := range []struct {
		from string
		want uint32
	}{
		{"198.51.100.7", drop}, {"198.51.100.6", pass}, {"203.0.113.0", drop}, {"203.0.113.127", drop}, {"203.0.113.128", pass},
		{"2001:db8:bad:1::9", drop}, {"2001:db8:bae::9", pass}, {"2001:db8::7", drop}, {"2001:db8::8", pass},
		{"::c633:6407", pass}, // the numbers of 198.51.100.7 in the other family
	} {
		to := s.b.Addr4
		if strings.Contains(c.from, ":") {
			to = s.b.Addr6
		}
		before := dropped()
		if got := s.RunXDP(t, "shield_uplink", tcp(c.from, 1, to, 80, "S").Bytes(t), s.uplink); got != c.want {
			t.Errorf("%s: %d, want %d", c.from, got, c.want)
		}
		if got := dropped() - before; got != uint64(pass-c.want) {
			t.Errorf("%s: %d counted", c.from, got)
		}
	}
	if err := s.Kernel.Deny(nil); err != nil {
		t.Fatal(err)
	}
	if got := s.RunXDP(t, "shield_uplink", tcp("198.51.100.7", 1, s.b.Addr4, 80, "S").Bytes(t), s.uplink); got != pass {
		t.Errorf("off the list: %d, want pass", got)
	}
}
