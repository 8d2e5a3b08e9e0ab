package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/bench/yard"
	"github.com/weirnet/weir/tests/lab"
)

// cpuOf is how long a process has run, all of its threads that are there.
func cpuOf(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("process %d is gone", pid)
	}
	sum := time.Duration(0)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		ns, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

const mebi = 1 << 20

// memoryOf is a process's resident memory and the most it ever was, in MiB.
func memoryOf(pid int) (resident, most float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			resident = kib / 1024
		case "VmHWM:":
			most = kib / 1024
		}
	}
	return resident, most, nil
}

// mapMemory is what each of a node's maps takes, in bytes.
func mapMemory(bpffs string) (map[string]uint64, error) {
	files, err := filepath.Glob(filepath.Join(bpffs, maps.InForce, "*"))
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for _, f := range files {
		m, err := ebpf.LoadPinnedMap(f, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		info, err := m.Info()
		m.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out[filepath.Base(f)], _ = info.Memlock() // a trie that is empty has none
	}
	if out[bpf.WeirMapFlows] == 0 {
		return nil, fmt.Errorf("%s: the kernel does not say how large maps are", bpffs)
	}
	return out, nil
}

// changed counts the words that are others now.
func (o *observer) changed(since map[string][]uint64) (n uint64) {
	for name, words := range o.snapshot() {
		for i, w := range words {
			if w != since[name][i] {
				n++
			}
		}
	}
	return n
}

// observer sees what an agent does to the kernel's maps.
type observer struct {
	pid   int
	yard  yard.YardObjects
	probe link.Link
	pages map[string][]uint64 // maps that the agent writes as memory
	epoch *uint64
}

// writes of one change.
type writes struct {
	calls   uint64 // bpf(2), where a batch is one
	entries uint64 // entries put or deleted by them
	words   uint64 // of 8 bytes, in memory
}

func (w writes) String() string { return fmt.Sprintf("%d + %d words", w.entries, w.words) }

func observe(n *lab.Node) (*observer, error) { return observeAt(n.BPFFSDir(), n.AgentPid()) }

func observeAt(bpffs string, pid int) (o *observer, err error) {
	if runtime.GOARCH != "amd64" {
		return nil, errors.New("map writes are counted on amd64 only")
	}
	o = &observer{pid: pid, pages: map[string][]uint64{}}
	for _, name := range []string{maps.MapControl, bpf.WeirMapEndpoints, bpf.WeirMapPeers, bpf.WeirMapPortSpans, bpf.WeirMapRuleIds} {
		if o.pages[name], err = readable(maps.Path(bpffs, name)); err != nil {
			return nil, err
		}
	}
	o.epoch = &o.pages[maps.MapControl][unsafe.Offsetof(bpf.WeirControl{}.Epoch)/8]
	return o, o.count()
}

func (o *observer) count() error {
	if err := yard.LoadYardObjects(&o.yard, nil); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return err
	}
	if err := errors.Join(o.yard.CountProcess.Set(uint32(o.pid)), o.yard.CountDevice.Set(st.Dev), o.yard.CountInode.Set(st.Ino)); err != nil {
		return err
	}
	var err error
	o.probe, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: o.yard.CountWrites})
	return err
}

func (o *observer) close() {
	if o.probe != nil {
		o.probe.Close()
	}
	o.yard.Close()
}

// readable maps a pinned map's memory.
func readable(path string) ([]uint64, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer m.Close()
	size := int(m.MaxEntries()) * int((m.ValueSize()+7)/8) * 8
	size = (size + os.Getpagesize() - 1) / os.Getpagesize() * os.Getpagesize()
	b, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), size/8), nil
}

// snapshot is what the maps in memory hold; the control page's clock and counters do not count.
func (o *observer) snapshot() map[string][]uint64 {
	out := map[string][]uint64{}
	for name, words := range o.pages {
		if name == maps.MapControl {
			words = words[:1]
		}
		out[name] = append([]uint64(nil), words...)
	}
	return out
}

func (o *observer) counted() (w writes, err error) {
	var updates, deletes, batches, batched uint64
	err = errors.Join(o.yard.CountUpdates.Get(&updates), o.yard.CountDeletes.Get(&deletes), o.yard.CountBatches.Get(&batches), o.yard.CountBatched.Get(&batched))
	return writes{calls: updates + deletes + batches, entries: updates + deletes + batched}, err
}

// loadMap opens one of a node's maps.
func loadMap(n *lab.Node, name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(maps.Path(n.BPFFSDir(), name), nil)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	return m, nil
}
