package parked

import (
	"bytes"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// TestComplete: what a sender left to its device becomes what gopacket computes; anything
// else stays.
func TestComplete(t *testing.T) {
	for family, ends := range map[layers.EthernetType][2]string{
		layers.EthernetTypeIPv4: {"10.0.0.1", "10.0.0.2"}, layers.EthernetTypeIPv6: {"fd00::1", "fd00::2"},
	} {
		for _, protocol := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP} {
			for _, payload := range []string{"", "x", "an even number of bytes.", "an odd number of bytes"} {
				whole := frame(t, family, ends, protocol, payload)
				at := 14 + 20 + 6
				if family == layers.EthernetTypeIPv6 {
					at += 20
				}
				if protocol == layers.IPProtocolTCP {
					at += 10
				}
				left := bytes.Clone(whole)
				left[at], left[at+1] = 0, 0
				l4 := left[at-map[layers.IPProtocol]int{layers.IPProtocolTCP: 16, layers.IPProtocolUDP: 6}[protocol]:]
				l4 = l4[:map[layers.IPProtocol]int{layers.IPProtocolTCP: 20, layers.IPProtocolUDP: 8}[protocol]+len(payload)] // the frame may be padded
				pseudo := add(uint32(protocol)+uint32(len(l4)), append(net.ParseIP(ends[0]).To16()[addr(family):], net.ParseIP(ends[1]).To16()[addr(family):]...))
				left[at], left[at+1] = byte(pseudo>>8), byte(pseudo)
				complete(left)
				if !bytes.Equal(left, whole) {
					t.Errorf("%v %v %q: checksum %x, want %x", family, protocol, payload, left[at:at+2], whole[at:at+2])
				}
				wrong := bytes.Clone(whole)
				wrong[at] ^= 0x55
				was := bytes.Clone(wrong)
				complete(wrong)
				if !bytes.Equal(was, wrong) {
					t.Errorf("%v %v %q: a wrong checksum was put right", family, protocol, payload)
				}
			}
		}
	}
}

func addr(family layers.EthernetType) int {
	if family == layers.EthernetTypeIPv4 {
		return 12
	}
	return 0
}

func frame(t *testing.T, family layers.EthernetType, ends [2]string, protocol layers.IPProtocol, payload string) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: make(net.HardwareAddr, 6), DstMAC: make(net.HardwareAddr, 6), EthernetType: family}
	var ip gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	if family == layers.EthernetTypeIPv4 {
		l := &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: net.ParseIP(ends[0]), DstIP: net.ParseIP(ends[1])}
		ip, network = l, l
	} else {
		l := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: net.ParseIP(ends[0]), DstIP: net.ParseIP(ends[1])}
		ip, network = l, l
	}
	var l4 gopacket.SerializableLayer
	if protocol == layers.IPProtocolTCP {
		l := &layers.TCP{SrcPort: 1, DstPort: 2, SYN: true}
		_ = l.SetNetworkLayerForChecksum(network)
		l4 = l
	} else {
		l := &layers.UDP{SrcPort: 1, DstPort: 2}
		_ = l.SetNetworkLayerForChecksum(network)
		l4 = l
	}
	out := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, l4, gopacket.Payload(payload))
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// FuzzComplete: no frame, however broken, is read or written outside.
func FuzzComplete(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08\x00\x45"))
	f.Fuzz(func(t *testing.T, b []byte) { complete(b) })
}
