package install

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// BPFFS mounts a bpffs on dir unless it is one: systemd does so on most nodes.
func BPFFS(dir string) (mounted bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount a bpffs on %s: %w", dir, err)
	}
	return true, nil
}
