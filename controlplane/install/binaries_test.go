package install

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/sandbox"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// brought is a directory as the image has it.
func brought(t *testing.T, cni, local string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "weir-cni"), []byte(cni), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "host-local"), []byte(local), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "portmap"), []byte("map"), 0o700))
	return dir
}

func binariesIn(t *testing.T, from, to string) string {
	t.Helper()
	var said []string
	must(t, Binaries(from, to, func(line string) { said = append(said, strings.ReplaceAll(line, to+"/", "")) }))
	return strings.Join(said, "; ")
}

func TestBinariesAreReplacedWhole(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	to := t.TempDir()
	from := brought(t, "first", "local")
	if got := binariesIn(t, from, to); got != "installed weir-cni; installed host-local; installed portmap" {
		t.Fatal(got)
	}
	running, err := os.Open(filepath.Join(to, "weir-cni")) // as whoever runs it has it
	must(t, err)
	defer running.Close()
	before, err := running.Stat()
	must(t, err)
	if before.Mode().Perm() != 0o755 {
		t.Errorf("mode %v", before.Mode())
	}
	if got := binariesIn(t, from, to); got != "weir-cni is this version already; host-local is this version already; portmap is this version already" {
		t.Error(got)
	}
	if now, err := os.Stat(running.Name()); err != nil || !os.SameFile(before, now) {
		t.Errorf("an equal file was written again (%v)", err)
	}
	must(t, os.WriteFile(filepath.Join(to, ".weir-cni.new"), []byte("half of an earlier copy, longer than the whole"), 0o600))
	if got := binariesIn(t, brought(t, "second", "local"), to); got != "installed weir-cni; host-local is this version already; portmap is this version already" {
		t.Error(got)
	}
	text := make([]byte, 16)
	n, _ := running.Read(text)
	if string(text[:n]) != "first" {
		t.Errorf("the running plugin became %q", text[:n])
	}
	if now, err := os.ReadFile(running.Name()); err != nil || string(now) != "second" {
		t.Errorf("%q, %v", now, err)
	}
	if left, _ := os.ReadDir(to); len(left) != 3 {
		t.Errorf("left: %v", left)
	}
}

// What is equal and cannot be run is no plugin; a link may lead anywhere.
func TestOddFilesAreReplaced(t *testing.T) {
	to, from := t.TempDir(), brought(t, "plugin", "local")
	must(t, os.WriteFile(filepath.Join(to, "weir-cni"), []byte("plugin"), 0o600))
	elsewhere := filepath.Join(t.TempDir(), "theirs")
	must(t, os.WriteFile(elsewhere, []byte("theirs"), 0o755))
	must(t, os.Symlink(elsewhere, filepath.Join(to, "host-local")))
	if got := binariesIn(t, from, to); got != "installed weir-cni; installed host-local; installed portmap" {
		t.Error(got)
	}
	if text, err := os.ReadFile(elsewhere); err != nil || string(text) != "theirs" {
		t.Errorf("written through a link: %q, %v", text, err)
	}
}

func TestNewer(t *testing.T) {
	for _, c := range []struct {
		have, ours string
		want       bool
	}{
		{"v1.9.2", "v1.9.1", true},
		{"v1.9.1", "v1.9.1", false},
		{"v1.2.0", "v1.9.1", false},
		{"v1.10.0", "v1.9.1", true},
		{"(devel)", "v1.9.1", false},
		{"v1.9.1", "(devel)", false},
		{"", "v1.9.1", false},
	} {
		if got := newer(c.have, c.ours); got != c.want {
			t.Errorf("%q is newer than %q: %v", c.have, c.ours, got)
		}
	}
	// The version is read from programs as they are built.
	dir := t.TempDir()
	program := filepath.Join(dir, "host-local")
	build := exec.Command("go", "build", "-o", program, "github.com/containernetworking/plugins/plugins/ipam/host-local")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if v := versionOf(program); !newer(v, "v0.1.0") || !newer("v99.0.0", v) {
		t.Errorf("host-local says it is %q", v)
	}
}

// The node's host-local as others installed it.
func TestNewerHostLocalStays(t *testing.T) {
	to, from := t.TempDir(), t.TempDir()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\nfunc main() {}\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.test/plugin\ngo 1.26\n"), 0o600))
	for _, to := range []string{filepath.Join(to, "host-local"), filepath.Join(from, "host-local")} {
		build := exec.Command("go", "build", "-buildvcs=false", "-o", to, ".")
		build.Dir = dir
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=mod")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	must(t, os.WriteFile(filepath.Join(from, "weir-cni"), []byte("plugin"), 0o755))
	must(t, os.WriteFile(filepath.Join(from, "portmap"), []byte("plugin"), 0o755))
	stamp(t, filepath.Join(to, "host-local"), "v1.99.9")
	stamp(t, filepath.Join(from, "host-local"), "v1.99.1")
	if got := binariesIn(t, from, to); got != "installed weir-cni; host-local is newer (v1.99.9, this is v1.99.1): left alone; installed portmap" {
		t.Error(got)
	}
	if got := binariesIn(t, to, to); !strings.Contains(got, "already") {
		t.Error(got)
	}
}

// stamp writes a version over a program's "(devel)".
func stamp(t *testing.T, program, version string) {
	t.Helper()
	text, err := os.ReadFile(program)
	must(t, err)
	devel := []byte("mod\texample.test/plugin\t(devel)\t")
	if !bytes.Contains(text, devel) {
		t.Fatal("it has no version to write over")
	}
	as := []byte("mod\texample.test/plugin\t" + version + "\t") // as long as "(devel)"
	must(t, os.WriteFile(program, bytes.ReplaceAll(text, devel, as), 0o755))
}

func TestBinariesSayWhyNot(t *testing.T) {
	sandbox.Root(t)
	from := brought(t, strings.Repeat("x", 1<<20), "local")
	notDir := filepath.Join(from, "weir-cni")
	for _, c := range []struct{ to, want string }{
		{filepath.Join(from, "none"), "no directory " + filepath.Join(from, "none") + ": it is the container runtime's"},
		{notDir, notDir + " is no directory"},
		{tmpfs(t, "size=64k"), "install weir-cni in"},
		{tmpfs(t, "ro"), "read-only file system"},
	} {
		err := Binaries(from, c.to, func(string) {})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.to, err, c.want)
		}
	}
	full := tmpfs(t, "size=64k")
	must(t, os.WriteFile(filepath.Join(full, "weir-cni"), []byte("old"), 0o755))
	if err := Binaries(from, full, func(string) {}); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("full: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(full, "weir-cni")); err != nil || string(text) != "old" {
		t.Errorf("after a full disk: %q, %v", text, err)
	}
	if left, _ := os.ReadDir(full); len(left) != 1 {
		t.Errorf("left on a full disk: %v", left)
	}
	if err := Binaries(t.TempDir(), t.TempDir(), func(string) {}); err == nil || !strings.Contains(err.Error(), "install weir-cni") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("nothing to install: %v", err)
	}
}

func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	var flags uintptr
	if options == "ro" {
		flags, options = unix.MS_RDONLY, ""
	}
	must(t, unix.Mount("tmpfs", dir, "tmpfs", flags, options))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestBPFFSIsMountedOnce(t *testing.T) {
	sandbox.Root(t)
	dir := tmpfs(t, "size=64k")
	for i, want := range []bool{true, false} {
		if mounted, err := BPFFS(dir); err != nil || mounted != want {
			t.Errorf("call %d: %v, %v", i, mounted, err)
		}
	}
	must(t, unix.Unmount(dir, 0))
	if _, err := BPFFS(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("no directory: %v", err)
	}
}
