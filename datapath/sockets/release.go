package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

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
	translated *ebpf.Map // connected UDP sockets, by cookie
}

// Open takes the programs' memory of sockets from a set of maps below bpffsDir.
func Open(bpffsDir, set string) (*Sockets, error) {
	path := maps.PathIn(bpffsDir, set, bpf.SockMapUdpSockets)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", path, err)
	}
	return &Sockets{m}, nil
}

// Close lets go of it.
func (s *Sockets) Close() error { return s.translated.Close() }

// Left reports whether any socket may stand on a backend that its Service does not have
// any more; one that was closed since counts, too.
func (s *Sockets) Left(services map[datapath.Frontend]*datapath.Service) (bool, error) {
	var cookie uint64
	var t bpf.SockTranslation
	entries := s.translated.Iterate()
	for entries.Next(&cookie, &t) {
		if left(t, services) {
			return true, nil
		}
	}
	switch err := entries.Err(); {
	case errors.Is(err, ebpf.ErrIterationAborted): // too many come and go: look closer
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read map %s: %w", bpf.SockMapUdpSockets, err)
	}
	return false, nil
}

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
			n, err := s.release(d, family, services)
			released += n
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return released, fmt.Errorf("release sockets of %s: %w", n.Path, err)
	}
	return released, nil
}

func (s *Sockets) release(d *diag, family uint8, services map[datapath.Frontend]*datapath.Service) (released int, err error) {
	all, err := d.connectedUDP(family)
	if err != nil {
		return 0, err
	}
	for _, id := range all {
		var t bpf.SockTranslation
		if err := s.translated.Lookup(id.cookie(), &t); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		} else if err != nil {
			return released, fmt.Errorf("read map %s: %w", bpf.SockMapUdpSockets, err)
		}
		if backendOf(t) != id.remote(family) || !left(t, services) {
			continue // connected anew since, or all is well
		}
		if err := d.destroy(family, id); err == nil {
			released++
		} else if !errors.Is(err, unix.ENOENT) { // its owner was faster
			return released, err
		}
	}
	return released, nil
}

func backendOf(t bpf.SockTranslation) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(t.Backend).Unmap(), t.BackendPort)
}

// left reports whether the backend is not the Service's any more.
func left(t bpf.SockTranslation, services map[datapath.Frontend]*datapath.Service) bool {
	s := services[datapath.Frontend{Addr: netip.AddrFrom16(t.Service).Unmap(), Protocol: datapath.UDP, Port: t.ServicePort}]
	return s == nil || !slices.Contains(s.Backends, backendOf(t))
}
