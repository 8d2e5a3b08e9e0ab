package reader

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// eventRoom is what an event takes of a ring: its length stands before it, and both are
// rounded up to 8.
const eventRoom = (8 + eventSize + 7) / 8 * 8

// Consumed is how much of the rings was ever read, by whoever read them, in bytes, of it that of
// denials, and how much an event takes. The kernel keeps it with the rings: it outlives a reader that is killed
// with events in its hands.
func (r *reader) Consumed() (bytes, denials, each uint64, err error) {
	for _, m := range r.maps { // the ring of denials is the last
		page, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("map the place of a ring's reader: %w", err)
		}
		denials = atomic.LoadUint64((*uint64)(unsafe.Pointer(&page[0])))
		bytes += denials
		if err := unix.Munmap(page); err != nil {
			return 0, 0, 0, fmt.Errorf("unmap the place of a ring's reader: %w", err)
		}
	}
	return bytes, denials, uint64(eventRoom), nil
}
