package maps

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/sandbox"
)

// pinMaps pins fresh maps of the programs' specs, some of other sizes, in epoch 1.
func pinMaps(t testing.TB, sizes map[string]uint32) string {
	t.Helper()
	dir := filepath.Join(sandbox.BPFFS(t), "weir")
	must(t, rlimit.RemoveMemlock())
	must(t, os.MkdirAll(filepath.Join(dir, "maps"), 0o700))
	spec, err := bpf.LoadWeir()
	must(t, err)
	sock, err := bpf.LoadSock()
	must(t, err)
	for _, name := range []string{bpf.SockMapNetnsEndpoints, bpf.SockMapServices, bpf.SockMapServiceLists, bpf.SockMapBackends} {
		spec.Maps[name] = sock.Maps[name]
	}
	for name, ms := range spec.Maps {
		pin := name
		if name == ".data.control" {
			pin, ms.Flags = MapControl, ms.Flags|1<<10 // BPF_F_MMAPABLE
		} else if strings.HasPrefix(name, ".") {
			continue
		}
		if size, ok := sizes[name]; ok {
			ms.MaxEntries = size
		}
		m, err := ebpf.NewMap(ms)
		must(t, err)
		must(t, m.Pin(Path(dir, pin)))
		must(t, m.Close())
	}
	m, err := ebpf.LoadPinnedMap(Path(dir, MapControl), nil)
	must(t, err)
	must(t, m.Put(uint32(0), bpf.WeirControl{Epoch: 1}))
	must(t, m.Close())
	return dir
}

// openQuiet opens the maps without background collection: old readers see what they saw
// until Settle.
func openQuiet(t testing.TB, dir string) *Kernel {
	t.Helper()
	k, err := Open(dir)
	must(t, err)
	k.collecting = true
	t.Cleanup(func() { k.Close() })
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func commitState(t testing.TB, k *Kernel, s *datapath.State) uint64 {
	t.Helper()
	epoch, err := k.Commit(s)
	must(t, err)
	return epoch
}

// meaning is what programs take an address for.
type meaning struct {
	word     uint64
	endpoint uint64
}

// lookup is bpf/peer.h's peer_at, in a given epoch.
func lookup(t testing.TB, k *Kernel, addr netip.Addr, epoch uint64) (m meaning) {
	t.Helper()
	single := netip.PrefixFrom(addr, addr.BitLen())
	read := func(err error, index uint32) bool {
		if err != nil {
			return false
		}
		e := k.peers.memory.at(index)
		word, _, ok := slots{e}.read(epoch)
		if ok {
			m = meaning{word, e.load(peerEndpoint)}
		}
		return ok
	}
	var index uint32
	err := k.peers.addresses.m.Lookup(encodeAddress(single), &index)
	if read(err, index) {
		return m
	}
	key := encodePrefix(single)
	key.Length = 8 + 128
	err = k.peers.prefixes.m.Lookup(key, &index)
	read(err, index)
	return m
}

// expected is what a State says of an address.
func expected(s *datapath.State, addr netip.Addr) meaning {
	for bits := addr.BitLen(); bits >= 0; bits-- {
		if p, ok := s.Peers[netip.PrefixFrom(addr, bits).Masked()]; ok {
			return meaning{peerWord(p), uint64(p.Endpoint)}
		}
	}
	return meaning{}
}

func state() *datapath.State {
	return &datapath.State{
		Endpoints: map[uint32]datapath.Endpoint{}, Peers: map[netip.Prefix]datapath.Peer{},
		Facts: map[datapath.Fact]uint32{}, Rulesets: map[uint32]datapath.Ruleset{},
		Frontends: map[datapath.Frontend]struct{}{}, Services: map[datapath.Frontend]*datapath.Service{},
		Origins: map[netip.Prefix]datapath.Origin{},
	}
}

func peersOf(pairs ...any) map[netip.Prefix]datapath.Peer {
	out := map[netip.Prefix]datapath.Peer{}
	for i := 0; i < len(pairs); i += 2 {
		x := pairs[i].(string)
		if !strings.Contains(x, "/") {
			a := netip.MustParseAddr(x)
			out[netip.PrefixFrom(a, a.BitLen())] = datapath.Peer{Identity: identity.Number(pairs[i+1].(int))}
			continue
		}
		out[netip.MustParsePrefix(x)] = datapath.Peer{Identity: identity.Number(pairs[i+1].(int))}
	}
	return out
}

func dump[K comparable, V any](t testing.TB, m *ebpf.Map) map[K]V {
	t.Helper()
	out := map[K]V{}
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		out[key] = value
	}
	must(t, entries.Err())
	return out
}
