package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

// Sections whose variables are pinned as maps, by the names of their pins.
var pinnedSections = map[string]string{".data.control": maps.MapControl, ".data.abi": "abi"}

// hooks are the places of the programs in the prog arrays: 2 * hook + (abi & 1).
var hooks = []struct {
	hook    bpf.StubHook
	program string
	array   string
}{
	{bpf.StubHookHOOK_FROM_POD, bpf.WeirProgFromPod, bpf.StubMapTcProgs},
	{bpf.StubHookHOOK_TO_POD, bpf.WeirProgToPod, bpf.StubMapTcProgs},
	{bpf.StubHookHOOK_TO_NETWORK, bpf.WeirProgToNetwork, bpf.StubMapTcProgs},
	{bpf.StubHookHOOK_FROM_NETWORK, bpf.WeirProgFromNetwork, bpf.StubMapTcProgs},
	{bpf.StubHookHOOK_SHIELD_POD, bpf.WeirProgShieldPod, bpf.StubMapXdpProgs},
	{bpf.StubHookHOOK_SHIELD_UPLINK, bpf.WeirProgShieldUplink, bpf.StubMapXdpProgs},
}

// Loaded are the programs and maps in force. Everything is pinned, so closing it, or
// dying, changes nothing.
type Loaded struct {
	Adopted  bool                     // the maps were there
	Abi      uint64                   // the word that chose these programs
	Programs map[string]*ebpf.Program // by C name
	Maps     map[string]*ebpf.Map     // by C name
	stubs    *ebpf.Collection
	weir     *ebpf.Collection
	sockets  *ebpf.Collection
}

// Close lets go of programs and maps.
func (l *Loaded) Close() error {
	for _, c := range []*ebpf.Collection{l.sockets, l.weir, l.stubs} {
		if c != nil {
			c.Close()
		}
	}
	return nil
}

// Load loads the node's programs, on first use or in place of those that run. Maps and
// stubs are pinned once and adopted for ever after; the programs are loaded fresh into
// the prog arrays' free places, and one store to the abi word switches all links to
// them. Until that store the programs in force keep running, so Load may die anywhere
// and be called again.
func Load(cfg Config) (*Loaded, error) {
	if err := checkBPFFS(cfg.BPFFSDir); err != nil {
		return nil, err
	}
	if cfg.CgroupRoot != "" {
		if _, err := cgroupID(cfg.CgroupRoot); err != nil {
			return nil, err
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	l := &Loaded{Adopted: exists(maps.Path(cfg.BPFFSDir, maps.MapControl))}
	var err error
	if l.stubs, err = loadStubs(cfg.BPFFSDir); err != nil {
		return nil, explain(err)
	}
	if l.weir, err = loadPrograms(cfg); err != nil {
		return nil, errors.Join(explain(err), l.Close())
	}
	l.Programs, l.Maps = l.weir.Programs, l.weir.Maps
	if l.sockets, err = loadSockets(cfg); err != nil {
		return nil, errors.Join(explain(err), l.Close())
	}
	if err := l.putInForce(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := attachSockets(cfg.BPFFSDir, cfg.CgroupRoot, l.sockets.Programs); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func loadPrograms(cfg Config) (*ebpf.Collection, error) {
	spec, err := bpf.LoadWeir()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	if err := cfg.set(spec); err != nil {
		return nil, err
	}
	return loadCollection(cfg.BPFFSDir, spec)
}

// loadStubs adopts the pinned stubs; only those that are missing are loaded.
func loadStubs(dir string) (*ebpf.Collection, error) {
	spec, err := bpf.LoadStub()
	if err != nil {
		return nil, fmt.Errorf("read embedded stubs: %w", err)
	}
	c, err := loadCollection(dir, spec)
	if err != nil {
		return nil, err
	}
	for name, fresh := range c.Programs {
		path := filepath.Join(dir, progsDir, name)
		pinned, err := ebpf.LoadPinnedProgram(path, nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = fresh.Pin(path)
		case err == nil:
			c.Programs[name] = pinned
			fresh.Close()
		}
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("pin stub %s: %w", path, err)
		}
	}
	return c, nil
}

// loadCollection loads a spec's programs on the pinned maps, and pins the maps that are new.
func loadCollection(dir string, spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	pinned, err := pinnedMaps(dir, spec)
	defer func() {
		for _, m := range pinned {
			m.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: pinned})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fmt.Errorf("adopt maps in %s, which another version or other sizes made "+
			"(detach and remove that directory to start anew): %w", dir, err)
	}
	if err != nil {
		return nil, err
	}
	for name, m := range c.Maps {
		pin, ok := pinOf(name)
		if _, adopted := pinned[name]; adopted || !ok {
			continue
		}
		if err := m.Pin(maps.Path(dir, pin)); err != nil {
			c.Close()
			return nil, fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return c, nil
}

func pinnedMaps(dir string, spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	pinned := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		pin, ok := pinOf(name)
		if !ok {
			continue
		}
		m, err := ebpf.LoadPinnedMap(maps.Path(dir, pin), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return pinned, fmt.Errorf("open pinned map %s: %w", maps.Path(dir, pin), err)
		}
		pinned[name] = m
	}
	return pinned, nil
}

// pinOf is the name a map is pinned by; constants and the like belong to one load.
func pinOf(name string) (string, bool) {
	if !strings.HasPrefix(name, ".") {
		return name, true
	}
	pin, ok := pinnedSections[name]
	return pin, ok
}

// putInForce is the switch: the places of abi + 1, the sweep's timer, the abi word; then
// the places of abi are emptied, once nobody is on his way there.
func (l *Loaded) putInForce() error {
	abi, unmap, err := abiWord(l.stubs.Maps[".data.abi"])
	if err != nil {
		return err
	}
	defer unmap()
	l.Abi = atomic.LoadUint64(abi) + 1
	for _, h := range hooks {
		place := 2*uint32(h.hook) + uint32(l.Abi&1)
		if err := l.stubs.Maps[h.array].Put(place, l.Programs[h.program]); err != nil {
			return fmt.Errorf("put %s into %s: %w", h.program, h.array, err)
		}
	}
	if err := armSweep(l.Programs[bpf.WeirProgArmSweep]); err != nil {
		return err
	}
	atomic.StoreUint64(abi, l.Abi)
	if err := maps.Grace(); err != nil {
		return err
	}
	for _, h := range hooks {
		place := 2*uint32(h.hook) + uint32((l.Abi+1)&1)
		if err := l.stubs.Maps[h.array].Delete(place); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("release old %s from %s: %w", h.program, h.array, err)
		}
	}
	return nil
}

func armSweep(p *ebpf.Program) error {
	ret, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)}) // any packet
	if err != nil {
		return fmt.Errorf("run %s: %w", bpf.WeirProgArmSweep, err)
	}
	if ret != 0 {
		return fmt.Errorf("run %s: the timer answers %d", bpf.WeirProgArmSweep, int32(ret))
	}
	return nil
}

// Intact reports whether the places that the stubs below dir jump to all hold a program.
func Intact(dir string) (bool, error) {
	word, err := ebpf.LoadPinnedMap(maps.Path(dir, pinnedSections[".data.abi"]), nil)
	if err != nil {
		return false, fmt.Errorf("open the abi word: %w", err)
	}
	defer word.Close()
	abi, unmap, err := abiWord(word)
	if err != nil {
		return false, err
	}
	defer unmap()
	for _, h := range hooks {
		array, err := ebpf.LoadPinnedMap(maps.Path(dir, h.array), nil)
		if err != nil {
			return false, fmt.Errorf("open map %s: %w", h.array, err)
		}
		var id uint32
		err = array.Lookup(2*uint32(h.hook)+uint32(atomic.LoadUint64(abi)&1), &id)
		array.Close()
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read map %s: %w", h.array, err)
		}
	}
	return true, nil
}

// abiWord maps the word that chooses the programs.
func abiWord(m *ebpf.Map) (*uint64, func(), error) {
	b, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mmap the abi word: %w", err)
	}
	return (*uint64)(unsafe.Pointer(&b[0])), func() { _ = unix.Munmap(b) }, nil
}
