package loader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf/link"

	"github.com/weirnet/weir/tests/sandbox"
)

// Programs on tracepoints are in force, once each, however often they are loaded.
func TestObserversAreAttached(t *testing.T) {
	cfg := small(filepath.Join(sandbox.BPFFS(t), "weir"))
	for range 2 {
		l := load(t, cfg)
		if l.Unobserved != nil {
			t.Fatal(l.Unobserved)
		}
		for _, o := range observers {
			at, err := link.LoadPinnedLink(observerPin(cfg.BPFFSDir, o.program), nil)
			must(t, err)
			info, err := at.Info()
			must(t, err)
			program, err := l.observed.Programs[o.program].Info()
			must(t, err)
			if id, _ := program.ID(); info.Program != id {
				t.Errorf("%s: program %d is attached, %d was loaded", o.program, info.Program, id)
			}
			at.Close()
		}
	}
	must(t, NameSockets(cfg))
}

// What somebody took away is put back, one or all, by the same programs on the same maps.
func TestObserversArePutBack(t *testing.T) {
	cfg := small(filepath.Join(sandbox.BPFFS(t), "weir"))
	load(t, cfg)
	for what, gone := range map[string]string{"one": observerPin(cfg.BPFFSDir, observers[0].program), "all": filepath.Join(cfg.BPFFSDir, observersDir)} {
		if !ObserversIntact(cfg.BPFFSDir) {
			t.Fatalf("%s: not intact before", what)
		}
		must(t, os.RemoveAll(gone))
		if ObserversIntact(cfg.BPFFSDir) {
			t.Errorf("%s is gone, and all intact", what)
		}
		must(t, Observe(cfg))
		for _, o := range observers {
			at, err := link.LoadPinnedLink(observerPin(cfg.BPFFSDir, o.program), nil)
			must(t, err)
			at.Close()
		}
	}
}
