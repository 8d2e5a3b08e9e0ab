package sockets

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/sandbox"
)

// cookie is the calling thread's namespace's.
func cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// Whatever thread it is asked on, f runs in the namespace and nothing else of the process
// moves, the first thread least of all.
func TestWithin(t *testing.T) {
	sandbox.Root(t)
	name := "weirt-sockets"
	_ = exec.Command("ip", "netns", "del", name).Run() // of a run that crashed
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	path := filepath.Join("/run/netns", name)
	inode := func(path string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	own := inode("/proc/self/ns/net")

	is := make(chan uint64, 1)
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	go onThread(func() {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		c, err := cookie()
		if err != nil {
			t.Error(err)
		}
		is <- c
	})
	n := Namespace{Path: path, Cookie: <-is}
	for range 200 {
		ran := false
		err := within(n, func() error {
			ran = true
			if inode("/proc/thread-self/ns/net") != inode(path) {
				return errors.New("it runs elsewhere")
			}
			return nil
		})
		if err != nil || !ran {
			t.Fatalf("ran %v, %v", ran, err)
		}
		if now := inode("/proc/self/ns/net"); now != own {
			t.Fatal("the process moved")
		}
	}

	never := func() error { return errors.New("it ran") }
	if err := within(Namespace{Path: path, Cookie: n.Cookie + 1}, never); err != nil {
		t.Errorf("a namespace that is another's by now: %v", err)
	}
	if err := within(Namespace{Path: path + "-gone", Cookie: n.Cookie}, never); err != nil {
		t.Errorf("a namespace that is gone: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := within(Namespace{Path: plain, Cookie: n.Cookie}, never); err != nil {
		t.Errorf("a file that its namespace was taken from: %v", err)
	}
	if err := within(Namespace{Path: "/nowhere/netns/x", Cookie: n.Cookie}, never); err == nil || !strings.Contains(err.Error(), "not visible") {
		t.Errorf("where nothing is seen: %v", err)
	}
	failure := errors.New("no")
	if err := within(n, func() error { return failure }); !errors.Is(err, failure) {
		t.Errorf("what f says: %v", err)
	}
}
