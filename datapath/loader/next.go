package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

// A build whose maps are not those in force, by their layout or their sizes, gets a set of
// its own. It is made and filled beside the other, flows are taken over, and one store
// puts the programs on it in force; then it takes the other's place:
//
//	maps-next pinned -> Commit -> flows -> abi stored -> flows again -> renamed to maps
//
// Whoever dies on the way leaves either set in force, and the next Load tells by the abi
// word which.

// carried are the maps of a set that the next takes along if they are the same in both:
// what the programs count, say and remember, none of which a commit writes.
var carried = []string{
	bpf.WeirMapCounters, bpf.WeirMapDenialCounts, bpf.WeirMapFlowEvents, bpf.WeirMapDenialEvents, bpf.WeirMapShieldDeny,
	bpf.SockMapConnected, bpf.SockMapTalking, bpf.SockMapUdpSockets, bpf.SockMapAffinities,
	bpf.SockMapProcesses, bpf.SockMapProcessNumbers, bpf.SockMapProcessCount, bpf.SockMapSocketProcess, bpf.SockMapTcpOpeners, bpf.ObserveMapKernelDrops,
}

var stubMaps = []string{bpf.StubMapTcProgs, bpf.StubMapXdpProgs, "abi"}

// chooseSet says which set's maps the specs are to be loaded on, and has it begun.
func chooseSet(dir string, specs ...*ebpf.CollectionSpec) (set string, err error) {
	if err := recoverSets(dir); err != nil {
		return "", err
	}
	want, err := layoutOf(specs...)
	if err != nil {
		return "", err
	}
	have, err := readLayout(dir, maps.InForce)
	if err != nil {
		return "", err
	}
	if have == nil || sameMaps(have, want) {
		return maps.InForce, want.write(dir, maps.InForce)
	}
	if err := os.Mkdir(filepath.Join(dir, maps.Next), 0o700); err != nil {
		return "", fmt.Errorf("make a set of maps: %w", err)
	}
	take := append([]string{}, stubMaps...)
	for _, name := range carried {
		if was, ok := have[name]; ok && was.same(want[name]) {
			take = append(take, name)
		}
	}
	for _, name := range take {
		if err := pinInto(dir, maps.Next, name); err != nil {
			return "", err
		}
	}
	return maps.Next, want.write(dir, maps.Next)
}

func sameMaps(a, b layout) bool {
	for name, m := range b {
		if was, ok := a[name]; !ok || !m.same(was) {
			return false
		}
	}
	return len(a) == len(b)
}

// pinInto pins a map in force in another set, too.
func pinInto(dir, set, name string) error {
	m, err := ebpf.LoadPinnedMap(maps.Path(dir, name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open map %s: %w", maps.Path(dir, name), err)
	}
	defer m.Close()
	again, err := m.Clone() // the map itself believes that it is pinned
	if err != nil {
		return fmt.Errorf("open map %s: %w", maps.Path(dir, name), err)
	}
	defer again.Close()
	if err := again.Pin(maps.PathIn(dir, set, name)); err != nil {
		return fmt.Errorf("pin %s: %w", maps.PathIn(dir, set, name), err)
	}
	return nil
}

// recoverSets finishes or undoes what a Load before this one left of a set.
func recoverSets(dir string) error {
	if !exists(filepath.Join(dir, maps.Next)) {
		return nil
	}
	inForce, err := nextInForce(dir)
	if err != nil {
		return err
	}
	if inForce {
		return renameSets(dir)
	}
	return removeSet(dir)
}

// Switching reports whether programs on maps of their own wait for Switch.
func Switching(dir string) bool { return exists(filepath.Join(dir, maps.Next)) }

// nextInForce reports whether the abi word chose the programs on maps-next.
func nextInForce(dir string) (bool, error) {
	var abi, of uint64
	for pin, word := range map[string]*uint64{"abi": &abi, maps.MapControl: &of} {
		m, err := ebpf.LoadPinnedMap(maps.PathIn(dir, maps.Next, pin), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("open map %s: %w", maps.PathIn(dir, maps.Next, pin), err)
		}
		defer m.Close()
		page, err := mapPage(m)
		if err != nil {
			return false, err
		}
		defer page.unmap()
		if *word = page.abi(); pin == maps.MapControl {
			*word = page.control().Abi
		}
	}
	return abi == of, nil
}

// renameSets lets maps-next be maps, and what was maps go.
func renameSets(dir string) error {
	next, inForce := filepath.Join(dir, maps.Next), filepath.Join(dir, maps.InForce)
	if err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, inForce, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("put %s in the place of %s: %w", next, inForce, err)
	}
	return removeSet(dir)
}

// removeSet removes maps-next; its maps live as long as programs use them. The control page
// goes first: without one, what is left is not in force.
func removeSet(dir string) error {
	next := filepath.Join(dir, maps.Next)
	if err := os.Remove(filepath.Join(next, maps.MapControl)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a set of maps: %w", err)
	}
	if err := os.RemoveAll(next); err != nil {
		return fmt.Errorf("remove a set of maps: %w", err)
	}
	return nil
}
