package testnode

import (
	"cmp"
	"fmt"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Hook is a hook that is handed frames in a row: nothing is allocated, so that a call costs
// what the kernel takes. For one goroutine, on a thread of the node's (Thread, Do).
type Hook struct {
	Mark        uint16 // our bits of the mark, as the last call left them
	Segments    int    // the frame stands for that many, as segmentation offload makes them; 0 = one
	SegmentSize int    // payload of each; 0 = the frame's length by their number
	Out         []byte // where the frame is put as the program left it; nil = nowhere

	program *ebpf.Program
	attr    testRun
	in, out skb
}

// testRun is union bpf_attr as BPF_PROG_TEST_RUN takes it.
type testRun struct {
	progFD, retval, dataSizeIn, dataSizeOut uint32
	dataIn, dataOut                         uint64
	repeat, duration, ctxSizeIn, ctxSizeOut uint32
	ctxIn, ctxOut                           uint64
	flags, cpu, batchSize, _                uint32
}

const bpfProgTestRun = 10

// Hook opens one: from_pod, to_pod, to_network or from_network.
func (n *Node) Hook(name string) (*Hook, error) {
	p, err := ebpf.LoadPinnedProgram(filepath.Join(n.Config.BPFFSDir, "progs", "stub_"+name), nil)
	if err != nil {
		return nil, fmt.Errorf("open hook %s: %w", name, err)
	}
	return &Hook{program: p}, nil
}

// Close lets go of it.
func (h *Hook) Close() error { return h.program.Close() }

// Run hands over a frame at the interface ifindex, as received by ingress (0 = made by the
// node itself) with our mark. The frame is not changed.
func (h *Hook) Run(frame []byte, ifindex, ingress int, mark uint16) (verdict int, err error) {
	h.in = skb{Mark: uint32(mark) << MarkShift, Ifindex: uint32(ifindex), IngressIfindex: uint32(ingress)}
	if h.Segments > 1 {
		h.in.GSOSegs, h.in.GSOSize = uint32(h.Segments), uint32(cmp.Or(h.SegmentSize, len(frame)/h.Segments))
	}
	h.attr = testRun{
		progFD: uint32(h.program.FD()), dataSizeIn: uint32(len(frame)),
		dataIn: uint64(uintptr(unsafe.Pointer(&frame[0]))), repeat: 1,
		ctxIn: uint64(uintptr(unsafe.Pointer(&h.in))), ctxSizeIn: uint32(unsafe.Sizeof(h.in)),
		ctxOut: uint64(uintptr(unsafe.Pointer(&h.out))), ctxSizeOut: uint32(unsafe.Sizeof(h.out)),
	}
	if h.Out != nil {
		h.attr.dataOut, h.attr.dataSizeOut = uint64(uintptr(unsafe.Pointer(&h.Out[0]))), uint32(len(h.Out))
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, bpfProgTestRun, uintptr(unsafe.Pointer(&h.attr)), unsafe.Sizeof(h.attr))
	runtime.KeepAlive(frame)
	if errno != 0 {
		return 0, fmt.Errorf("run %d bytes at interface %d: %w", len(frame), ifindex, errno)
	}
	h.Mark = uint16(h.out.Mark >> MarkShift)
	return int(int32(h.attr.retval)), nil
}

// Thread runs f in the node's namespace on a thread of its own, beside everything else, and
// sends what it returns.
func (n *Node) Thread(f func() error) <-chan error {
	done := make(chan error, 1)
	var fd int
	err := n.Do(func() (err error) {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		done <- fmt.Errorf("open the node's namespace: %w", err)
		return done
	}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with f
		err := unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			done <- fmt.Errorf("enter the node's namespace: %w", err)
			return
		}
		done <- f()
	}()
	return done
}
