package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
)

// Namespace is a pod's network namespace.
type Namespace struct {
	Path   string
	Cookie uint64 // what it must have: a path may be another's by now
}

// Sockets are those of this node's pods.
type Sockets struct {
	connected *ebpf.Map // what each socket was translated to
}

// Open takes the programs' memory of sockets from below bpffsDir.
func Open(bpffsDir string) (*Sockets, error) {
	m, err := ebpf.LoadPinnedMap(maps.Path(bpffsDir, bpf.SockMapConnected), nil)
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", maps.Path(bpffsDir, bpf.SockMapConnected), err)
	}
	return &Sockets{m}, nil
}

// Close lets go of it.
func (s *Sockets) Close() error { return s.connected.Close() }

// Release ends the connected UDP sockets of a namespace that were translated to a backend
// which the Service they named does not have any more, and returns how many. A namespace
// that is gone has none.
func (s *Sockets) Release(n Namespace, services map[datapath.Frontend]*datapath.Service) (released int, err error) {
	err = within(n, func() error {
		d, err := openDiag()
		if err != nil {
			return err
		}
		defer d.close()
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			all, err := d.connectedUDP(family, s.connected.FD())
			if err != nil {
				return err
			}
			for _, c := range all {
				if !left(c.translation, services) {
					continue
				}
				switch err := d.destroy(family, c.id); {
				case errors.Is(err, unix.ENOENT): // its owner was faster
				case err != nil:
					return err
				default:
					released++
				}
			}
		}
		return nil
	})
	if err != nil {
		return released, fmt.Errorf("release sockets of %s: %w", n.Path, err)
	}
	return released, nil
}

// left reports whether the backend is not the Service's any more.
func left(t bpf.SockTranslation, services map[datapath.Frontend]*datapath.Service) bool {
	at := func(a [16]uint8) netip.Addr { return netip.AddrFrom16(a).Unmap() }
	s := services[datapath.Frontend{Addr: at(t.Service), Protocol: datapath.UDP, Port: t.ServicePort}]
	return s == nil || !slices.Contains(s.Backends, netip.AddrPortFrom(at(t.Backend), t.BackendPort))
}

// decode is a translation as the kernel has it.
func decode(b []byte) (t bpf.SockTranslation, ok bool) {
	if len(b) < int(unsafe.Sizeof(t)) {
		return t, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&t)), unsafe.Sizeof(t)), b)
	return t, true
}
