package maps

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// translations is what programs find, address and port by address and port.
func translations(t *testing.T, k *Kernel) map[string]string {
	t.Helper()
	out := map[string]string{}
	for key, i := range dump[bpf.WeirFrontendKey, uint32](t, k.maps[bpf.SockMapServices]) {
		start := uint32(k.services.lists.at(i).load(0))
		if start == 0 {
			continue
		}
		f := decodeFrontend(key)
		s, ok := k.services.read(k.services.named(i), family(f.Addr))
		if !ok {
			t.Errorf("%v leads to no list", f)
			continue
		}
		out[fmt.Sprintf("%s/%d/%d", f.Addr, f.Protocol, f.Port)] = describeService(s)
	}
	return out
}

func describeService(s *datapath.Service) string {
	return strings.Trim(fmt.Sprint(s.ID, s.Affinity, s.Backends), "[]")
}

func wantTranslations(s *datapath.State) map[string]string {
	out := map[string]string{}
	for f, service := range s.Services {
		out[fmt.Sprintf("%s/%d/%d", f.Addr, f.Protocol, f.Port)] = describeService(service)
	}
	return out
}

func vip(addr string, port uint16) datapath.Frontend {
	return datapath.Frontend{Addr: netip.MustParseAddr(addr), Protocol: datapath.TCP, Port: port}
}

func serviceOf(id uint64, backends ...string) *datapath.Service {
	s := &datapath.Service{ID: id, Affinity: uint32(id) * 10}
	for _, b := range backends {
		s.Backends = append(s.Backends, netip.MustParseAddrPort(b))
	}
	return s
}

func TestServicesAreWrittenChangedAndAdopted(t *testing.T) {
	dir := pinMaps(t, nil)
	k := openQuiet(t, dir)
	web := serviceOf(1, "10.0.0.1:80", "10.0.0.2:80")
	states := []map[datapath.Frontend]*datapath.Service{
		{vip("10.96.0.1", 80): web, vip("192.0.2.7", 80): web, vip("10.96.0.2", 53): serviceOf(2)},
		{vip("10.96.0.1", 80): serviceOf(1, "10.0.0.2:80"), vip("192.0.2.7", 80): web, vip("fd96::1", 80): serviceOf(3, "[fd00::1]:8080")},
		{},
		{vip("10.96.0.1", 80): web},
	}
	for i, services := range states {
		s := state()
		s.Services = services
		epoch := k.Epoch()
		if got := commitState(t, k, s); got != epoch {
			t.Errorf("state %d moved the epoch", i)
		}
		if got, want := translations(t, k), wantTranslations(s); !maps.Equal(got, want) {
			t.Fatalf("state %d: %v, want %v", i, got, want)
		}
		// Another agent takes over what is there, and has nothing to change.
		must(t, k.Close())
		k = openQuiet(t, dir)
		if d := k.services.diff(services, nil); len(d.words)+len(d.added)+len(d.lists) > 0 {
			t.Fatalf("state %d, adopted: %+v", i, d)
		}
		commitState(t, k, s)
		if got, want := translations(t, k), wantTranslations(s); !maps.Equal(got, want) {
			t.Fatalf("state %d, adopted: %v, want %v", i, got, want)
		}
		if i%2 == 1 {
			must(t, k.Settle())
		}
	}
	must(t, k.Settle())
	if got := len(k.services.space.used); got != 2 { // index 0 and web's list
		t.Errorf("%d extents are in use, want 2", got)
	}
	if got, want := len(k.services.free), int(k.services.lists.count)-2; got != want {
		t.Errorf("%d places are free, want %d", got, want)
	}
}

// A list that programs may be reading says the same until a grace has passed.
func TestListsAreNotReusedBeforeAGrace(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	s := state()
	s.Services = map[datapath.Frontend]*datapath.Service{vip("10.96.0.1", 80): serviceOf(1, "10.0.0.1:80")}
	commitState(t, k, s)
	old := k.services.named(k.services.keys.applied[vip("10.96.0.1", 80)])
	for i := range 5 {
		next := state()
		next.Services = map[datapath.Frontend]*datapath.Service{vip("10.96.0.1", 80): serviceOf(1, fmt.Sprintf("10.0.1.%d:80", i))}
		commitState(t, k, next)
	}
	if was, ok := k.services.read(old, 4); !ok || describeService(was) != describeService(s.Services[vip("10.96.0.1", 80)]) {
		t.Errorf("the first list now says %v", was)
	}
	must(t, k.Settle())
	if got := len(k.services.space.used); got != 2 {
		t.Errorf("%d extents are in use, want 2", got)
	}
}

// What does not fit changes nothing; lists that are only waiting for a grace make room.
func TestServicesThatDoNotFit(t *testing.T) {
	k := openQuiet(t, pinMaps(t, map[string]uint32{bpf.SockMapBackends: 8}))
	s := state()
	s.Services = map[datapath.Frontend]*datapath.Service{vip("10.96.0.1", 80): serviceOf(1, "10.0.0.1:80", "10.0.0.2:80")}
	commitState(t, k, s)
	before := translations(t, k)
	big := state()
	big.Services = map[datapath.Frontend]*datapath.Service{
		vip("10.96.0.1", 80): serviceOf(1, "10.0.0.1:80"), vip("10.96.0.2", 80): serviceOf(2, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"),
	}
	_, err := k.Commit(big)
	full := &datapath.FullError{}
	if !errors.As(err, &full) || full.Map != bpf.SockMapBackends {
		t.Fatalf("%v, want backends to be full", err)
	}
	if got := translations(t, k); !maps.Equal(got, before) {
		t.Errorf("after a failed commit: %v, want %v", got, before)
	}
	for _, backend := range []string{"10.0.0.5:80", "10.0.0.6:80", "10.0.0.7:80"} {
		next := state()
		next.Services = map[datapath.Frontend]*datapath.Service{vip("10.96.0.1", 80): serviceOf(1, backend, "10.0.0.9:80")}
		commitState(t, k, next)
		if got, want := translations(t, k), wantTranslations(next); !maps.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	}
}

// Sockets are told by their network namespace; of two endpoints in one the lower counts.
func TestNamespacesOfEndpoints(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	s := state()
	s.Endpoints[3] = datapath.Endpoint{Ifindex: 3, NetnsCookie: 77}
	s.Endpoints[2] = datapath.Endpoint{Ifindex: 2, NetnsCookie: 77}
	s.Endpoints[5] = datapath.Endpoint{Ifindex: 5}
	commitState(t, k, s)
	if got := dump[uint64, uint32](t, k.maps[bpf.SockMapNetnsEndpoints]); !maps.Equal(got, map[uint64]uint32{77: 2}) {
		t.Errorf("%v", got)
	}
	commitState(t, k, state())
	must(t, k.Settle())
	if got := dump[uint64, uint32](t, k.maps[bpf.SockMapNetnsEndpoints]); len(got) != 0 {
		t.Errorf("%v stay", got)
	}
}

// What others did to the lists is noticed and mended.
func TestRecheckOfServices(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	s := state()
	s.Services = map[datapath.Frontend]*datapath.Service{vip("10.96.0.1", 80): serviceOf(1, "10.0.0.1:80"), vip("10.96.0.2", 80): serviceOf(2)}
	commitState(t, k, s)
	for name, damage := range map[string]func(){
		bpf.SockMapBackends: func() {
			k.services.memory.at(k.services.placed[content(s.Services[vip("10.96.0.1", 80)])].start+1).store(backendEnd, 81)
		},
		bpf.SockMapServiceLists: func() { k.services.lists.at(k.services.keys.applied[vip("10.96.0.2", 80)]).store(0, 0) },
		bpf.SockMapServices: func() {
			must(t, k.maps[bpf.SockMapServices].Delete(encodeFrontend(vip("10.96.0.1", 80))))
		},
	} {
		damage()
		damaged, err := k.Recheck()
		must(t, err)
		if !slices.Contains(damaged, name) {
			t.Errorf("%s was changed; found %q", name, damaged)
		}
		commitState(t, k, s)
		if got, want := translations(t, k), wantTranslations(s); !maps.Equal(got, want) {
			t.Errorf("%s was not mended: %v, want %v", name, got, want)
		}
	}
}
