package lab

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The process's first thread must never change its namespace: it cannot be ended, and it is
// what others take for the whole process's. Locking the main goroutine to it keeps Do off.
func init() { runtime.LockOSThread() }

// netnsDir is where `ip netns` keeps its names.
const netnsDir = "/run/netns"

// Host is a network namespace that things run in: a pod, a node, or the outside.
type Host struct {
	Name         string // for people: shop/web, node, outside
	Netns        string // of `ip netns`
	File         string // of the namespace, where `ip netns` has no name for it
	Addr4, Addr6 string
}

// Path is the namespace's file.
func (h *Host) Path() string {
	if h.File != "" {
		return h.File
	}
	return filepath.Join(netnsDir, h.Netns)
}

// Addr returns the host's address of a family (4 or 6).
func (h *Host) Addr(family int) string {
	if family == 6 {
		return h.Addr6
	}
	return h.Addr4
}

// Do runs f on a thread in the namespace. Only the network namespace differs: files,
// /sys and the bpffs are the caller's. Sockets that f opens and processes that it starts
// stay there. The thread is not used again.
func (h *Host) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- h.enter(f)
	}()
	return <-done
}

func (h *Host) enter(f func() error) error {
	fd, err := unix.Open(h.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", h.Path(), err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", h.Path(), err)
	}
	return f()
}

// Start starts a command in the namespace, in a session of its own: a signal from the
// terminal is not for it.
func (h *Host) Start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return h.Do(cmd.Start)
}

// Run runs a command in the namespace to its end and returns what it wrote to either
// stream. The error says how it ended.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	var out strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// ip runs one ip(8) command for the caller's namespace.
func ip(format string, args ...any) error {
	words := strings.Fields(fmt.Sprintf(format, args...))
	out, err := exec.Command("ip", words...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Join connects two namespaces by a device of that name in each.
func Join(a, b *Host, device string) error {
	return ip("-n %s link add %s type veth peer name %s netns %s", a.Netns, device, device, b.Netns)
}

// Address gives a device of the namespace an address (ADDRESS/LENGTH) and has it up.
func (h *Host) Address(device string, addrs ...string) error {
	for _, a := range addrs {
		nodad := ""
		if strings.Contains(a, ":") {
			nodad = "nodad"
		}
		if err := ip("-n %s addr add %s dev %s %s", h.Netns, a, device, nodad); err != nil {
			return err
		}
	}
	return ip("-n %s link set %s up", h.Netns, device)
}

// addNetns makes the namespace with its loopback up.
func (h *Host) addNetns() error {
	if err := ip("netns add %s", h.Netns); err != nil {
		return err
	}
	return ip("-n %s link set lo up", h.Netns)
}
