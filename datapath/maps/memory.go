package maps

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// memory is an mmapped array map as 8-byte words; an element takes stride words.
type memory struct {
	pages  []byte
	words  []uint64
	stride uint32
	count  uint32 // elements
}

func mapMemory(m *ebpf.Map) (*memory, error) {
	stride := (m.ValueSize() + 7) / 8 // the kernel rounds each element up to 8 bytes
	size := int(m.MaxEntries()) * int(stride) * 8
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	b, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap map %s: %w", m, err)
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), size/8)
	return &memory{pages: b, words: words, stride: stride, count: m.MaxEntries()}, nil
}

func (m *memory) close() error {
	m.words = nil
	return unix.Munmap(m.pages)
}

// at is an element's words.
func (m *memory) at(index uint32) element {
	i := index * m.stride
	return element(m.words[i : i+m.stride : i+m.stride])
}

// element is one array element; each word is stored and loaded whole.
type element []uint64

func (e element) load(word uintptr) uint64     { return atomic.LoadUint64(&e[word]) }
func (e element) store(word uintptr, v uint64) { atomic.StoreUint64(&e[word], v) }

func (e element) zero() bool {
	for i := range e {
		if e.load(uintptr(i)) != 0 {
			return false
		}
	}
	return true
}

// wordsOf is a fixed-size struct's memory as words; T's size must be a multiple of 8.
func wordsOf[T any](v *T) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(v)), unsafe.Sizeof(*v)/8)
}
