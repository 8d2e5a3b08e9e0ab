package maps

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/datapath"
)

// Denied are the addresses and prefixes whose packets the shield drops at the uplinks.
func (k *Kernel) Denied() ([]netip.Prefix, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errClosed
	}
	out := make([]netip.Prefix, 0, len(k.denied.applied))
	for p := range k.denied.applied {
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y netip.Prefix) int { return cmp.Or(x.Addr().Compare(y.Addr()), x.Bits()-y.Bits()) })
	return out, nil
}

// DeniedMost is how many there can be.
func (k *Kernel) DeniedMost() int { return k.denied.size() }

// Deny makes them these, at once: it is no part of a commit, so neither waits for the other or
// fails with it. A list that is too long changes nothing. What goes need not wait for a grace:
// an entry says no more than that it is there, and one that is used again meanwhile is wrong
// for a packet at most.
func (k *Kernel) Deny(list []netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	desired := make(map[netip.Prefix]uint32, len(list))
	for _, p := range list {
		desired[p] = 1
	}
	if len(desired) > k.denied.size() {
		return &datapath.FullError{Map: k.denied.name, Size: k.denied.size(), Need: len(desired)}
	}
	d := k.denied.diff(func(yield func(netip.Prefix, uint32) bool) {
		for p, v := range desired {
			if !yield(p, v) {
				return
			}
		}
	}, has(desired))
	// What comes goes first, as far as there is room beside what leaves: an address that both lists
	// deny, this one by another prefix, is never let in between. It is not where adding failed either.
	first := min(len(d.keys), k.denied.size()-len(k.denied.applied))
	if err := k.denied.put(d.keys[:first], d.values[:first], 0); err != nil {
		return err
	}
	var errs []error
	for _, p := range d.unwanted {
		errs = append(errs, k.denied.remove(p, 0))
	}
	return errors.Join(append(errs, k.denied.put(d.keys[first:], d.values[first:], 0))...)
}
