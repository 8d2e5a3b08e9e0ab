package policy

import (
	"fmt"

	"github.com/weirnet/weir/datapath"
)

// Remembered is what the Allocator has wrong about what is in use.
func (x *Incremental) Remembered() string {
	a := x.ids
	rules := map[uint32]bool{}
	for id, r := range x.state.Rulesets {
		if _, there := a.rulesets.keys[id]; !there {
			return fmt.Sprintf("ruleset %d is forgotten", id)
		}
		rules[r.Default] = true
		for _, g := range r.Groups {
			for _, id := range g.Rules {
				rules[id] = true
			}
			for _, set := range []uint32{g.Set, g.PortName} {
				if _, there := a.sets.keys[set]; set != 0 && !there {
					return fmt.Sprintf("set %d is forgotten", set)
				}
			}
		}
	}
	for id := range rules {
		_, resting := a.idleRules.since[id]
		if _, there := a.rules[id]; id >= datapath.RuleFirst && (!there || resting) {
			return fmt.Sprintf("rule %d is forgotten, or will be", id)
		}
	}
	for n := range x.identities {
		_, resting := a.idleLabels.since[n]
		if _, there := a.identities[n]; !there || resting {
			return fmt.Sprintf("identity %d is forgotten, or will be", n)
		}
	}
	for p, n := range x.result.Blocks {
		if a.blocks[p] != n || a.cidrs[n] != p {
			return fmt.Sprintf("block %s is forgotten", p)
		}
	}
	resting := len(a.ruleIDs.IDs) - len(a.idleRules.since)
	for _, count := range []struct {
		name      string
		got, want int
	}{
		{"rulesets", len(a.rulesets.IDs), len(x.state.Rulesets)}, {"sets", len(a.sets.IDs), len(x.sets)},
		{"rules", resting, x.ruleCount(rules)}, {"identities", len(a.identities) - len(a.idleLabels.since), len(x.identities)},
		{"blocks", len(a.blocks), len(x.result.Blocks)},
	} {
		if count.got != count.want {
			return fmt.Sprintf("%d %s are remembered, %d are in use", count.got, count.name, count.want)
		}
	}
	return ""
}

func (x *Incremental) ruleCount(rules map[uint32]bool) (n int) {
	for id := range rules {
		if id >= datapath.RuleFirst {
			n++
		}
	}
	return n
}
