package randomcluster

import (
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Protocols without ports.
const (
	ICMP   uint8 = 1
	GRE    uint8 = 47
	ICMPv6 uint8 = 58
)

// Tuple is a random connection in a family that both have; ok is false if they share none.
func (w *World) Tuple(from, to Place) (t policy.Tuple, ok bool) {
	f := w.r.Intn(2)
	if !from.Addrs[f].IsValid() || !to.Addrs[f].IsValid() {
		f = 1 - f
	}
	if !from.Addrs[f].IsValid() || !to.Addrs[f].IsValid() {
		return t, false
	}
	t = policy.Tuple{
		From:     policy.End{Pod: from.Pod, Addr: from.Addrs[f]},
		To:       policy.End{Pod: to.Pod, Addr: to.Addrs[f]},
		Family:   4 + 2*f,
		Protocol: []uint8{datapath.TCP, datapath.TCP, datapath.UDP, datapath.SCTP, [2]uint8{ICMP, ICMPv6}[f], GRE}[w.r.Intn(6)],
	}
	if HasPorts(t.Protocol) {
		t.Port = uint16(78 + w.r.Intn(10))
		if w.r.Intn(12) == 0 {
			t.Port = edges[w.r.Intn(len(edges))]
		}
	}
	return t, true
}

// HasPorts reports whether policies can name a protocol's ports.
func HasPorts(protocol uint8) bool {
	return protocol == datapath.TCP || protocol == datapath.UDP || protocol == datapath.SCTP
}
