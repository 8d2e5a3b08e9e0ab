package loader

import (
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/tests/sandbox"
)

// mib is what the kernel holds for each map of a set, and for all of them.
func mib(t *testing.T, dir string) (each map[string]float64, all float64) {
	t.Helper()
	each = map[string]float64{}
	must(t, filepath.WalkDir(filepath.Join(dir, "maps"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return err
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return err
		}
		bytes, _ := info.Memlock() // of an empty trie: none
		each[e.Name()] = float64(bytes) / (1 << 20)
		all += each[e.Name()]
		return nil
	}))
	return each, all
}

// What all maps take at the sizes they have unless somebody says otherwise, and what each
// further flow takes, the one entry of both its sides. Kernels before 6.4 do not tell the whole of it.
func TestMemoryOfMaps(t *testing.T) {
	const (
		most    = 64.0 // MiB
		perFlow = 304  // bytes
		flows   = 1 << 17
	)
	whole, more := filepath.Join(sandbox.BPFFS(t), "weir"), filepath.Join(sandbox.BPFFS(t), "weir")
	load(t, Config{BPFFSDir: whole})
	each, all := mib(t, whole)
	for name, size := range each {
		if size >= 1 {
			t.Logf("%-16s %5.1f MiB", name, size)
		}
	}
	t.Logf("all of them      %5.1f MiB", all)
	if all > most || all < most/4 {
		t.Errorf("all maps take %.1f MiB, at most %.0f are to be", all, most)
	}
	load(t, Config{BPFFSDir: more, Sizes: Sizes{bpf.WeirMapFlows: 2 * flows}})
	_, larger := mib(t, more)
	got := (larger - all) * (1 << 20) / flows
	t.Logf("a flow           %5.1f B", got)
	if got > perFlow || got < 200 {
		t.Errorf("each further flow takes %.1f bytes, at most %d are to be", got, perFlow)
	}
}
