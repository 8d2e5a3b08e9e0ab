package maps

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func pod(ifindex, egress, ingress uint32) datapath.Endpoint {
	return datapath.Endpoint{
		Ifindex: ifindex, MAC: [6]byte{2, 0, 0, 0, 0, byte(ifindex)}, NetnsCookie: 77, NoRedirect: true,
		Addr4: netip.MustParseAddr("10.0.0.1"), Addr6: netip.MustParseAddr("fd00::1"), Egress: egress, Ingress: ingress,
	}
}

func endpointState(endpoints map[uint32]datapath.Endpoint) *datapath.State {
	s := state()
	s.Endpoints = endpoints
	for id := uint32(1); id < 9; id++ {
		s.Rulesets[id] = datapath.Ruleset{Default: 300}
	}
	return s
}

func wordAt(k *Kernel, n uint32, epoch uint64) uint64 {
	word, _, _ := slots{k.endpoints.memory.at(n)}.read(epoch)
	return word
}

func TestEndpointComesChangesAndGoes(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	first := k.Epoch()
	k.FlowShare = 100

	added := commitState(t, k, endpointState(map[uint32]datapath.Endpoint{3: pod(7, 1, 2)}))
	if added != first+1 || wordAt(k, 3, first) != 0 || wordAt(k, 3, added) != 1|2<<32 {
		t.Errorf("added in epoch %d: word %#x, then %#x", added, wordAt(k, 3, first), wordAt(k, 3, added))
	}
	var e bpf.WeirEndpoint
	must(t, k.maps[bpf.WeirMapEndpoints].Lookup(uint32(3), &e))
	want := bpf.WeirEndpoint{Slots: e.Slots, Ifindex: 7, Flags: 1, NetnsCookie: 77, Mac: [8]uint8{2, 0, 0, 0, 0, 7},
		Addr4: [16]uint8{10: 0xff, 11: 0xff, 12: 10, 15: 1}, Addr6: [16]uint8{0xfd, 15: 1}}
	if e != want {
		t.Errorf("endpoint is %+v, want %+v", e, want)
	}
	if got, want := k.control.load(controlBorrowLimit), uint64(131072-100); got != want {
		t.Errorf("borrow limit %d, want %d", got, want)
	}

	changed := commitState(t, k, endpointState(map[uint32]datapath.Endpoint{3: pod(7, 4, 2)}))
	if changed != added+1 || wordAt(k, 3, added) != 1|2<<32 || wordAt(k, 3, changed) != 4|2<<32 {
		t.Errorf("changed in epoch %d: word %#x, then %#x", changed, wordAt(k, 3, added), wordAt(k, 3, changed))
	}
	gone := commitState(t, k, endpointState(nil))
	if gone != changed+1 || wordAt(k, 3, changed) != 4|2<<32 || wordAt(k, 3, gone) != 0 {
		t.Errorf("removed in epoch %d: word %#x, then %#x", gone, wordAt(k, 3, changed), wordAt(k, 3, gone))
	}
	must(t, k.Settle())
	if !k.endpoints.memory.at(3).zero() || len(dump[uint32, uint32](t, k.endpoints.numbers.m)) != 0 {
		t.Error("something is left of the endpoint after the grace")
	}
}

// A number, or an interface's index, that is taken again at once is another endpoint's.
func TestEndpointNumberIsTakenAgain(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	commitState(t, k, endpointState(map[uint32]datapath.Endpoint{3: pod(7, 1, 2)}))
	commitState(t, k, endpointState(nil))
	epoch := commitState(t, k, endpointState(map[uint32]datapath.Endpoint{3: pod(8, 5, 6), 4: pod(7, 7, 8)}))
	must(t, k.Settle())
	numbers := dump[uint32, uint32](t, k.endpoints.numbers.m)
	if len(numbers) != 2 || numbers[8] != 3 || numbers[7] != 4 {
		t.Errorf("numbers by interface are %v", numbers)
	}
	if wordAt(k, 3, epoch) != 5|6<<32 || wordAt(k, 4, epoch) != 7|8<<32 {
		t.Errorf("words are %#x and %#x", wordAt(k, 3, epoch), wordAt(k, 4, epoch))
	}
	swapped := commitState(t, k, endpointState(map[uint32]datapath.Endpoint{4: pod(8, 5, 6), 3: pod(7, 7, 8)}))
	must(t, k.Settle())
	numbers = dump[uint32, uint32](t, k.endpoints.numbers.m)
	if numbers[7] != 3 || numbers[8] != 4 || wordAt(k, 3, swapped) != 7|8<<32 {
		t.Errorf("after the swap: numbers %v, words %#x and %#x", numbers, wordAt(k, 3, swapped), wordAt(k, 4, swapped))
	}
}

func TestImpossibleEndpointsAreRefused(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	for what, endpoints := range map[string]map[uint32]datapath.Endpoint{
		"number 0":                    {0: pod(7, 1, 1)},
		"number 1024":                 {1024: pod(7, 1, 1)},
		"no interface":                {1: pod(0, 1, 1)},
		"two endpoints, an interface": {1: pod(7, 1, 1), 2: pod(7, 1, 1)},
	} {
		if _, err := k.Commit(endpointState(endpoints)); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
}

// Many commits in a row, each with the background at work.
func TestBackgroundCollects(t *testing.T) {
	k, err := Open(pinMaps(t, nil))
	must(t, err)
	defer k.Close()
	for i := range uint32(50) {
		commitState(t, k, endpointState(map[uint32]datapath.Endpoint{1 + i%5: pod(7+i, 1, 2)}))
	}
	k.background.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.garbage() {
		t.Error("the background left something")
	}
	if n := len(dump[uint32, uint32](t, k.endpoints.numbers.m)); n != 1 {
		t.Errorf("%d interfaces are known, want 1", n)
	}
}
