package reader

import (
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// FuzzDecode: a record is read whole or not at all, and what was read, written as a record
// again, reads the same.
func FuzzDecode(f *testing.F) {
	e := bpf.WeirEvent{Time: 5e9, Created: 1e9, Last: 3e9, Epoch: 7, Ifindex: 4, Kind: 2, Verdict: 1, Direction: 2, Path: 1, TcpFlags: 0x1202}
	e.Tuple.Family, e.Tuple.Protocol, e.Tuple.Sport, e.Tuple.Dport = 4, 6, 40000, 80
	e.Tuple.Saddr = [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}
	e.Tuple.Daddr = [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 2}
	f.Add(bytesOf(&e))
	e.Kind, e.Verdict, e.Reason, e.Tuple.Family = 4, 2, 5, 6
	f.Add(bytesOf(&e))
	e.Created, e.Time, e.Kind, e.Direction = 1, 1<<63+5, 1, 200
	f.Add(bytesOf(&e))
	e.Process, e.KernelReason, e.Tcp, e.TcpKnown = [2]uint32{77, 78}, 4, [2]uint32{1, 3<<16 | 2<<11 | 1201}, 3
	f.Add(bytesOf(&e))
	f.Add(append(bytesOf(&e), 1, 2, 3))
	f.Add(bytesOf(&e)[:eventSize-1])
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := &reader{clock: clock{offset: 1e18}}
		got, ok := r.decode(raw)
		if ok != (len(raw) >= eventSize) {
			t.Fatalf("%d bytes, a record has %d: taken %v", len(raw), eventSize, ok)
		}
		if !ok {
			return
		}
		if got.Age < 0 || got.Direction > datapath.None {
			t.Errorf("age %v, direction %d", got.Age, got.Direction)
		}
		var raws bpf.WeirEvent
		copy(bytesOf(&raws), raw)
		is := r.encode(got)
		is.Process, is.KernelReason, is.Tcp, is.TcpKnown = raws.Process, raws.KernelReason, raws.Tcp, raws.TcpKnown
		again, _ := r.decode(bytesOf(is))
		got.Process, got.Listener, again.Process, again.Listener = nil, nil, nil, nil
		if again != got {
			t.Errorf("read    %+v\nas read %+v", again, got)
		}
	})
}

// encode is the record that decode makes e of.
func (r *reader) encode(e datapath.Event) *bpf.WeirEvent {
	out := &bpf.WeirEvent{
		Time: uint64(e.Time.UnixNano() - r.clock.offset), Epoch: e.Epoch, Created: e.Created, Last: e.Created + uint64(e.Age),
		Ifindex: e.Ifindex, Endpoint: e.Endpoint, Identity: [2]uint32{uint32(e.Identity[0]), uint32(e.Identity[1])}, Rule: e.Rule,
		Kind: uint8(e.Kind), Reason: uint8(e.Reason), Direction: uint8(e.Direction), Judged: e.Judged, Path: e.Path, End: e.End,
		IcmpType: e.ICMPType, IcmpCode: e.ICMPCode, TcpFlags: e.TCPFlags, Packets: e.Packets, Bytes: e.Bytes,
	}
	out.Tuple.Saddr, out.Tuple.Daddr = e.Source.Addr().As16(), e.Destination.Addr().As16()
	out.Tuple.Sport, out.Tuple.Dport, out.Tuple.Protocol = e.Source.Port(), e.Destination.Port(), e.Protocol
	out.Tuple.Family = 6
	if e.Source.Addr().Is4() || e.Destination.Addr().Is4() {
		out.Tuple.Family = 4
	}
	if e.Dropped {
		out.Verdict = verdictDropped
	}
	if e.PickedUp {
		out.PickedUp = 1
	}
	return out
}
