package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// socketHooks are the programs of sockets and where they go.
var socketHooks = []struct {
	program string
	at      ebpf.AttachType
}{
	{bpf.SockProgGetpeername4, ebpf.AttachCgroupInet4GetPeername},
	{bpf.SockProgGetpeername6, ebpf.AttachCgroupInet6GetPeername},
	{bpf.SockProgRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
	{bpf.SockProgRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
	{bpf.SockProgSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
	{bpf.SockProgSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
	{bpf.SockProgConnect4, ebpf.AttachCGroupInet4Connect},
	{bpf.SockProgConnect6, ebpf.AttachCGroupInet6Connect},
	{bpf.SockProgSockCreate, ebpf.AttachCGroupInetSockCreate},
	{bpf.SockProgPostBind4, ebpf.AttachCGroupInet4PostBind},
	{bpf.SockProgPostBind6, ebpf.AttachCGroupInet6PostBind},
}

// attachSockets puts programs in force for the sockets of all processes below the cgroup
// root, or, with none, for nobody's. Those in force before are replaced in place, so that
// no socket meets none; what shows answers comes before what asks.
func attachSockets(bpffsDir, root string, programs map[string]*ebpf.Program) error {
	if root == "" {
		return DetachSockets(bpffsDir)
	}
	id, err := cgroupID(root)
	if err != nil {
		return err
	}
	for _, h := range socketHooks {
		if err := attachSocket(socketPin(bpffsDir, h.program), root, id, programs[h.program], h.at); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", h.program, root, err)
		}
	}
	return nil
}

func socketPin(bpffsDir, program string) string { return filepath.Join(bpffsDir, socketsDir, program) }

func attachSocket(pin, root string, id uint64, p *ebpf.Program, at ebpf.AttachType) error {
	old, err := link.LoadPinnedLink(pin, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return fmt.Errorf("open pinned link %s: %w", pin, err)
	default:
		defer old.Close()
		if cgroupOf(old) == id {
			return old.Update(p)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: at, Program: p})
	if err != nil {
		return err
	}
	defer l.Close()
	if old != nil { // of another cgroup, or one that is gone
		if err := releaseLink(old, pin); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	return nil
}

// cgroupOf is what a link is attached to; 0 = nothing any more.
func cgroupOf(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.Cgroup() == nil {
		return 0
	}
	return info.Cgroup().CgroupId
}

// cgroupID is the number of a directory of cgroup2: its inode's.
func cgroupID(root string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return 0, fmt.Errorf("look at cgroup root %s: %w", root, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("cgroup root %s is no directory of a cgroup2 file system (mount -t cgroup2; see /proc/mounts)", root)
	}
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return 0, fmt.Errorf("look at cgroup root %s: %w", root, err)
	}
	return st.Ino, nil
}

// SocketsIntact reports whether the programs of sockets are attached where cfg says.
func SocketsIntact(cfg Config) (bool, error) {
	var id uint64
	if cfg.CgroupRoot != "" {
		var err error
		if id, err = cgroupID(cfg.CgroupRoot); err != nil {
			return false, err
		}
	}
	for _, h := range socketHooks {
		l, err := link.LoadPinnedLink(socketPin(cfg.BPFFSDir, h.program), nil)
		if errors.Is(err, fs.ErrNotExist) {
			if id != 0 {
				return false, nil
			}
			continue
		}
		if err != nil {
			return false, fmt.Errorf("open pinned link of %s: %w", h.program, err)
		}
		at := cgroupOf(l)
		l.Close()
		if at != id || id == 0 {
			return false, nil
		}
	}
	return true, nil
}

// DetachSockets takes the programs from all sockets; connections that are made stay.
func DetachSockets(bpffsDir string) error {
	var errs []error
	for _, h := range socketHooks {
		pin := socketPin(bpffsDir, h.program)
		l, err := link.LoadPinnedLink(pin, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open pinned link %s: %w", pin, err))
			continue
		}
		errs = append(errs, releaseLink(l, pin), l.Close())
	}
	return errors.Join(errs...)
}
