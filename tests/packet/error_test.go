package packet

import (
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/tests/testnode"
)

// unreachable is src's ICMP error about a frame: to who sent it, port unreachable.
func unreachable(t testing.TB, src string, about testnode.Frame) testnode.Frame {
	f := testnode.Frame{Src: src, Dst: about.Src, Protocol: layers.IPProtocolICMPv4, ICMPType: 3, ICMPCode: 3}
	if mustAddr(src).Is6() {
		f.Protocol, f.ICMPType, f.ICMPCode = layers.IPProtocolICMPv6, 1, 4
	}
	f.Payload = about.Bytes(t)[14:]
	return f
}
