package main

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/testnode"
)

// testRun runs one packet and returns what the kernel says it took, in ns.
func testRun(p *ebpf.Program, frame []byte, ifindex int) (float64, error) {
	context := testnode.Bytes(ifindex)
	attr := struct {
		fd, retval, sizeIn, sizeOut     uint32
		in, out                         uint64
		repeat, duration, ctxIn, ctxOut uint32
		ctxInPointer, ctxOutPointer     uint64
		flags, cpu, batch, _            uint32
	}{fd: uint32(p.FD()), sizeIn: uint32(len(frame)), in: uint64(uintptr(unsafe.Pointer(&frame[0]))), repeat: 1,
		ctxIn: uint32(len(context)), ctxInPointer: uint64(uintptr(unsafe.Pointer(&context[0])))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, 10, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(frame)
	runtime.KeepAlive(context)
	if errno != 0 {
		return 0, fmt.Errorf("run one packet: %w", errno)
	}
	return float64(attr.duration), nil
}
