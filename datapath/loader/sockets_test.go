package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/weirnet/weir/tests/sandbox"
)

// cgroup makes one where cgroup2 is mounted. No process is ever in it.
func cgroup(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/mounts")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			dir := filepath.Join(f[1], fmt.Sprintf("weirt-%x", time.Now().UnixNano()&0xffffffff))
			must(t, os.Mkdir(dir, 0o755))
			t.Cleanup(func() { os.Remove(dir) })
			return dir
		}
	}
	t.Fatal("no cgroup2 is mounted")
	return ""
}

// socketLinks are the links of sockets' programs and what each runs.
func socketLinks(t *testing.T, dir string) (links map[link.ID]bool, programs int) {
	t.Helper()
	links, seen := map[link.ID]bool{}, map[uint32]bool{}
	for _, h := range socketHooks {
		l, err := link.LoadPinnedLink(socketPin(dir, h.program), nil)
		if os.IsNotExist(err) {
			continue
		}
		must(t, err)
		info, err := l.Info()
		must(t, err)
		links[info.ID], seen[uint32(info.Program)] = true, true
		must(t, l.Close())
	}
	return links, len(seen)
}

func attachedToCgroup(t *testing.T, dir string) (n int) {
	t.Helper()
	for _, h := range socketHooks {
		f, err := os.Open(dir)
		must(t, err)
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: h.at})
		must(t, err)
		f.Close()
		n += len(r.Programs)
	}
	return n
}

func TestSocketsAreAttachedReplacedAndDetached(t *testing.T) {
	cfg := small(filepath.Join(sandbox.BPFFS(t), "weir"))
	intact := func(want bool) {
		t.Helper()
		if ok, err := SocketsIntact(cfg); err != nil || ok != want {
			t.Errorf("intact: %v, %v, want %v", ok, err, want)
		}
	}
	load(t, cfg)
	intact(true) // nothing was asked for
	cfg.CgroupRoot = cgroup(t)
	intact(false)
	load(t, cfg)
	intact(true)
	first, programs := socketLinks(t, cfg.BPFFSDir)
	if n := attachedToCgroup(t, cfg.CgroupRoot); len(first) != 11 || programs != 11 || n != 11 {
		t.Fatalf("%d links of %d programs, %d in the cgroup, want 11 of each", len(first), programs, n)
	}

	load(t, cfg).Close()
	again, _ := socketLinks(t, cfg.BPFFSDir)
	for id := range again {
		if !first[id] {
			t.Errorf("link %d is new: there was a moment without one", id)
		}
	}
	if n := attachedToCgroup(t, cfg.CgroupRoot); n != 11 {
		t.Errorf("%d programs in the cgroup after the second load, want 11", n)
	}

	must(t, os.Remove(socketPin(cfg.BPFFSDir, "connect4")))
	intact(false)
	load(t, cfg)
	intact(true)

	old := cfg.CgroupRoot
	cfg.CgroupRoot = cgroup(t)
	intact(false)
	load(t, cfg)
	intact(true)
	if was, is := attachedToCgroup(t, old), attachedToCgroup(t, cfg.CgroupRoot); was != 0 || is != 11 {
		t.Errorf("after the root moved: %d programs at the old one, %d at the new, want 0 and 11", was, is)
	}

	at := cfg.CgroupRoot
	cfg.CgroupRoot = ""
	intact(false)
	load(t, cfg)
	intact(true)
	if n := attachedToCgroup(t, at); n != 0 {
		t.Errorf("%d programs stay without a cgroup root", n)
	}
	cfg.CgroupRoot = at
	load(t, cfg)
	must(t, Remove(cfg.BPFFSDir))
	if n := attachedToCgroup(t, at); n != 0 {
		t.Errorf("%d programs stay after Remove", n)
	}
}

func TestBadCgroupRoot(t *testing.T) {
	cfg := small(filepath.Join(sandbox.BPFFS(t), "weir"))
	for root, want := range map[string]string{"/nowhere": "/nowhere", t.TempDir(): "cgroup2"} {
		cfg.CgroupRoot = root
		if _, err := Load(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", root, err, want)
		}
		if exists(filepath.Join(cfg.BPFFSDir, "maps", "control")) {
			t.Errorf("%s: something was loaded all the same", root)
		}
	}
}
