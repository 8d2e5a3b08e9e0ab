package loader

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/sandbox"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// small keeps the tests quick.
func small(dir string) Config {
	return Config{BPFFSDir: dir, Sizes: Sizes{"flows": 1024}, FlowShare: 16}
}

func load(t testing.TB, cfg Config) *Loaded {
	t.Helper()
	l, err := Load(cfg)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// run sends a packet from no interface through a pinned stub: the programs drop and count
// it, an empty place drops it uncounted.
func run(t testing.TB, dir string) (drops uint64) {
	t.Helper()
	p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, "progs", "stub_from_pod"), nil)
	must(t, err)
	defer p.Close()
	k, err := maps.Open(dir)
	must(t, err)
	defer k.Close()
	count := func() (n uint64) {
		c, err := k.Counters()
		must(t, err)
		for _, drops := range c.Drops {
			n += drops
		}
		return n
	}
	before := count()
	ret, _, err := p.Test(make([]byte, 64))
	must(t, err)
	if ret != 2 {
		t.Errorf("a packet of no endpoint gets %d, want a drop (2)", ret)
	}
	return count() - before
}

func epochOf(t testing.TB, dir string) uint64 {
	t.Helper()
	k, err := maps.Open(dir)
	must(t, err)
	defer k.Close()
	return k.Epoch()
}

func TestLoadTwiceAdopts(t *testing.T) {
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	first := load(t, small(dir))
	if first.Adopted || epochOf(t, dir) != 1 {
		t.Errorf("first load: adopted %v, epoch %d", first.Adopted, epochOf(t, dir))
	}
	if n := run(t, dir); n != 1 {
		t.Errorf("the first programs counted %d drops, want 1", n)
	}
	k, err := maps.Open(dir)
	must(t, err)
	_, err = k.Commit(&datapath.State{Rulesets: map[uint32]datapath.Ruleset{1: {Default: 300}},
		Endpoints: map[uint32]datapath.Endpoint{1: {Ifindex: 9, Egress: 1, Ingress: 1}}})
	must(t, err)
	must(t, k.Close())

	second := load(t, small(dir))
	if !second.Adopted || second.Abi != first.Abi+1 || epochOf(t, dir) != 2 {
		t.Errorf("second load: adopted %v, abi %d after %d, epoch %d", second.Adopted, second.Abi, first.Abi, epochOf(t, dir))
	}
	if n := run(t, dir); n != 1 {
		t.Errorf("the second programs counted %d drops, want 1", n)
	}
	for name, m := range first.Maps {
		if _, pinned := pinOf(name); pinned && idOf(t, m) != idOf(t, second.Maps[name]) {
			t.Errorf("map %s was not adopted", name)
		}
	}
	for _, h := range hooks {
		old, now := 2*uint32(h.hook)+uint32(first.Abi&1), 2*uint32(h.hook)+uint32(second.Abi&1)
		var id uint32
		if err := second.stubs.Maps[h.array].Lookup(old, &id); err == nil {
			t.Errorf("%s: the old program is still there", h.program)
		}
		must(t, second.stubs.Maps[h.array].Lookup(now, &id))
		if want := programID(t, second.Programs[h.program]); id != want {
			t.Errorf("%s: program %d in force, want %d", h.program, id, want)
		}
	}
}

// A map that is not as the pinned layout says is refused by name, and what is in force
// stays, to the last pin.
func TestMapsNotAsDescribedAreRefused(t *testing.T) {
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	first := load(t, small(dir))
	spec, err := bpf.LoadWeir()
	must(t, err)
	older := spec.Maps[bpf.WeirMapRulesets]
	older.ValueSize, older.Value = 12, nil
	path := maps.Path(dir, bpf.WeirMapRulesets)
	must(t, os.Remove(path))
	must(t, os.Remove(maps.Path(dir, bpf.WeirMapPeerMasks)))
	old, err := ebpf.NewMap(older)
	must(t, err)
	defer old.Close()
	must(t, old.Put(uint32(1), make([]byte, 12)))
	must(t, old.Pin(path))
	before := pins(t, dir)

	l, err := Load(small(dir))
	if err == nil {
		l.Close()
		t.Fatal("adopted")
	}
	if text := err.Error(); !strings.Contains(text, "not as described") || !strings.Contains(text, "remove that directory") || !strings.Contains(text, bpf.WeirMapRulesets) {
		t.Errorf("refused with %q", text)
	}
	if after := pins(t, dir); !slices.Equal(before, after) {
		t.Errorf("pins %v became %v", before, after)
	}
	for _, h := range hooks {
		var id uint32
		must(t, first.stubs.Maps[h.array].Lookup(2*uint32(h.hook)+uint32(first.Abi&1), &id))
		if want := programID(t, first.Programs[h.program]); id != want {
			t.Errorf("%s: program %d in force, want %d", h.program, id, want)
		}
	}
}

func programID(t testing.TB, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := p.Info()
	must(t, err)
	id, _ := info.ID()
	return uint32(id)
}

func pins(t testing.TB, dir string) (names []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	}))
	return names
}

func idOf(t testing.TB, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	info, err := m.Info()
	must(t, err)
	id, _ := info.ID()
	return id
}

func loadPrograms(t *testing.T, cfg Config) *ebpf.Collection {
	t.Helper()
	weir, _, _, err := cfg.specs()
	must(t, err)
	c, err := loadCollection(cfg.BPFFSDir, maps.InForce, weir)
	must(t, err)
	return c
}

// An agent that died anywhere in Load: what ran before runs on, and the next Load works.
func TestLoadAfterDeath(t *testing.T) {
	for name, die := range map[string]func(t *testing.T, dir string){
		"stubs half pinned": func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "progs", "stub_to_pod")))
		},
		"maps half pinned": func(t *testing.T, dir string) {
			must(t, os.Remove(maps.Path(dir, bpf.WeirMapFragments)))
			must(t, os.Remove(maps.Path(dir, bpf.WeirMapCounters)))
		},
		"before the places are filled": func(t *testing.T, dir string) {
			stubs, err := loadStubs(dir)
			must(t, err)
			stubs.Close()
			weir := loadPrograms(t, small(dir))
			weir.Close()
		},
		"places half filled, abi not stored": func(t *testing.T, dir string) {
			stubs, err := loadStubs(dir)
			must(t, err)
			defer stubs.Close()
			weir := loadPrograms(t, small(dir))
			defer weir.Close()
			word, err := mapPage(stubs.Maps[".data.abi"])
			must(t, err)
			defer word.unmap()
			must(t, stubs.Maps[bpf.StubMapTcProgs].Put(uint32((word.abi()+1)&1), weir.Programs[bpf.WeirProgFromPod]))
			if n := run(t, dir); n != 1 {
				t.Errorf("half way the old programs counted %d drops, want 1", n)
			}
		},
		"abi stored, old places not emptied": func(t *testing.T, dir string) {
			stubs, err := loadStubs(dir)
			must(t, err)
			defer stubs.Close()
			weir := loadPrograms(t, small(dir))
			defer weir.Close()
			word, err := mapPage(stubs.Maps[".data.abi"])
			must(t, err)
			defer word.unmap()
			for _, h := range hooks {
				must(t, stubs.Maps[h.array].Put(2*uint32(h.hook)+uint32((word.abi()+1)&1), weir.Programs[h.program]))
			}
			*word.word()++
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(sandbox.BPFFS(t), "weir")
			load(t, small(dir))
			die(t, dir)
			load(t, small(dir))
			if n := run(t, dir); n != 1 {
				t.Errorf("after the next load %d drops were counted, want 1", n)
			}
		})
	}
}

func TestSweepTicks(t *testing.T) {
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	for range 2 {
		l := load(t, small(dir))
		ticks := func() uint64 {
			var node bpf.WeirControl
			must(t, l.Maps[".data.control"].Lookup(uint32(0), &node))
			return node.SweepTicks
		}
		for before := ticks(); ticks() == before; {
			must(t, maps.Grace()) // the timer lives: this ends
		}
	}
}

func TestKnobsReachThePrograms(t *testing.T) {
	spec, err := bpf.LoadWeir()
	must(t, err)
	cfg := Config{NodeEgressAllow: true, MarkShift: 8, TunnelPort: 4789, Sizes: Sizes{"flows": 512}, FlowShare: 3}
	must(t, cfg.set(spec))
	for name, want := range map[string]uint32{
		bpf.WeirVarCfgNodeEgressAllow: 1, bpf.WeirVarCfgMarkShift: 8, bpf.WeirVarCfgTunnelPort: 4789,
		bpf.WeirVarCfgFlowCapacity: 512, bpf.WeirVarCfgFlowShare: 3,
	} {
		var got uint32
		must(t, spec.Variables[name].Get(&got))
		if got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if n := spec.Maps[bpf.WeirMapFlows].MaxEntries; n != 512 {
		t.Errorf("the flow table has %d entries, want 512", n)
	}
}

func TestLoadErrorsSayWhatToDo(t *testing.T) {
	sandbox.Root(t)
	plain := t.TempDir()
	_, err := Load(Config{BPFFSDir: plain})
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf bpf "+plain) {
		t.Errorf("error %v on a plain directory, want the mount command", err)
	}
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	must(t, os.Remove(maps.Path(dir, layoutPin)))
	_, err = Load(small(dir))
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "start anew") {
		t.Errorf("error %v for maps that nobody described, want one that names the directory", err)
	}
	if n := run(t, dir); n != 1 {
		t.Errorf("after a refused load the programs counted %d drops, want 1", n)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	must(t, Remove(dir))
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 0 {
		t.Errorf("%v are left", entries)
	}
	if l := load(t, small(dir)); l.Adopted {
		t.Error("something was adopted after Remove")
	}
}

// TestLoadReadsLayoutsOfBefore adopts maps whose layout an older build wrote, not compressed.
func TestLoadReadsLayoutsOfBefore(t *testing.T) {
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, small(dir))
	path := maps.Path(dir, layoutPin)
	m, err := ebpf.LoadPinnedMap(path, nil)
	must(t, err)
	defer m.Close()
	text, err := m.LookupBytes(uint32(0))
	must(t, err)
	if len(text) > 16<<10 {
		t.Errorf("the layout takes %d bytes", len(text))
	}
	text, err = plain(text)
	must(t, err)
	must(t, os.Remove(path))
	old, err := ebpf.NewMap(&ebpf.MapSpec{Name: "layout", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(text)), MaxEntries: 1})
	must(t, err)
	defer old.Close()
	must(t, old.Put(uint32(0), text))
	must(t, old.Pin(path))
	if l := load(t, small(dir)); !l.Adopted {
		t.Error("the maps were not adopted")
	}
}
