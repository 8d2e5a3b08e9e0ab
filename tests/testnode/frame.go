package testnode

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Frame is one Ethernet frame, from outer to inner. The zero fields have defaults: MACs of
// a pod and its gateway, TTL 64.
type Frame struct {
	Src, Dst  string // addresses; their family is the frame's
	Protocol  layers.IPProtocol
	Sport     uint16
	Dport     uint16
	Flags     string // TCP: letters of "SARFPU"
	Payload   []byte
	ICMPType  uint8
	ICMPCode  uint8
	ICMPID    uint16
	ID        uint16 // IPv4 identification
	FragOff   uint16 // in 8-byte units
	MoreFrags bool
	Options   []layers.IPv4Option
	EtherType layers.EthernetType // in place of the family's
}

// TCP is a frame of a TCP segment with the flags named by letters.
func TCP(src string, sport uint16, dst string, dport uint16, flags string) Frame {
	return Frame{Src: src, Dst: dst, Protocol: layers.IPProtocolTCP, Sport: sport, Dport: dport, Flags: flags}
}

// UDP is a frame of a datagram with four bytes of payload.
func UDP(src string, sport uint16, dst string, dport uint16) Frame {
	return Frame{Src: src, Dst: dst, Protocol: layers.IPProtocolUDP, Sport: sport, Dport: dport, Payload: []byte("ping")}
}

// Echo is an ICMP echo request, or its reply.
func Echo(src, dst string, id uint16, reply bool) Frame {
	v6 := netip.MustParseAddr(src).Is6()
	f := Frame{Src: src, Dst: dst, Protocol: layers.IPProtocolICMPv4, ICMPType: 8, ICMPID: id}
	if reply {
		f.ICMPType = 0
	}
	if v6 {
		f.Protocol, f.ICMPType = layers.IPProtocolICMPv6, 128
		if reply {
			f.ICMPType = 129
		}
	}
	return f
}

// Bytes serialises the frame, lengths and checksums filled in.
func (f Frame) Bytes(t testing.TB) []byte {
	t.Helper()
	b, err := f.Serialize()
	if err != nil {
		t.Fatalf("frame %+v: %v", f, err)
	}
	return b
}

// Serialize is Bytes outside a test.
func (f Frame) Serialize() ([]byte, error) {
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	err := gopacket.SerializeLayers(buf, opts, f.layers()...)
	return buf.Bytes(), err
}

func (f Frame) layers() []gopacket.SerializableLayer {
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}}
	src := netip.MustParseAddr(f.Src)
	var network gopacket.NetworkLayer
	var ip gopacket.SerializableLayer
	if src.Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: 64, Id: f.ID, Protocol: f.Protocol, SrcIP: net.ParseIP(f.Src).To4(), DstIP: net.ParseIP(f.Dst).To4(), FragOffset: f.FragOff, Options: f.Options}
		if f.MoreFrags {
			v4.Flags |= layers.IPv4MoreFragments
		}
		eth.EthernetType, network, ip = layers.EthernetTypeIPv4, v4, v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: f.Protocol, SrcIP: net.ParseIP(f.Src), DstIP: net.ParseIP(f.Dst)}
		eth.EthernetType, network, ip = layers.EthernetTypeIPv6, v6, v6
	}
	if f.EtherType != 0 {
		eth.EthernetType = f.EtherType
	}
	out := []gopacket.SerializableLayer{eth, ip}
	if f.FragOff == 0 {
		out = append(out, f.transport(network)...)
	}
	return append(out, gopacket.Payload(f.Payload))
}

func (f Frame) transport(network gopacket.NetworkLayer) []gopacket.SerializableLayer {
	switch f.Protocol {
	case layers.IPProtocolTCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(f.Sport), DstPort: layers.TCPPort(f.Dport), Window: 1000}
		for _, c := range f.Flags {
			switch c {
			case 'S':
				tcp.SYN = true
			case 'A':
				tcp.ACK = true
			case 'R':
				tcp.RST = true
			case 'F':
				tcp.FIN = true
			case 'P':
				tcp.PSH = true
			case 'U':
				tcp.URG = true
			}
		}
		_ = tcp.SetNetworkLayerForChecksum(network)
		return []gopacket.SerializableLayer{tcp}
	case layers.IPProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(f.Sport), DstPort: layers.UDPPort(f.Dport)}
		_ = udp.SetNetworkLayerForChecksum(network)
		return []gopacket.SerializableLayer{udp}
	case layers.IPProtocolSCTP:
		return []gopacket.SerializableLayer{&layers.SCTP{SrcPort: layers.SCTPPort(f.Sport), DstPort: layers.SCTPPort(f.Dport)}}
	case layers.IPProtocolICMPv4:
		return []gopacket.SerializableLayer{&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(f.ICMPType, f.ICMPCode), Id: f.ICMPID}}
	case layers.IPProtocolICMPv6:
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(f.ICMPType, f.ICMPCode)}
		_ = icmp.SetNetworkLayerForChecksum(network)
		return []gopacket.SerializableLayer{icmp, gopacket.Payload{byte(f.ICMPID >> 8), byte(f.ICMPID), 0, 1}}
	}
	return nil
}
