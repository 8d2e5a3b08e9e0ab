// Package sandbox gives a test a bpffs and a network namespace of its own.
package sandbox

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Root skips the test where it cannot run. In CI it may not be skipped.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root: it uses BPF maps and network namespaces")
	}
	t.Skip("needs root: it uses BPF maps and network namespaces")
}

// BPFFS mounts one and returns its directory; it goes with the test.
func BPFFS(t testing.TB) string {
	t.Helper()
	Root(t)
	dir, err := os.MkdirTemp("/run", "weirt-")
	if err != nil {
		t.Fatalf("make mount point: %v", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs on %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove mount point: %v", err)
		}
	})
	return dir
}

// Netns moves the test's goroutine into a network namespace of its own, which goes with
// the goroutine's thread.
func Netns(t testing.TB) {
	t.Helper()
	Root(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
}
