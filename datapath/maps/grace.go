package maps

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// Grace returns when no BPF program that ran before the call runs any more.
//
// membarrier(GLOBAL) waits for an RCU grace period of the kernel, which is what programs
// run under. A kernel with nohz_full refuses it (EINVAL): there, storing an inner map
// does the same, because the kernel waits for running programs before it returns.
func Grace() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	switch {
	case errno == 0:
		return nil
	case errors.Is(errno, unix.EINVAL) || errors.Is(errno, unix.ENOSYS):
		return graceByInnerMap()
	}
	return fmt.Errorf("membarrier: %w", errno)
}

var innerMap = sync.OnceValues(func() ([2]*ebpf.Map, error) {
	spec := &ebpf.MapSpec{Name: "weir_grace", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return [2]*ebpf.Map{}, fmt.Errorf("create map for grace: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "weir_grace_outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec,
	})
	if err != nil {
		return [2]*ebpf.Map{}, fmt.Errorf("create map of maps for grace: %w", err)
	}
	return [2]*ebpf.Map{outer, inner}, nil
})

func graceByInnerMap() error {
	m, err := innerMap()
	if err != nil {
		return err
	}
	if err := m[0].Put(uint32(0), m[1]); err != nil {
		return fmt.Errorf("store inner map for grace: %w", err)
	}
	return nil
}
