package maps

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// waysThere are the kernel's.
func waysThere(t *testing.T, k *Kernel) map[datapath.WayKey]datapath.Way {
	t.Helper()
	out := map[datapath.WayKey]datapath.Way{}
	for key, w := range dump[uint32, bpf.WeirWay](t, k.ways.m) {
		at := datapath.WayKey{Node: w.Node, V6: key&uint32(bpf.WeirWayKeyWAY_V6) != 0}
		if wayKey(at) != key {
			t.Errorf("the way to node %#x has the key %#x", w.Node, key)
		}
		out[at] = datapath.Way{Ifindex: w.Ifindex, MTU: w.Mtu, Addr: address(w.Addr, w.Family), Tunnel: w.Tunnel == 1}
	}
	return out
}

// Ways come, lead elsewhere and go without a new epoch; an agent that starts finds what is there.
func TestWaysFollowTheState(t *testing.T) {
	dir := pinMaps(t, nil)
	k := openQuiet(t, dir)
	s := state()
	four, six := datapath.WayKey{Node: 7<<32 | 7}, datapath.WayKey{Node: 7<<32 | 7, V6: true}
	for i, step := range []map[datapath.WayKey]datapath.Way{
		{four: {Ifindex: 3, MTU: 1500, Addr: addr("192.0.2.2")}, six: {Ifindex: 3, MTU: 1500, Addr: addr("2001:db8::2")}},
		{four: {Ifindex: 3, MTU: 1450, Addr: addr("192.0.2.3")}, six: {Ifindex: 3, MTU: 1500, Addr: addr("2001:db8::2")}},
		{},
		{four: {Ifindex: 9, MTU: 1450, Addr: addr("192.0.2.2"), Tunnel: true}, six: {Ifindex: 9, MTU: 1450, Addr: addr("192.0.2.2"), Tunnel: true}},
	} {
		fresh := *s
		fresh.Ways = step
		before := k.Epoch()
		epoch, err := k.CommitDelta(&fresh, &datapath.Delta{Ways: true})
		must(t, err)
		if i > 0 && epoch != before {
			t.Errorf("step %d: epoch %d after %d", i, epoch, before)
		}
		must(t, k.Settle())
		if got := waysThere(t, k); !maps.Equal(got, step) {
			t.Errorf("step %d: the kernel has %v, want %v", i, got, step)
		}
	}
	again := openQuiet(t, dir)
	commitState(t, again, s)
	must(t, again.Settle())
	if got := waysThere(t, again); len(got) != 0 {
		t.Errorf("%v after an adoption, want none", got)
	}
}

// Where two nodes have one key, and where more nodes are than fit, those whose ways are there keep
// them, and the others have none.
func TestWaysOfTooManyNodes(t *testing.T) {
	k := openQuiet(t, pinMaps(t, map[string]uint32{bpf.WeirMapWays: 4}))
	commit := func(nodes ...uint64) map[datapath.WayKey]datapath.Way {
		t.Helper()
		s := state()
		s.Ways = map[datapath.WayKey]datapath.Way{}
		for _, n := range nodes {
			s.Ways[datapath.WayKey{Node: n}] = datapath.Way{Ifindex: uint32(n), MTU: 1500, Addr: addr("192.0.2.2")}
		}
		commitState(t, k, s)
		must(t, k.Settle())
		return waysThere(t, k)
	}
	has := func(ways map[datapath.WayKey]datapath.Way, nodes ...uint64) {
		t.Helper()
		for _, n := range nodes {
			if w := ways[datapath.WayKey{Node: n}]; w.Ifindex != uint32(n) {
				t.Errorf("node %#x has the way %v of %v", n, w, ways)
			}
		}
		if len(ways) != len(nodes) {
			t.Errorf("ways are %v, want those to %#x", ways, nodes)
		}
	}
	const twin = 1 << 32
	has(commit(twin|8), twin|8)
	has(commit(twin|8, 8, 9), twin|8)
	has(commit(8), 8)
	has(commit(20, 22, 24, 26), 20, 22, 24) // 8's is there until a grace has gone
	has(commit(20, 22, 24, 26), 20, 22, 24, 26)
	has(commit(2, 20, 22, 24, 26, 28), 20, 22, 24, 26)
	has(commit(2, 20, 22, 24, 28), 20, 22, 24)
	has(commit(2, 20, 22, 24, 28), 2, 20, 22, 24)
	has(commit(2, 20, 22), 2, 20, 22)
	has(commit(2, 20, 22, 30), 2, 20, 22, 30)
}
