package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/routing"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath/loader"
)

// Removal is what Weir has on a node. An empty path is left out.
type Removal struct {
	CNIConf   string // the container runtime's network configuration
	BPFFSDir  string
	StateDir  string
	CNIBinDir string
	Say       func(string) // gets a line for everything that was done
}

// Run takes everything off the node, in an order in which no new pod runs open: first the
// runtime forgets us, so that pods wait for another network; then nothing is enforced any
// more. It can be stopped anywhere and run again; what is not there is no error. It refuses
// while an agent lives. A step that fails does not keep the others from being done.
func (r Removal) Run() error {
	release, state, err := r.hold()
	if err != nil {
		return err
	}
	defer release()
	if err := r.file(r.CNIConf, "no new pod gets an address from Weir"); err != nil {
		return err // nothing else before it
	}
	pods := r.pods(state)
	errs := []error{r.programs(pods), r.routes(), r.state(state)}
	if r.CNIBinDir != "" {
		errs = append(errs, r.file(filepath.Join(r.CNIBinDir, "weir-cni"), "host-local and portmap stay: other networks may use them"))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.Say("Weir is off this node. IP forwarding stays as it is")
	return nil
}

// hold keeps agents away, of this state directory and of this bpffs directory.
func (r Removal) hold() (release func(), state *statedir.Dir, err error) {
	release = func() {}
	// Only what an agent held is a state directory.
	if _, err := os.Stat(filepath.Join(r.StateDir, statedir.LockName)); err == nil {
		if state, err = statedir.Open(r.StateDir); err != nil {
			return nil, nil, err
		}
		release = func() { _ = state.Close() }
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("look at state directory: %w", err)
	}
	dir, err := os.Open(r.BPFFSDir)
	if errors.Is(err, fs.ErrNotExist) {
		return release, state, nil
	}
	if err == nil {
		if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			before := release
			return func() { before(); _ = dir.Close() }, state, nil
		}
		err = errors.Join(fmt.Errorf("an agent holds bpffs directory %s: stop it first: %w", r.BPFFSDir, err), dir.Close())
	}
	release()
	return nil, nil, err
}

func (r Removal) file(path, meaning string) error {
	if path == "" {
		return nil
	}
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove file: %w", err)
	}
	r.Say(fmt.Sprintf("removed %s: %s", path, meaning))
	return nil
}

// pods are those attached here, by name where the state directory has it.
func (r Removal) pods(state *statedir.Dir) []string {
	names := map[string]string{}
	if state != nil {
		if store, _ := endpoint.Open(state); store != nil { // what cannot be read is named by its interface
			for _, p := range store.All() {
				names[p.Pins()] = p.Namespace + "/" + p.Name
			}
		}
	}
	attached, _ := loader.Attached(r.BPFFSDir) // what cannot be read is an error when it is removed
	var pods []string
	for _, at := range attached {
		if at.Ifindex == 0 || !endpoint.IsHostIfName(at.Name) {
			continue
		}
		name, ok := names[at.Name]
		if !ok {
			name = "interface " + at.Name
		}
		pods = append(pods, name)
	}
	slices.Sort(pods)
	return slices.Compact(pods)
}

func (r Removal) programs(pods []string) error {
	if _, err := os.Stat(r.BPFFSDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := loader.Remove(r.BPFFSDir); err != nil {
		return fmt.Errorf("remove programs: %w", err)
	}
	if err := removeDir(r.BPFFSDir); err != nil {
		return err
	}
	r.Say(fmt.Sprintf("removed programs, maps and links in %s", r.BPFFSDir))
	if len(pods) > 0 {
		r.Say(fmt.Sprintf("no network policy holds any more for %d running pods, which keep their addresses until they end: %s",
			len(pods), strings.Join(pods, ", ")))
	}
	return nil
}

func (r Removal) routes() error {
	if err := routing.Remove(); err != nil {
		return fmt.Errorf("remove routes and translation: %w", err)
	}
	r.Say("removed Weir's routes to other nodes' pods, its tunnel and its nftables tables, if there were any")
	return nil
}

// state removes what the directory holds, the lock last: who finds it finds a state directory.
func (r Removal) state(d *statedir.Dir) error {
	if d == nil {
		return nil
	}
	entries, err := os.ReadDir(d.Path())
	if err != nil {
		return fmt.Errorf("read state directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() != statedir.LockName {
			err = errors.Join(err, os.RemoveAll(d.Path(e.Name())))
		}
	}
	if err == nil {
		err = d.Remove(statedir.LockName)
	}
	if err != nil {
		return fmt.Errorf("empty state directory: %w", err)
	}
	if err := removeDir(d.Path()); err != nil {
		return err
	}
	r.Say("removed the state in " + d.Path())
	return nil
}

// removeDir removes an empty directory, unless it is one that was mounted here: then it is
// busy, or what it is mounted in is a container's read-only root.
func removeDir(dir string) error {
	err := os.Remove(dir)
	if err == nil || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", dir, err)
}
