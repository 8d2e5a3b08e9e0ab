package sockets

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// within runs f on a thread of its own in the namespace; not at all in one that is gone,
// or another's now. The thread is not used again.
func within(n Namespace, f func() error) error {
	ns, err := os.Open(n.Path)
	if errors.Is(err, os.ErrNotExist) {
		return visible(filepath.Dir(n.Path))
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error, 1)
	go onThread(func() { done <- enter(ns, n.Cookie, f) })
	return <-done
}

// visible tells a pod that is gone from a place that this process never saw.
func visible(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("network namespaces are not visible here: %w", err)
	}
	return nil
}

// onThread calls f on a thread that ends with it. That cannot be the process's first, which
// cannot end and is what others take for the whole process's: it waits for another.
func onThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() { defer close(done); onThread(f) }()
	<-done
}

func enter(ns *os.File, cookie uint64, f func() error) error {
	err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
	if errors.Is(err, unix.EINVAL) { // a file whose namespace was taken from it
		return nil
	}
	if err != nil {
		return fmt.Errorf("enter network namespace (needs CAP_SYS_ADMIN): %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	is, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return fmt.Errorf("ask for the namespace's cookie: %w", err)
	}
	if is != cookie {
		return nil
	}
	return f()
}
