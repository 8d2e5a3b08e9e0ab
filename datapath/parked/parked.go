// Package parked takes the frames that the programs dropped for want of news about their
// peer, and sends them again when there is some.
package parked

import (
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

// Frame is one, whole, as the hook saw it.
type Frame struct {
	Peer    netip.Addr // who is not known
	Ifindex uint32     // host side of the pod's veth
	FromPod bool       // else it is for the pod
	Way     bool       // it came past the node's stack
	Bytes   []byte
}

// Frames are a node's. One goroutine may Read; Send is of the thread whose network
// namespace is the node's.
type Frames struct {
	ring      *ringbuf.Reader
	frames    *ebpf.Map
	program   *ebpf.Program
	markShift uint32
}

// Open opens the ring below bpffsDir. markShift is the loader's, 0 = its default.
func Open(bpffsDir string, markShift uint32) (*Frames, error) {
	spec, err := bpf.LoadWeir()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	f := &Frames{markShift: markShift}
	if f.markShift == 0 {
		if err := spec.Variables[bpf.WeirVarCfgMarkShift].Get(&f.markShift); err != nil {
			return nil, fmt.Errorf("read %s: %w", bpf.WeirVarCfgMarkShift, err)
		}
	}
	if f.program, err = ebpf.NewProgram(spec.Programs[bpf.WeirProgResend]); err != nil {
		return nil, fmt.Errorf("load %s: %w", bpf.WeirProgResend, err)
	}
	path := maps.Path(bpffsDir, bpf.WeirMapParkedFrames)
	if f.frames, err = ebpf.LoadPinnedMap(path, nil); err != nil {
		f.program.Close()
		return nil, fmt.Errorf("open map %s: %w", path, err)
	}
	if f.ring, err = ringbuf.NewReader(f.frames); err != nil {
		f.frames.Close()
		f.program.Close()
		return nil, fmt.Errorf("read ring %s: %w", path, err)
	}
	return f, nil
}

// Close ends Read with os.ErrClosed.
func (f *Frames) Close() error { return f.ring.Close() }

// Release lets go of the rest, once Read has ended.
func (f *Frames) Release() {
	f.frames.Close()
	f.program.Close()
}

// Read waits for the next.
func (f *Frames) Read() (Frame, error) {
	r, err := f.ring.Read()
	if err != nil {
		return Frame{}, err
	}
	if len(r.RawSample) < int(unsafe.Sizeof(bpf.WeirParked{})) {
		return Frame{}, fmt.Errorf("a parked frame of %d bytes", len(r.RawSample))
	}
	p := (*bpf.WeirParked)(unsafe.Pointer(&r.RawSample[0]))
	peer := netip.AddrFrom16(p.Peer)
	if p.Family == 4 {
		peer = peer.Unmap()
	}
	frame := p.Frame[:min(int(p.Length), len(p.Frame))]
	complete(frame)
	return Frame{Peer: peer, Ifindex: p.Ifindex, FromPod: p.FromPod != 0, Way: p.Way != 0, Bytes: frame}, nil
}

// context is the head of struct __sk_buff, as a program is run with.
type context struct {
	Len, PktType, Mark, QueueMapping, Protocol, VLANPresent, VLANTCI, VLANProto uint32
	Priority, IngressIfindex, Ifindex, TCIndex                                  uint32
	CB                                                                          [5]uint32
}

// Send has the frame judged again, on its way to the pod as one from outside.
func (f *Frames) Send(frame Frame) error {
	c := context{CB: [5]uint32{frame.Ifindex}}
	if frame.FromPod {
		c.CB[1] = 1
	} else {
		c.Mark = uint32(bpf.WeirMarkBitsMARK_OUTSIDE) << f.markShift
		if frame.Way {
			c.Mark |= uint32(bpf.WeirMarkBitsMARK_INGRESS) << f.markShift
		}
	}
	ret, err := f.program.Run(&ebpf.RunOptions{Data: frame.Bytes, Context: c})
	if err != nil {
		return fmt.Errorf("run %s: %w", bpf.WeirProgResend, err)
	}
	if ret != 0 {
		return fmt.Errorf("run %s: interface %d does not take it", bpf.WeirProgResend, frame.Ifindex)
	}
	return nil
}
