package packet

import (
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/tests/testnode"
)

// What a header says of itself has to be true, where believing or not believing it would make
// two readers see two packets.
func TestLengthsInside(t *testing.T) {
	s := newScene(t, open)
	udp := testnode.UDP(s.a.Addr4, 1000, s.b.Addr4, 53)
	first := udp
	first.MoreFrags = true
	tcpLater := set(rawV6{s.a.Addr6, s.b.Addr6, 44, 0}.Bytes(t), 54, 6)
	for _, c := range []struct {
		name  string
		frame []byte
		want  outcome
	}{
		{"UDP", udp.Bytes(t), redirected},
		{"UDP length past its packet", set16(udp.Bytes(t), 38, 13), dropped(bpf.WeirDropReasonDROP_BAD_HEADER)},
		{"which a first fragment has", set16(first.Bytes(t), 38, 200), redirected},
		{"fragment at 8 of TCP in IPv6", set16(tcpLater, 56, 8), dropped(bpf.WeirDropReasonDROP_FRAGMENT_SHORT)},
		{"ARP", arp(s.a.Addr4, "169.254.1.1"), next},
		{"ARP of another hardware", set16(arp(s.a.Addr4, "169.254.1.1"), 14, 6), dropped(bpf.WeirDropReasonDROP_NEIGHBOUR)},
		{"ARP of another protocol", set16(arp(s.a.Addr4, "169.254.1.1"), 16, 0x86dd), dropped(bpf.WeirDropReasonDROP_NEIGHBOUR)},
		{"ARP with longer addresses", set(arp(s.a.Addr4, "169.254.1.1"), 18, 8), dropped(bpf.WeirDropReasonDROP_NEIGHBOUR)},
		{"solicitation", solicit(t, s.a.Addr6), next},
		{"solicitation that came by a router", set(solicit(t, s.a.Addr6), 21, 254), dropped(bpf.WeirDropReasonDROP_NEIGHBOUR)},
		{"solicitation with a code", set(solicit(t, s.a.Addr6), 55, 1), dropped(bpf.WeirDropReasonDROP_NEIGHBOUR)},
		{"solicitation whose target is padding", set16(solicit(t, s.a.Addr6), 18, 20), dropped(bpf.WeirDropReasonDROP_TRUNCATED)},
		{"solicitation in a fragment", asFragment(solicit(t, s.a.Addr6)), dropped(bpf.WeirDropReasonDROP_NEIGHBOUR)},
	} {
		s.expect(t, c.name, c.want, func() testnode.Result {
			return s.Run(t, "from_pod", c.frame, s.a.Ifindex, s.a.Ifindex, 0)
		})
	}
}

// The packet that an ICMP error quotes lies in the error, not behind it, and is no error.
func TestQuotedPackets(t *testing.T) {
	s := newScene(t, open)
	asked := testnode.UDP(s.a.Addr4, 1000, s.b.Addr4, 53)
	ping := testnode.Echo(s.b.Addr4, s.a.Addr4, 7, false)
	s.from(t, "flow", s.a, asked, redirected)
	s.from(t, "echo", s.b, ping, redirected)
	unreachable := func(quoted []byte) []byte {
		f := testnode.Frame{Src: s.b.Addr4, Dst: s.a.Addr4, Protocol: layers.IPProtocolICMPv4, ICMPType: 3, ICMPCode: 3, Payload: quoted}
		return f.Bytes(t)
	}
	quoted := asked.Bytes(t)[14:]
	// It reads as the answer to b's echo: from a, with the id where an echo has it.
	errorOfError := testnode.Echo(s.a.Addr4, s.b.Addr4, 7, true).Bytes(t)[14:]
	errorOfError[20] = 3
	for _, c := range []struct {
		name  string
		frame []byte
		want  outcome
	}{
		{"header and 8 bytes", unreachable(quoted[:28]), next},
		{"header and 7 bytes", unreachable(quoted[:27]), dropped(bpf.WeirDropReasonDROP_ICMP_UNRELATED)},
		{"8 bytes in padding", set16(unreachable(quoted[:28]), 16, 20+8+20), dropped(bpf.WeirDropReasonDROP_ICMP_UNRELATED)},
		{"an error about an error", unreachable(errorOfError), dropped(bpf.WeirDropReasonDROP_ICMP_UNRELATED)},
	} {
		s.expect(t, c.name, c.want, func() testnode.Result {
			return s.Run(t, "from_pod", c.frame, s.b.Ifindex, s.b.Ifindex, 0)
		})
	}
}

// arp is a request.
func arp(from, whoHas string) []byte {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1}
	b = append(append(b, mustAddr(from).AsSlice()...), 0, 0, 0, 0, 0, 0)
	b = append(b, mustAddr(whoHas).AsSlice()...)
	return append(b, make([]byte, 32)...) // room for longer addresses
}

// solicit is a neighbour solicitation for the gateway.
func solicit(t *testing.T, from string) []byte {
	b := set(icmp6(from, "ff02::1:ffee:eeee", 135).Bytes(t), 21, 255)
	b = append(b[:55], 0, 0, 0, 0, 0, 0, 0)
	b = append(b, mustAddr("fe80::ecee:eeff:feee:eeee").AsSlice()...)
	return set16(b, 18, 24)
}

// asFragment puts an IPv6 packet into an atomic fragment.
func asFragment(b []byte) []byte {
	header := []byte{b[20], 0, 0, 0, 0, 0, 0, 1}
	b[20] = 44
	return set16(slices.Insert(b, 54, header...), 18, uint16(len(b)-54+8))
}
