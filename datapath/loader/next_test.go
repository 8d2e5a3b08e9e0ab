package loader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/sandbox"
)

func larger(dir string) Config {
	cfg := small(dir)
	cfg.Sizes = Sizes{"flows": 2048}
	return cfg
}

func size(t *testing.T, dir string) uint32 {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(maps.Path(dir, bpf.WeirMapFlows), nil)
	must(t, err)
	defer m.Close()
	return m.MaxEntries()
}

// filled loads programs on maps of their own and commits there.
func filled(t *testing.T, dir string) (*Loaded, *maps.Kernel) {
	t.Helper()
	l := load(t, larger(dir))
	if !l.Next || !Switching(dir) {
		t.Fatal("a table of another size was adopted")
	}
	k, err := maps.OpenNext(dir)
	must(t, err)
	t.Cleanup(func() { k.Close() })
	_, err = k.Commit(&datapath.State{})
	must(t, err)
	return l, k
}

// Whoever dies on the way to other maps leaves one set or the other in force, and the next
// Load gets there.
func TestSwitchAfterDeath(t *testing.T) {
	for name, die := range map[string]struct {
		at      func(t *testing.T, dir string)
		adopted bool // the new maps were in force
	}{
		"a folder is made": {at: func(t *testing.T, dir string) {
			must(t, os.Mkdir(filepath.Join(dir, maps.Next), 0o700))
		}},
		"loaded": {at: func(t *testing.T, dir string) { load(t, larger(dir)) }},
		"filled": {at: func(t *testing.T, dir string) { filled(t, dir) }},
		"the new page says so, the word does not": {at: func(t *testing.T, dir string) {
			l, _ := filled(t, dir)
			control, err := mapPage(l.Maps[".data.control"])
			must(t, err)
			defer control.unmap()
			word, err := mapPage(l.stubs.Maps[".data.abi"])
			must(t, err)
			defer word.unmap()
			control.control().Abi = word.abi() + 1
		}},
		"in force": {adopted: true, at: func(t *testing.T, dir string) {
			l, _ := filled(t, dir)
			must(t, l.putInForce())
		}},
		"renamed, the old ones not removed": {adopted: true, at: func(t *testing.T, dir string) {
			l, k := filled(t, dir)
			old := filepath.Join(dir, "old")
			must(t, os.Mkdir(old, 0o700))
			must(t, pinInto(dir, "old", bpf.WeirMapFlows))
			must(t, pinInto(dir, "old", maps.MapControl))
			must(t, pinInto(dir, "old", "abi"))
			_, _, err := l.Switch(k)
			must(t, err)
			must(t, os.Rename(old, filepath.Join(dir, maps.Next)))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(sandbox.BPFFS(t), "weir")
			load(t, small(dir))
			before := epochOf(t, dir)
			die.at(t, dir)
			if n := run(t, dir); n != 1 {
				t.Errorf("%d drops were counted, want 1: nothing is in force", n)
			}
			l := load(t, larger(dir))
			if l.Next == die.adopted {
				t.Fatalf("the next load has to switch: %v, want %v", l.Next, !die.adopted)
			}
			if l.Next {
				k, err := maps.OpenNext(dir)
				must(t, err)
				defer k.Close()
				_, err = k.Commit(&datapath.State{})
				must(t, err)
				_, _, err = l.Switch(k)
				must(t, err)
			}
			if n := run(t, dir); n != 1 || size(t, dir) != 2048 || Switching(dir) {
				t.Errorf("%d drops counted (want 1), table of %d (want 2048), switching %v", n, size(t, dir), Switching(dir))
			}
			if now := epochOf(t, dir); now <= before {
				t.Errorf("epoch %d after %d", now, before)
			}
		})
	}
}

// A flow of a build that kept it in other places, and had what this one has not.
func TestRecordFromAnotherBuild(t *testing.T) {
	u32, u8 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u8", Size: 1}
	member := func(name string, at uint32, typ btf.Type) btf.Member {
		return btf.Member{Name: name, Offset: btf.Bits(at * 8), Type: typ}
	}
	side := &btf.Struct{Name: "side", Size: 8, Members: []btf.Member{member("n", 0, u32), member("mac", 4, &btf.Array{Type: u8, Nelems: 3})}}
	was := &btf.Struct{Name: "flow", Size: 28, Members: []btf.Member{
		member("gone", 0, u32), member("stamp", 4, &btf.Typedef{Name: "x", Type: u32}), member("side", 8, &btf.Array{Type: side, Nelems: 2}), member("kind", 24, u8)}}
	is := &btf.Struct{Name: "flow", Size: 32, Members: []btf.Member{
		member("side", 0, &btf.Array{Type: side, Nelems: 2}), member("stamp", 16, u32), member("fresh", 20, u32), member("kind", 24, u32)}}
	from, err := recordOf(was, 28)
	must(t, err)
	to, err := recordOf(is, 32)
	must(t, err)
	old := make([]byte, 28)
	for i := range old {
		old[i] = byte(i + 1)
	}
	want := [32]byte{9, 10, 11, 12, 13, 14, 15, 0, 17, 18, 19, 20, 21, 22, 23, 0, 5, 6, 7, 8} // kind has another size: it means something else
	if got := to.from(from)(old); [32]byte(got) != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Earlier builds listed arrays of bytes byte by byte, whatever their length.
func TestLongArraysAreOneField(t *testing.T) {
	u8 := &btf.Int{Name: "u8", Size: 1}
	process := &btf.Struct{Name: "process", Size: 80, Members: []btf.Member{
		{Name: "name", Type: &btf.Array{Type: u8, Nelems: 16}}, {Name: "exe", Offset: 16 * 8, Type: &btf.Array{Type: u8, Nelems: 64}}}}
	is, err := recordOf(process, 80)
	must(t, err)
	was := record{Size: 80}
	must(t, was.add(process, "", 0))
	if len(was.Fields) != 80 || len(is.Fields) != 17 || is.Fields[16] != (part{"exe", 16, 64}) {
		t.Fatalf("%d and %d fields, the last is %v", len(was.Fields), len(is.Fields), is.Fields[len(is.Fields)-1])
	}
	if was.join(); !(mapLayout{Value: is}).same(mapLayout{Value: was}) {
		t.Errorf("got  %v\nwant %v", was, is)
	}
}
