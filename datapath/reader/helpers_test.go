package reader

import (
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
)

type identityNumber = identity.Number

func bytesOf(e *bpf.WeirEvent) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(e)), eventSize)
}

func enumValue(t testing.TB, spec *ebpf.CollectionSpec, enum, name string) uint64 {
	t.Helper()
	var e *btf.Enum
	must(t, spec.Types.TypeByName(enum, &e))
	for _, v := range e.Values {
		if v.Name == name {
			return v.Value
		}
	}
	t.Fatalf("enum %s has no %s", enum, name)
	return 0
}
