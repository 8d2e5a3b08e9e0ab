package cni

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

// reachBPFFS returns bpffsDir as the plugin can open it: itself, or, where the
// plugin's mount namespace hides it (`ip netns exec` mounts a new /sys), by way of the
// agent's root. If neither is on a bpffs it is left as it is, for the loader to refuse.
func reachBPFFS(bpffsDir string, agent *api.Client) string {
	if onBPFFS(bpffsDir) {
		return bpffsDir
	}
	pid, err := serverPID(agent.Socket())
	if err != nil {
		return bpffsDir
	}
	if there := filepath.Join(fmt.Sprintf("/proc/%d/root", pid), bpffsDir); onBPFFS(there) {
		return there
	}
	return bpffsDir
}

// onBPFFS looks at the directory, or at the one it would be made in.
func onBPFFS(dir string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Statfs(filepath.Dir(dir), &st)
	}
	return err == nil && st.Type == unix.BPF_FS_MAGIC
}

// serverPID is the process that listens on a unix socket.
func serverPID(socket string) (int32, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Pid, nil
}
