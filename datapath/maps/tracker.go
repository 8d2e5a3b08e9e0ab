package maps

import (
	"errors"
	"fmt"
	"iter"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/datapath"
)

// batch is from how many entries on one system call writes them all.
const batch = 32

// tracker is a kernel hash map and what is known to be in it. It is the only way one is
// written. Entries are added and removed, never changed under a reader: a removed
// element's memory is recycled at once, so what nobody wants any more is marked stale
// and goes a grace later, and an insertion waits for a grace after the last removal.
//
// K is the key in Go, B the kernel's; the value has one type.
type tracker[K comparable, B any, V comparable] struct {
	name    string
	m       *ebpf.Map
	encode  func(K) B
	decode  func(B) K
	applied map[K]V
	stale   map[K]uint64 // applied and wanted by nobody since this tick
	removed uint64       // tick of the last removal
}

func (t *tracker[K, B, V]) size() int { return int(t.m.MaxEntries()) }

// load makes applied what the kernel has.
func (t *tracker[K, B, V]) load() error {
	t.applied, t.stale = map[K]V{}, map[K]uint64{}
	var key B
	var value V
	entries := t.m.Iterate()
	for entries.Next(&key, &value) {
		t.applied[t.decode(key)] = value
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", t.name, err)
	}
	return nil
}

// delta is what turns the kernel's map into the desired one.
type delta[K comparable, V comparable] struct {
	keys     []K // to put
	values   []V
	unwanted []K // applied, not desired, not stale yet
}

func (d delta[K, V]) empty() bool { return len(d.keys) == 0 && len(d.unwanted) == 0 }

// diff compares; what is desired again is not stale any more.
func (t *tracker[K, B, V]) diff(desired iter.Seq2[K, V], has func(K) bool) (d delta[K, V]) {
	for k, v := range desired {
		if was, ok := t.applied[k]; !ok || was != v {
			d.keys, d.values = append(d.keys, k), append(d.values, v)
		}
		delete(t.stale, k)
	}
	for k := range t.applied {
		if _, stale := t.stale[k]; !stale && !has(k) {
			d.unwanted = append(d.unwanted, k)
		}
	}
	return d
}

// diffKeys compares only keys, of which desired says what they are to be; false: nothing.
func (t *tracker[K, B, V]) diffKeys(keys []K, desired func(K) (V, bool)) (d delta[K, V]) {
	for _, k := range keys {
		v, wanted := desired(k)
		was, there := t.applied[k]
		if !wanted {
			if _, stale := t.stale[k]; there && !stale {
				d.unwanted = append(d.unwanted, k)
			}
			continue
		}
		if !there || was != v {
			d.keys, d.values = append(d.keys, k), append(d.values, v)
		}
		delete(t.stale, k)
	}
	return d
}

// fits reports whether n more entries have room.
func (t *tracker[K, B, V]) fits(n int) error {
	if need := len(t.applied) + n; need > t.size() {
		return &datapath.FullError{Map: t.name, Size: t.size(), Need: need - len(t.stale)}
	}
	return nil
}

// put writes entries; on an error applied says which of them are there.
func (t *tracker[K, B, V]) put(keys []K, values []V, tick uint64) error {
	for _, k := range keys {
		if _, replaced := t.applied[k]; replaced {
			t.removed = tick
		}
	}
	done, err := 0, error(nil)
	if len(keys) >= batch {
		encoded := make([]B, len(keys))
		for i, k := range keys {
			encoded[i] = t.encode(k)
		}
		if done, err = t.m.BatchUpdate(encoded, values, nil); errors.Is(err, ebpf.ErrNotSupported) {
			done, err = 0, nil
		}
	}
	for i := 0; i < done; i++ {
		t.applied[keys[i]] = values[i]
	}
	for ; err == nil && done < len(keys); done++ {
		if err = t.m.Put(t.encode(keys[done]), values[done]); err == nil {
			t.applied[keys[done]] = values[done]
		}
	}
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return &datapath.FullError{Map: t.name, Size: t.size(), Need: len(t.applied) + len(keys) - done}
	}
	if err != nil {
		return fmt.Errorf("write map %s: %w", t.name, err)
	}
	return nil
}

// mark makes keys stale.
func (t *tracker[K, B, V]) mark(keys []K, tick uint64) {
	for _, k := range keys {
		t.stale[k] = tick
	}
}

// remove deletes an entry now. The caller has had the grace it needs.
func (t *tracker[K, B, V]) remove(k K, tick uint64) error {
	if err := t.m.Delete(t.encode(k)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from map %s: %w", t.name, err)
	}
	delete(t.applied, k)
	delete(t.stale, k)
	t.removed = tick
	return nil
}

// collect removes what was stale at tick before, and hands each entry to gone.
func (t *tracker[K, B, V]) collect(before, tick uint64, gone func(K, V)) error {
	for k, since := range t.stale {
		if since > before {
			continue
		}
		v := t.applied[k]
		if err := t.remove(k, tick); err != nil {
			return err
		}
		if gone != nil {
			gone(k, v)
		}
	}
	return nil
}

func same[T any](v T) T { return v }
