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
	{bpf.StubHookHOOK_FROM_TUNNEL, bpf.WeirProgFromTunnel, bpf.StubMapTcProgs},
	{bpf.StubHookHOOK_SHIELD_POD, bpf.WeirProgShieldPod, bpf.StubMapXdpProgs},
	{bpf.StubHookHOOK_SHIELD_UPLINK, bpf.WeirProgShieldUplink, bpf.StubMapXdpProgs},
}

// Loaded are the programs and maps in force. Everything is pinned, so closing it, or
// dying, changes nothing.
type Loaded struct {
	Adopted  bool                     // the maps were there
	Next     bool                     // the maps are to replace those that were there, see Switch
	Abi      uint64                   // the word that chose these programs
	Programs map[string]*ebpf.Program // by C name
	Maps     map[string]*ebpf.Map     // by C name
	stubs    *ebpf.Collection
	weir     *ebpf.Collection
	sockets  *ebpf.Collection
	observed *ebpf.Collection // nil: the kernel would not have it

	// Unobserved is why the programs on tracepoints are not in force: who connects by TCP,
	// how it went and what the kernel drops is not known.
	Unobserved error

	cfg      Config
	flows    *flowCarrier
	switched bool
}

// Close lets go of programs and maps.
func (l *Loaded) Close() error {
	for _, c := range []*ebpf.Collection{l.observed, l.sockets, l.weir, l.stubs} {
		if c != nil {
			c.Close()
		}
	}
	return nil
}

// Load loads the node's programs, on first use or in place of those that run. Stubs are
// pinned once and adopted for ever after, and so are maps while builds agree on them and
// their sizes; the programs are loaded fresh into the prog arrays' free places, and one
// store to the abi word switches all links to them. Until that store the programs in force
// keep running, so Load may die anywhere and be called again.
//
// Where the maps that are there are others than these programs', the programs are loaded on
// maps of their own and do nothing yet: Next is set, and after a Commit to maps.OpenNext
// Switch puts them in force.
func Load(cfg Config) (*Loaded, error) {
	if err := checkBPFFS(cfg.BPFFSDir); err != nil {
		return nil, err
	}
	if cfg.CgroupRoot != "" {
		if _, err := cgroupID(cfg.CgroupRoot); err != nil {
			return nil, err
		}
	}
	l := &Loaded{cfg: cfg, Adopted: exists(maps.Path(cfg.BPFFSDir, maps.MapControl))}
	if err := l.load(); err != nil {
		return nil, errors.Join(explain(err), l.Close())
	}
	if l.Next {
		return l, nil
	}
	if err := errors.Join(l.putInForce(), l.vacate()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := attachSockets(cfg.BPFFSDir, cfg.CgroupRoot, l.sockets.Programs); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.Unobserved = errors.Join(l.Unobserved, l.observe())
	return l, nil
}

func (l *Loaded) load() (err error) {
	dir := l.cfg.BPFFSDir
	weir, sock, observe, err := l.cfg.specs()
	if err != nil {
		return err
	}
	set, err := chooseSet(dir, weir, sock, observe)
	if err != nil {
		return err
	}
	if l.Next = set == maps.Next; l.Next {
		if err := continueFrom(dir, weir); err != nil {
			return err
		}
	}
	if l.stubs, err = loadStubs(dir); err != nil {
		return err
	}
	if l.weir, err = loadCollection(dir, set, weir); err != nil {
		return err
	}
	l.Programs, l.Maps = l.weir.Programs, l.weir.Maps
	if l.sockets, err = loadCollection(dir, set, sock); err != nil {
		return err
	}
	if l.observed, err = loadCollection(dir, set, observe); err != nil {
		l.Unobserved = explain(err)
	}
	return nil
}

// specs are the programs of packets, of sockets and on tracepoints, as configured.
func (c Config) specs() (weir, sock, observe *ebpf.CollectionSpec, err error) {
	if weir, err = bpf.LoadWeir(); err != nil {
		return nil, nil, nil, fmt.Errorf("read embedded programs: %w", err)
	}
	if sock, err = bpf.LoadSock(); err != nil {
		return nil, nil, nil, fmt.Errorf("read embedded programs: %w", err)
	}
	c.Sizes.set(sock)
	if err := c.set(weir); err != nil {
		return nil, nil, nil, err
	}
	if observe, err = observeSpec(c, weir, sock); err != nil {
		return nil, nil, nil, err
	}
	if c.CgroupRoot == "" {
		if err := weir.Variables[bpf.WeirVarCfgServices].Set(uint32(0)); err != nil {
			return nil, nil, nil, fmt.Errorf("set %s: %w", bpf.WeirVarCfgServices, err)
		}
	}
	if c.NoRecords {
		for _, spec := range []*ebpf.CollectionSpec{weir, observe} {
			if err := spec.Variables[bpf.WeirVarCfgRecords].Set(uint32(0)); err != nil {
				return nil, nil, nil, fmt.Errorf("set %s: %w", bpf.WeirVarCfgRecords, err)
			}
		}
	}
	if c.NoProcess || c.NoRecords {
		for _, spec := range []*ebpf.CollectionSpec{sock, observe} {
			if err := spec.Variables[bpf.SockVarCfgProcess].Set(uint32(0)); err != nil {
				return nil, nil, nil, fmt.Errorf("set %s: %w", bpf.SockVarCfgProcess, err)
			}
		}
	}
	return weir, sock, observe, nil
}

// loadStubs adopts the pinned stubs; only those that are missing are loaded.
func loadStubs(dir string) (*ebpf.Collection, error) {
	spec, err := bpf.LoadStub()
	if err != nil {
		return nil, fmt.Errorf("read embedded stubs: %w", err)
	}
	c, err := loadCollection(dir, maps.InForce, spec)
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

// loadCollection loads a spec's programs on a set's pinned maps, and pins the maps that are new.
func loadCollection(dir, set string, spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	pinned, err := pinnedMaps(dir, set, spec)
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
		return nil, fmt.Errorf("adopt maps in %s, which are not as described there "+
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
		if err := m.Pin(maps.PathIn(dir, set, pin)); err != nil {
			c.Close()
			return nil, fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return c, nil
}

func pinnedMaps(dir, set string, spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	pinned := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		pin, ok := pinOf(name)
		if !ok {
			continue
		}
		m, err := ebpf.LoadPinnedMap(maps.PathIn(dir, set, pin), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return pinned, fmt.Errorf("open pinned map %s: %w", maps.PathIn(dir, set, pin), err)
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

// putInForce is the switch: the places of abi + 1, the sweep's timer, the abi word.
func (l *Loaded) putInForce() error {
	word, err := mapPage(l.stubs.Maps[".data.abi"])
	if err != nil {
		return err
	}
	defer word.unmap()
	control, err := mapPage(l.Maps[".data.control"])
	if err != nil {
		return err
	}
	defer control.unmap()
	l.Abi = word.abi() + 1
	for _, h := range hooks {
		place := 2*uint32(h.hook) + uint32(l.Abi&1)
		if err := l.stubs.Maps[h.array].Put(place, l.Programs[h.program]); err != nil {
			return fmt.Errorf("put %s into %s: %w", h.program, h.array, err)
		}
	}
	if err := armSweep(l.Programs[bpf.WeirProgArmSweep]); err != nil {
		return err
	}
	atomic.StoreUint64(&control.control().Abi, l.Abi)
	atomic.StoreUint64(word.word(), l.Abi)
	return nil
}

// vacate empties the places of the programs before these, once nobody is on his way there.
func (l *Loaded) vacate() error {
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
	page, err := mapPage(word)
	if err != nil {
		return false, err
	}
	defer page.unmap()
	for _, h := range hooks {
		array, err := ebpf.LoadPinnedMap(maps.Path(dir, h.array), nil)
		if err != nil {
			return false, fmt.Errorf("open map %s: %w", h.array, err)
		}
		var id uint32
		err = array.Lookup(2*uint32(h.hook)+uint32(page.abi()&1), &id)
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

// page is a mapped map of one value.
type page []byte

func mapPage(m *ebpf.Map) (page, error) {
	b, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap map %s: %w", m, err)
	}
	return b, nil
}

func (p page) unmap()                    { _ = unix.Munmap(p) }
func (p page) word() *uint64             { return (*uint64)(unsafe.Pointer(&p[0])) }
func (p page) abi() uint64               { return atomic.LoadUint64(p.word()) }
func (p page) control() *bpf.WeirControl { return (*bpf.WeirControl)(unsafe.Pointer(&p[0])) }
