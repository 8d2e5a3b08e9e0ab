package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/maps"
)

// kernel is the node's maps. Where these programs need others than those in force, it is
// their own, and what runs goes on until the first commit there.
type kernel struct {
	*maps.Kernel
	o       *options
	set     string
	next    *loader.Loaded // nil: nothing is to be replaced
	inForce chan struct{}  // closed once these programs are
	named   bool           // sockets older than the programs have been looked for
	older   bool           // there may be some
	lock    *os.File

	observed atomic.Bool // the programs on tracepoints are in force

	mu       sync.Mutex
	warnings []string
}

var _ datapath.Kernel = (*kernel)(nil)

// load loads the programs and opens their maps. The bpffs directory is locked first where
// it exists: two agents with two state directories must not share maps.
func load(o *options, state *statedir.Dir) (_ *kernel, err error) {
	k := &kernel{o: o, set: maps.InForce, inForce: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if k.lock, err = lockDir(o.bpffsDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	programs := o.programs()
	pods, err := endpoint.Any(state)
	if err == nil && !pods {
		programs.Pickup = -1 // no connection can have lost its record
	}
	k.older = pods && !loader.NamesSockets(o.bpffsDir)
	loaded, err := loader.Load(programs)
	if err != nil {
		return nil, err
	}
	if k.lock == nil {
		if k.lock, err = lockDir(o.bpffsDir); err != nil {
			return nil, errors.Join(err, loaded.Close())
		}
	}
	if loaded.Next {
		k.set, k.next = maps.Next, loaded
		o.log.Info("maps of other sizes or of another version are in force: they stay until all that is to be enforced is in new ones", "bpffsDir", o.bpffsDir)
		k.Kernel, err = maps.OpenNext(o.bpffsDir)
		return k, err
	}
	close(k.inForce)
	k.observe(loaded)
	o.log.Info("programs are in force", "bpffsDir", o.bpffsDir, "adopted", loaded.Adopted, "abi", loaded.Abi)
	if err := loaded.Close(); err != nil {
		return nil, fmt.Errorf("close programs: %w", err)
	}
	k.Kernel, err = maps.Open(o.bpffsDir)
	return k, err
}

// Commit implements datapath.Kernel. The first that succeeds puts the programs in force.
func (k *kernel) Commit(s *datapath.State) (uint64, error) {
	epoch, err := k.Kernel.Commit(s)
	if err != nil {
		return epoch, err
	}
	defer k.nameSockets()
	if k.next == nil {
		return epoch, nil
	}
	begun := time.Now()
	taken, left, err := k.next.Switch(k.Kernel)
	if err != nil {
		return 0, fmt.Errorf("put programs and maps in force: %w", err)
	}
	k.o.log.Info("programs are in force on new maps", "abi", k.next.Abi, "flows", taken, "flowsLeft", left, "took", time.Since(begun))
	close(k.inForce)
	k.observe(k.next)
	err = k.next.Close()
	k.next = nil
	return epoch, err
}

// nameSockets looks, once there are endpoints, for sockets that the programs did not see open.
func (k *kernel) nameSockets() {
	if k.named || !k.o.process || k.next != nil {
		return
	}
	k.named = true
	if k.older && !inInitialPIDNamespace() {
		k.warn(errors.New("processes of connections older than this version are not known: the agent sees no other container's processes (hostPID would show them)"))
	}
	if err := loader.NameSockets(k.o.programs()); err != nil {
		k.warn(fmt.Errorf("processes of connections older than the agent are not known: %w", err))
	}
}

func inInitialPIDNamespace() bool {
	ns, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && ns == "pid:[4026531836]" // PROC_PID_INIT_INO of the kernel
}

func (k *kernel) observe(l *loader.Loaded) {
	k.warn(l.Unobserved)
	k.observed.Store(l.Unobserved == nil)
}

// warn says what is not observed; nothing else depends on it.
func (k *kernel) warn(err error) {
	if err == nil {
		return
	}
	k.o.log.Warn("flow records have less", "error", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.warnings = append(k.warnings, "flow records have less: "+err.Error())
}

// Warnings are for status.
func (k *kernel) Warnings() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.warnings)
}

func (k *kernel) close() error {
	var errs []error
	if k.next != nil {
		errs = append(errs, k.next.Close())
	}
	if k.Kernel != nil {
		errs = append(errs, k.Kernel.Close())
	}
	if k.lock != nil {
		errs = append(errs, k.lock.Close())
	}
	return errors.Join(errs...)
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open bpffs directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another agent holds --bpffs-dir %s: %w", dir, err)
	}
	return f, nil
}
