package maps

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
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
	"way to another node": {"ways", func(t *testing.T, k *Kernel) {
		must(t, k.ways.m.Put(uint32(6), encodeWay(datapath.WayKey{Node: 7}, datapath.Way{Addr: addr("192.0.2.66")})))
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

// Of many addresses each look sees a part; what happens meanwhile is neither damage nor hides it.
func TestRecheckOfManyAddressesComesAround(t *testing.T) {
	for name, damage := range map[string]struct {
		named string
		do    func(k *Kernel) error
	}{
		"address gone": {bpf.WeirMapAddresses, func(k *Kernel) error { return k.peers.addresses.m.Delete(encodeAddress(prefix("10.0.0.7/32"))) }},
		"address too many": {bpf.WeirMapAddresses, func(k *Kernel) error {
			return k.peers.addresses.m.Put(encodeAddress(prefix("10.9.0.0/32")), uint32(1))
		}},
		"address's word": {bpf.WeirMapPeers, func(k *Kernel) error {
			i, _ := k.peers.index(prefix("10.0.0.7/32"))
			slots{k.peers.memory.at(i)}.set(0, 666, k.Epoch())
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			k := openQuiet(t, pinMaps(t, nil))
			k.peers.atOnce = 1 // the rest of a bucket, or 64, come with it
			s := state()
			for i := range 1000 {
				s.Peers[prefix(fmt.Sprintf("10.0.%d.%d/32", i/250, i%250))] = datapath.Peer{Identity: 256}
			}
			commitState(t, k, s)
			must(t, k.Settle())
			churn := func(round int) {
				for i := range 10 {
					x := prefix(fmt.Sprintf("10.1.%d.%d/32", round+1, i))
					s.Peers[x] = datapath.Peer{Identity: 257}
					gone := prefix(fmt.Sprintf("10.1.%d.%d/32", max(round-3, 0), i))
					delete(s.Peers, gone)
					_, err := k.CommitDelta(s, &datapath.Delta{Peers: []netip.Prefix{x, gone}})
					must(t, err)
				}
			}
			for round := range 40 {
				churn(round)
				if found, err := k.Recheck(); err != nil || len(found) != 0 {
					t.Fatalf("round %d: nothing was done, and found: %v, %v", round, found, err)
				}
				if round == 0 && k.peers.looked == nil {
					t.Fatal("it looked at all addresses at once")
				}
			}
			must(t, damage.do(k))
			for round := range 20 {
				churn(40 + round)
				found, err := k.Recheck()
				must(t, err)
				if len(found) == 0 {
					continue
				}
				if !slices.Contains(found, damage.named) {
					t.Errorf("found %v, want %s", found, damage.named)
				}
				commitState(t, k, s)
				must(t, k.Settle())
				if left := k.left(t, s); left != "" {
					t.Errorf("after the repair: %s", left)
				}
				return
			}
			t.Error("not found, twice around")
		})
	}
}

// BenchmarkRecheck is a round among so many addresses, and what part of them it looks at.
func BenchmarkRecheck(b *testing.B) {
	for _, n := range []int{100, 10000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := openQuiet(b, pinMaps(b, map[string]uint32{bpf.WeirMapAddresses: 1 << 18, bpf.WeirMapPeers: 1 << 18}))
			s := state()
			for i := range n {
				s.Peers[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)] = datapath.Peer{Identity: 256}
			}
			commitState(b, k, s)
			must(b, k.Settle())
			for b.Loop() {
				if found, err := k.Recheck(); err != nil || len(found) > 0 {
					b.Fatal(found, err)
				}
			}
		})
	}
}
