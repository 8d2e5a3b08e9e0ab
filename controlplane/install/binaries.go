// Package install puts on a node what is not the agent's process, and takes all of Weir
// off it again.
package install

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/version"
)

// binary is a program that the container runtime runs on the node.
type binary struct {
	name   string
	shared bool // others bring it too: the newest is the one that serves all
}

var binaries = []binary{{"weir-cni", false}, {"host-local", true}, {"portmap", true}}

// Binaries copies the CNI plugins from one directory to the runtime's; whoever runs one
// meanwhile gets the old one or the new one, whole. weir-cni becomes what this agent brings,
// older or newer: the two belong together. A host-local or portmap that is newer is left
// alone. Say gets a line for each.
func Binaries(from, to string, say func(string)) error {
	if err := isDirectory(to); err != nil {
		return err
	}
	for _, b := range binaries {
		done, err := b.install(from, to)
		if err != nil {
			return fmt.Errorf("install %s in %s: %w", b.name, to, err)
		}
		say(done)
	}
	return nil
}

func isDirectory(dir string) error {
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no directory %s: it is the container runtime's for CNI plugins, mounted from the host", dir)
	}
	if err != nil {
		return fmt.Errorf("look at the directory for CNI plugins: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is no directory", dir)
	}
	return nil
}

func (b binary) install(from, to string) (done string, err error) {
	source, target := filepath.Join(from, b.name), filepath.Join(to, b.name)
	same, err := equal(source, target)
	if err != nil {
		return "", err
	}
	if same {
		return target + " is this version already", nil
	}
	if have, ours := versionOf(target), versionOf(source); b.shared && newer(have, ours) {
		return fmt.Sprintf("%s is newer (%s, this is %s): left alone", target, have, ours), nil
	}
	if err := replace(source, target); err != nil {
		return "", err
	}
	return "installed " + target, nil
}

// equal reports whether target has source's content and can be run.
func equal(source, target string) (bool, error) {
	want, err := os.ReadFile(source)
	if err != nil {
		return false, err
	}
	st, err := os.Lstat(target)
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm() != 0o755 || st.Size() != int64(len(want)) {
		return false, nil // whatever it is, it is replaced
	}
	have, err := os.ReadFile(target)
	return err == nil && bytes.Equal(have, want), nil
}

// versionOf is that of the module a Go program was built from; "" if it does not say.
func versionOf(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return ""
	}
	return info.Main.Version
}

// newer is false unless both say what they are.
func newer(have, ours string) bool {
	h, err := version.ParseSemantic(have)
	if err != nil {
		return false
	}
	o, err := version.ParseSemantic(ours)
	return err == nil && o.LessThan(h)
}

// replace copies a program and renames the copy. The runtime runs what a configuration
// names, and none names a hidden file. What a crash left of an earlier copy is overwritten.
func replace(source, target string) error {
	fresh := filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".new")
	err := copyFile(source, fresh)
	if err == nil {
		err = os.Rename(fresh, target)
	}
	if err == nil {
		return nil
	}
	if rm := os.Remove(fresh); rm != nil && !errors.Is(rm, fs.ErrNotExist) && !errors.Is(rm, unix.EROFS) {
		err = errors.Join(err, rm)
	}
	return err
}

func copyFile(source, fresh string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	// Chmod: the umask does not count. Sync: a full or broken disk says so now, and a node
	// that loses power has the old file or all of the new one.
	return errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close())
}
