package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Folders below the bpffs directory.
const (
	mapsDir    = "maps"
	progsDir   = "progs"
	linksDir   = "links"
	socketsDir = "sockets" // links of the programs of sockets

	observersDir = "observers" // and of those on tracepoints
)

// checkBPFFS makes dir and its folders; it must be on a bpffs.
func checkBPFFS(dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("loading BPF programs needs root")
	}
	if err := onBPFFS(dir); err != nil {
		return err
	}
	for _, sub := range []string{mapsDir, progsDir, linksDir, socketsDir, observersDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return fmt.Errorf("make bpffs directory: %w", err)
		}
	}
	return nil
}

// onBPFFS looks at dir, or at what of its path exists.
func onBPFFS(dir string) error {
	if dir == "" {
		return errors.New("no bpffs directory is given")
	}
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		switch {
		case errors.Is(err, unix.ENOENT) && at != filepath.Dir(at):
			continue
		case err != nil:
			return fmt.Errorf("look at %s: %w", at, err)
		case st.Type != unix.BPF_FS_MAGIC:
			return fmt.Errorf("%s is not on a bpffs: mount -t bpf bpf %s", dir, dir)
		}
		return nil
	}
}

// A bpffs refuses dots in names, interfaces have them.
func pinName(name string) string   { return strings.ReplaceAll(name, ".", "%2e") }
func unpinName(name string) string { return strings.ReplaceAll(name, "%2e", ".") }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
