package maps

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// Counts of rules out of force leave the kernel's table and are still told; those of
// rules in force stay.
func TestDenialsOfRulesOutOfForceAreRetired(t *testing.T) {
	k := openQuiet(t, pinMaps(t, map[string]uint32{bpf.WeirMapDenialCounts: 5}))
	s := state()
	s.Rulesets[7] = datapath.Ruleset{Default: 900}
	commitState(t, k, s)
	counts := k.maps[bpf.WeirMapDenialCounts]
	cpus := ebpf.MustPossibleCPU()
	put := func(rule uint32, packets uint64) {
		perCPU := make([]bpf.WeirDenialCount, cpus)
		perCPU[0], perCPU[cpus-1] = bpf.WeirDenialCount{Packets: packets - 1, Bytes: 40}, bpf.WeirDenialCount{Packets: 1, Bytes: 2}
		must(t, counts.Put(bpf.WeirDenialCountKey{Rule: rule, Reason: 1}, perCPU))
	}
	put(900, 5)
	put(901, 3)
	put(0, 9)
	must(t, k.retireDenials())
	for rule, want := range map[uint32]bool{900: true, 901: false, 0: true} {
		var perCPU []bpf.WeirDenialCount
		if err := counts.Lookup(bpf.WeirDenialCountKey{Rule: rule, Reason: 1}, &perCPU); (err == nil) != want {
			t.Errorf("rule %d in the table: %v, want %v", rule, err == nil, want)
		}
	}
	put(901, 4) // it came back
	denials, err := k.Denials()
	must(t, err)
	got := map[uint32]uint64{}
	for _, d := range denials {
		got[d.Rule] = d.Packets
	}
	if got[900] != 5 || got[901] != 7 || got[0] != 9 {
		t.Errorf("denials %v, want 900: 5, 901: 3 + 4, 0: 9", got)
	}
}
