package maps

import (
	"slices"

	"github.com/weirnet/weir/datapath"
)

// extents gives out runs of an array map, first fit.
type extents struct {
	name string
	size uint32
	used []extent // sorted
}

// extent is elements [start, start+length).
type extent struct{ start, length uint32 }

func (x *extents) alloc(length uint32) (extent, error) {
	if length == 0 {
		return extent{}, nil
	}
	at := uint32(0)
	for i, u := range x.used {
		if u.start-at >= length {
			return x.insert(i, extent{at, length}), nil
		}
		at = u.start + u.length
	}
	if x.size-at >= length {
		return x.insert(len(x.used), extent{at, length}), nil
	}
	return extent{}, &datapath.FullError{Map: x.name, Size: int(x.size), Need: int(x.sum() + length)}
}

// empty is all of the map, nothing of it given out.
func (x *extents) empty() extents { return extents{name: x.name, size: x.size} }

func (x *extents) insert(i int, e extent) extent {
	x.used = slices.Insert(x.used, i, e)
	return e
}

// claim marks e as used; false when part of it already is or it lies outside.
func (x *extents) claim(e extent) bool {
	if e.length == 0 {
		return true
	}
	i, _ := slices.BinarySearchFunc(x.used, e, byStart)
	if uint64(e.start)+uint64(e.length) > uint64(x.size) ||
		i > 0 && x.used[i-1].start+x.used[i-1].length > e.start ||
		i < len(x.used) && e.start+e.length > x.used[i].start {
		return false
	}
	x.insert(i, e)
	return true
}

func (x *extents) free(e extent) {
	if i, ok := slices.BinarySearchFunc(x.used, e, byStart); ok && e.length > 0 {
		x.used = slices.Delete(x.used, i, i+1)
	}
}

func (x *extents) sum() (n uint32) {
	for _, u := range x.used {
		n += u.length
	}
	return n
}

func byStart(a, b extent) int { return int(int64(a.start) - int64(b.start)) }
