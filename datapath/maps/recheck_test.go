package maps

import (
	"os"
	"strings"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// damages are what another process may do to the maps of an agent that runs.
var damages = map[string]struct {
	named string
	do    func(t *testing.T, k *Kernel)
}{
	"ruleset turned to allow": {"rulesets", func(t *testing.T, k *Kernel) {
		must(t, k.rulesets.keys.m.Put(uint32(1), bpf.WeirRuleset{DefaultRule: 300, Allow: 1, Exact: 1, WideCount: 1}))
	}},
	"exact group gone": {"exact_groups", func(t *testing.T, k *Kernel) {
		must(t, k.rulesets.exact.m.Delete(bpf.WeirExactKey{Ruleset: 1, Port: 80, Protocol: 6}))
	}},
	"wide group changed": {"port_groups", func(t *testing.T, k *Kernel) {
		must(t, k.rulesets.groups.Put(uint32(0), bpf.WeirPortGroup{Rules: 1 << 30}))
	}},
	"span changed": {"port_groups", func(t *testing.T, k *Kernel) {
		k.rulesets.spans.at(k.rulesets.placed[2].spans.start+3).store(1, ^uint64(0))
	}},
	"mask changed": {"peer_masks", func(t *testing.T, k *Kernel) {
		must(t, k.masks.m.Put(bpf.WeirMaskKey{Ruleset: 2, Identity: 256}, datapath.Mask{1}))
	}},
	"rule id changed": {"port_groups", func(t *testing.T, k *Kernel) { k.rulesets.rules.at(0).store(0, 999) }},
	"fact gone":       {"facts", func(t *testing.T, k *Kernel) { must(t, k.facts.m.Delete(bpf.WeirFactKey{Set: 1, Identity: 256})) }},
	"fact too many": {"facts", func(t *testing.T, k *Kernel) {
		must(t, k.facts.m.Put(bpf.WeirFactKey{Set: 1, Identity: 9}, uint32(0)))
	}},
	"endpoint's word": {"endpoints", func(t *testing.T, k *Kernel) { slots{k.endpoints.memory.at(1)}.set(0, 77, k.Epoch()) }},
	"endpoint gone":   {"endpoint_index", func(t *testing.T, k *Kernel) { must(t, k.endpoints.numbers.m.Delete(uint32(5))) }},
	"address's word": {"peers", func(t *testing.T, k *Kernel) {
		i, _ := k.peers.index(prefix("10.0.0.1/32"))
		slots{k.peers.memory.at(i)}.set(0, 666, k.Epoch())
	}},
	"address gone": {"addresses", func(t *testing.T, k *Kernel) {
		must(t, k.peers.addresses.m.Delete(encodeAddress(prefix("10.0.0.1/32"))))
	}},
	"node trusted with another's pods": {"origins", func(t *testing.T, k *Kernel) {
		must(t, k.origins.m.Put(encodePrefix(prefix("10.1.0.0/24")), bpf.WeirOrigin{Node: 9}))
	}},
	"epoch turned back": {"control", func(t *testing.T, k *Kernel) { k.control.store(controlEpoch, 1) }},
	"pin gone":          {"pin of facts", func(t *testing.T, k *Kernel) { must(t, os.Remove(Path(k.dir, bpf.WeirMapFacts))) }},
}

func TestRecheckFindsDamageAndCommitRepairsIt(t *testing.T) {
	want := oneOfEach()
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			k := openQuiet(t, pinMaps(t, nil))
			commitState(t, k, want)
			must(t, k.Settle())
			if found, err := k.Recheck(); err != nil || len(found) != 0 {
				t.Fatalf("nothing was done, and found: %v, %v", found, err)
			}
			before := snapshot(t, k)
			damage.do(t, k)
			found, err := k.Recheck()
			must(t, err)
			if !strings.Contains(strings.Join(found, ", "), damage.named) {
				t.Errorf("found %v, want %s", found, damage.named)
			}
			commitState(t, k, want)
			must(t, k.Settle())
			if after := snapshot(t, k); after != before {
				t.Errorf("after the repair:\n%s\nwant:\n%s", after, before)
			}
			if found, err := k.Recheck(); err != nil || len(found) != 0 {
				t.Errorf("after the repair: %v, %v", found, err)
			}
		})
	}
}
