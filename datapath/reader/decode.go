package reader

import (
	"math"
	"net/netip"
	"time"
	"unsafe"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/identity"
)

const eventSize = int(unsafe.Sizeof(bpf.WeirEvent{}))

// decode reads one record; ok is false for one of another size, which is not ours. Numbers
// that no event has are made ones that some has: other programs may have written the ring.
func (r *reader) decode(raw []byte) (datapath.Event, bool) {
	if len(raw) < eventSize {
		return datapath.Event{}, false
	}
	var e bpf.WeirEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), eventSize), raw)
	return datapath.Event{
		Kind:        datapath.EventKind(e.Kind),
		Time:        r.clock.wall(e.Time),
		Created:     e.Created,
		Age:         age(&e),
		Epoch:       e.Epoch,
		Source:      end(e.Tuple.Saddr, e.Tuple.Family, e.Tuple.Sport),
		Destination: end(e.Tuple.Daddr, e.Tuple.Family, e.Tuple.Dport),
		Protocol:    e.Tuple.Protocol,
		Ifindex:     e.Ifindex,
		Endpoint:    e.Endpoint,
		Identity:    [2]identity.Number{identity.Number(e.Identity[0]), identity.Number(e.Identity[1])},
		Rule:        e.Rule,
		Dropped:     e.Verdict == verdictDropped,
		Reason:      datapath.Reason(e.Reason),
		Direction:   min(datapath.Direction(e.Direction), datapath.None),
		Judged:      e.Judged,
		Path:        e.Path,
		End:         e.End,
		ICMPType:    e.IcmpType,
		ICMPCode:    e.IcmpCode,
		PickedUp:    e.PickedUp != 0,
		TCPFlags:    e.TcpFlags,
		Packets:     e.Packets,
		Bytes:       e.Bytes,

		Process:      r.processes.of(e.Process[0]),
		Listener:     r.processes.of(e.Process[1]),
		TCP:          [2]datapath.TCPEnd{tcpEnd(&e, 0), tcpEnd(&e, 1)},
		KernelReason: maps.KernelReason(e.KernelReason),
		Service:      e.Service,
	}, true
}

// tcpEnd unpacks enum flow_tcp.
func tcpEnd(e *bpf.WeirEvent, end int) datapath.TCPEnd {
	if e.TcpKnown>>end&1 == 0 {
		return datapath.TCPEnd{}
	}
	v := e.Tcp[end]
	rtt := uint64(v&uint32(bpf.WeirFlowTcpTCP_MANTISSA)) << (v & 0xffff >> bpf.WeirFlowTcpTCP_EXPONENT_SHIFT)
	return datapath.TCPEnd{Known: true, RTT: time.Duration(rtt) * time.Microsecond, Retransmits: uint64(v >> bpf.WeirFlowTcpTCP_RETRANSMITS_SHIFT)}
}

// age is 0 for denials: they belong to no flow. A flow ended with its newest packet, long
// before anybody could tell that it had.
func age(e *bpf.WeirEvent) time.Duration {
	until := e.Time
	if datapath.EventKind(e.Kind) == datapath.EventEnded {
		until = e.Last
	}
	if datapath.EventKind(e.Kind) == datapath.EventDenied || until < e.Created {
		return 0
	}
	return time.Duration(min(until-e.Created, math.MaxInt64))
}

func end(addr [16]uint8, family uint8, port uint16) netip.AddrPort {
	a := netip.AddrFrom16(addr)
	if family == 4 {
		a = a.Unmap()
	}
	return netip.AddrPortFrom(a, port)
}

// verdictDropped is enum verdict's VERDICT_DROPPED; a test compares them.
const verdictDropped = 2
