package maps

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// Nodes come, change their numbers and go, without a new epoch; an agent that starts
// finds what is there.
func TestOriginsFollowTheState(t *testing.T) {
	dir := pinMaps(t, nil)
	k := openQuiet(t, dir)
	s := state()
	for i, step := range []map[netip.Prefix]datapath.Origin{
		{prefix("192.0.2.2/32"): {Node: 7, Address: true}, prefix("10.0.2.0/24"): {Node: 7}, prefix("fd00:2::/64"): {Node: 7}},
		{prefix("192.0.2.2/32"): {Node: 7, Address: true}, prefix("10.0.2.0/24"): {Node: 8}},
		{},
		{prefix("0.0.0.0/0"): {Node: 1}, prefix("::/0"): {Node: 2}},
	} {
		fresh := *s
		fresh.Origins = step
		before := k.Epoch()
		if epoch := commitState(t, k, &fresh); epoch != before {
			t.Errorf("step %d: epoch %d after %d", i, epoch, before)
		}
		must(t, k.Settle())
		got := map[netip.Prefix]datapath.Origin{}
		for key, o := range dump[bpf.WeirPrefixKey, bpf.WeirOrigin](t, k.origins.m) {
			got[decodePrefix(key)] = datapath.Origin{Node: o.Node, Address: o.Address == 1}
		}
		if !maps.Equal(got, step) {
			t.Errorf("step %d: the kernel has %v, want %v", i, got, step)
		}
	}
	again := openQuiet(t, dir)
	last := state()
	last.Origins = map[netip.Prefix]datapath.Origin{prefix("0.0.0.0/0"): {Node: 1}}
	commitState(t, again, last)
	must(t, again.Settle())
	if n := len(dump[bpf.WeirPrefixKey, bpf.WeirOrigin](t, again.origins.m)); n != 1 {
		t.Errorf("%d origins after an adoption, want 1", n)
	}
}
