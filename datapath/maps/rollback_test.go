package maps

import (
	"slices"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// A commit that fails while it writes leaves what was in force, in an epoch of its own:
// programs may have seen a frontend that is none, and remember denials by what they saw.
func TestAFailedWriteIsForgotten(t *testing.T) {
	const room = 16
	k := openQuiet(t, pinMaps(t, map[string]uint32{bpf.WeirMapFrontends: room}))
	frontend := func(port uint16) datapath.Frontend {
		return datapath.Frontend{Addr: prefix("10.96.0.1/32").Addr(), Port: port, Protocol: datapath.TCP}
	}
	s := state()
	s.Frontends[frontend(1)] = struct{}{}
	epoch := commitState(t, k, s)
	frontends := k.frontends.m
	others := []uint16{}
	for port := uint16(100); frontends.Put(encodeFrontend(frontend(port)), uint32(1)) == nil; port++ {
		others = append(others, port)
	}
	if len(others) < room-1 {
		t.Fatalf("only %d frontends found room", len(others))
	}
	more := state()
	more.Frontends[frontend(1)] = struct{}{}
	more.Frontends[frontend(2)] = struct{}{}
	if _, err := k.Commit(more); err == nil {
		t.Fatal("a commit into a full map went well")
	}
	if k.Epoch() <= epoch {
		t.Errorf("epoch %d after a failed write in epoch %d: what was seen meanwhile is remembered", k.Epoch(), epoch)
	}
	var one uint32
	must(t, frontends.Lookup(encodeFrontend(frontend(1)), &one))
	for _, port := range others {
		must(t, frontends.Delete(encodeFrontend(frontend(port))))
	}
	damaged, err := k.Recheck()
	must(t, err)
	if slices.Contains(damaged, MapControl) {
		t.Errorf("the epoch of a failed commit counts as damage: %v", damaged)
	}
	epoch = k.Epoch()
	if got := commitState(t, k, more); got != epoch+1 {
		t.Errorf("epoch %d once there was room, want %d", got, epoch+1)
	}
}
