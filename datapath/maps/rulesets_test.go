package maps

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

func randomRuleset(r *rand.Rand) datapath.Ruleset {
	out := datapath.Ruleset{Default: 300 + r.Uint32N(9), Allow: r.IntN(2) == 0}
	rules := func() (ids []uint32) {
		for range 1 + r.IntN(4) {
			ids = append(ids, 256+r.Uint32N(1000))
		}
		return ids
	}
	for port := range uint16(r.IntN(5)) {
		out.Groups = append(out.Groups, datapath.PortGroup{
			Protocol: datapath.TCP, Low: 80 + port, High: 80 + port, Set: 1 + r.Uint32N(5), Labels: true, Rules: rules(),
		})
	}
	for range r.IntN(4) * (1 + 9*r.IntN(2)) { // some have spans
		out.Groups = append(out.Groups, datapath.PortGroup{Protocol: datapath.UDP, Low: 1, High: 1000, Set: 7, Blocks: true, Rules: rules()})
	}
	if r.IntN(2) == 0 {
		out.Groups = append(out.Groups,
			datapath.PortGroup{High: 65535, AllPods: true, Rules: rules()},
			datapath.PortGroup{Protocol: datapath.TCP, Low: 0, High: 65535, PortName: 3, AnyPeer: true, Rules: rules()})
	}
	r.Shuffle(len(out.Groups), func(i, j int) { out.Groups[i], out.Groups[j] = out.Groups[j], out.Groups[i] })
	return out
}

// What is written is what a later Open reads back, through many generations of rulesets.
func TestRulesetsSurviveOpen(t *testing.T) {
	dir := pinMaps(t, map[string]uint32{bpf.WeirMapRuleIds: 3000, bpf.WeirMapPortGroups: 800, bpf.WeirMapPortSpans: 200})
	k := openQuiet(t, dir)
	r := rand.New(rand.NewPCG(3, 3))
	s := state()
	next := uint32(1)
	for range 60 {
		s2 := state()
		for id, ruleset := range s.Rulesets {
			if r.IntN(3) > 0 {
				s2.Rulesets[id] = ruleset
			}
		}
		for len(s2.Rulesets) < 20 {
			s2.Rulesets[next] = randomRuleset(r)
			next++
		}
		s = s2
		commitState(t, k, s)
		if r.IntN(3) == 0 {
			must(t, k.Settle())
		}
	}
	must(t, k.Settle())
	must(t, k.Close())
	k = openQuiet(t, dir)
	if len(k.rulesets.placed) != len(s.Rulesets) {
		t.Fatalf("%d rulesets read back, want %d", len(k.rulesets.placed), len(s.Rulesets))
	}
	for id, want := range s.Rulesets {
		if got := k.rulesets.placed[id].ruleset; !equal(got, canonical(want)) {
			t.Errorf("ruleset %d read back as\n%+v\nwant\n%+v", id, got, canonical(want))
		}
	}
	exact := 0
	for _, r := range s.Rulesets {
		for _, g := range r.Groups {
			if g.Exact() {
				exact++
			}
		}
	}
	if got := len(dump[bpf.WeirExactKey, bpf.WeirPortGroup](t, k.rulesets.exact.m)); got != exact {
		t.Errorf("%d exact groups in the kernel, want %d", got, exact)
	}
	if epoch := k.Epoch(); commitState(t, k, s) != epoch {
		t.Error("the same state after Open needed an epoch")
	}
}

// An old ruleset stays readable until a grace after the commit that left it.
func TestStaleRulesetStaysForOldReaders(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	one, two := state(), state()
	one.Rulesets[1], two.Rulesets[2] = datapath.Ruleset{Default: 300}, datapath.Ruleset{Default: 301}
	one.Facts[datapath.Fact{Set: 1, Identity: 256}] = 0
	two.Facts[datapath.Fact{Set: 2, Identity: 256}] = 0
	commitState(t, k, one)
	commitState(t, k, two)
	rulesets := dump[uint32, bpf.WeirRuleset](t, k.rulesets.keys.m)
	facts := dump[bpf.WeirFactKey, uint32](t, k.facts.m)
	if len(rulesets) != 2 || len(facts) != 2 {
		t.Errorf("%d rulesets and %d facts before the grace, want both generations", len(rulesets), len(facts))
	}
	must(t, k.Settle())
	rulesets = dump[uint32, bpf.WeirRuleset](t, k.rulesets.keys.m)
	facts = dump[bpf.WeirFactKey, uint32](t, k.facts.m)
	if _, ok := rulesets[2]; len(rulesets) != 1 || !ok || len(facts) != 1 {
		t.Errorf("rulesets %v, facts %v after the grace, want the new ones alone", rulesets, facts)
	}
}

// oneOfEach is a state with something of every kind.
func oneOfEach() *datapath.State {
	s := state()
	s.Rulesets[1] = datapath.Ruleset{Default: 300, Groups: []datapath.PortGroup{
		{Protocol: datapath.TCP, Low: 80, High: 80, Set: 1, Labels: true, Rules: []uint32{400}},
		{Protocol: datapath.TCP, Low: 1, High: 99, Set: 1, Labels: true, Rules: []uint32{401}},
	}}
	many := datapath.Ruleset{Default: 301}
	for i := range uint16(datapath.ScanMax + 1) {
		many.Groups = append(many.Groups, datapath.PortGroup{Protocol: datapath.TCP, Low: i, High: 100 + i, Set: 1 + uint32(i%2), Labels: true, Rules: []uint32{402}})
	}
	s.Rulesets[2] = many
	s.Facts[datapath.Fact{Set: 1, Identity: 256}] = 0
	s.Endpoints[1] = datapath.Endpoint{Ifindex: 5, Egress: 1, Ingress: 1}
	s.Endpoints[2] = datapath.Endpoint{Ifindex: 6, Egress: 1, Ingress: 2}
	s.Peers = peersOf("10.0.0.1", 256, "10.0.0.0/8", 4)
	return s
}

// Damage done by others is found at Open and repaired by the commit after it, with a new epoch.
func TestDamageIsRepaired(t *testing.T) {
	want := oneOfEach()
	for name, damage := range map[string]func(t *testing.T, k *Kernel){
		"default turned to allow": func(t *testing.T, k *Kernel) {
			must(t, k.rulesets.keys.m.Put(uint32(1), bpf.WeirRuleset{DefaultRule: 300, Allow: 1, Exact: 1, WideCount: 1}))
		},
		"exact group gone": func(t *testing.T, k *Kernel) {
			must(t, k.rulesets.exact.m.Delete(bpf.WeirExactKey{Ruleset: 1, Port: 80, Protocol: 6}))
		},
		"wide group points nowhere": func(t *testing.T, k *Kernel) {
			must(t, k.rulesets.groups.Put(uint32(0), bpf.WeirPortGroup{Rules: 1 << 30}))
		},
		"span gone wide": func(t *testing.T, k *Kernel) {
			k.rulesets.spans.at(k.rulesets.placed[2].spans.start+3).store(1, ^uint64(0))
		},
		"spans said not to be there": func(t *testing.T, k *Kernel) {
			header := k.rulesets.keys.applied[2]
			header.SpanCount = 0
			must(t, k.rulesets.keys.m.Put(uint32(2), header))
		},
		"mask gone": func(t *testing.T, k *Kernel) {
			must(t, k.masks.m.Delete(bpf.WeirMaskKey{Ruleset: 2, Identity: 256}))
		},
		"mask too wide": func(t *testing.T, k *Kernel) {
			must(t, k.masks.m.Put(bpf.WeirMaskKey{Ruleset: 2, Identity: 256}, datapath.Mask{^uint64(0)}))
		},
		"rule id changed": func(t *testing.T, k *Kernel) { k.rulesets.rules.at(0).store(0, 999) },
		"fact gone":       func(t *testing.T, k *Kernel) { must(t, k.facts.m.Delete(bpf.WeirFactKey{Set: 1, Identity: 256})) },
		"fact too many":   func(t *testing.T, k *Kernel) { must(t, k.facts.m.Put(bpf.WeirFactKey{Set: 1, Identity: 9}, uint32(0))) },
		"endpoint's word": func(t *testing.T, k *Kernel) { slots{k.endpoints.memory.at(1)}.set(0, 77, k.Epoch()) },
		"endpoint too many": func(t *testing.T, k *Kernel) {
			k.endpoints.memory.at(9).store(endpointFields, 8)
			must(t, k.endpoints.numbers.m.Put(uint32(8), uint32(9)))
		},
		"address gone": func(t *testing.T, k *Kernel) {
			must(t, k.peers.addresses.m.Delete(encodeAddress(prefix("10.0.0.1/32"))))
		},
		"address lies": func(t *testing.T, k *Kernel) {
			must(t, k.peers.addresses.m.Put(encodeAddress(prefix("10.0.0.1/32")), uint32(1<<20)))
		},
		"address twice": func(t *testing.T, k *Kernel) {
			must(t, k.peers.addresses.m.Put(encodeAddress(prefix("10.0.0.2/32")), uint32(1)))
		},
		"slot of a future that never came": func(t *testing.T, k *Kernel) {
			i, _ := k.peers.index(prefix("10.0.0.1/32"))
			slots{k.peers.memory.at(i)}.stage(k.Epoch(), 666, k.Epoch()+1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := pinMaps(t, nil)
			k := openQuiet(t, dir)
			commitState(t, k, want)
			must(t, k.Settle())
			before := snapshot(t, k)
			damage(t, k)
			must(t, k.Close())
			k = openQuiet(t, dir)
			commitState(t, k, want)
			must(t, k.Settle())
			if after := snapshot(t, k); after != before {
				t.Errorf("after the repair:\n%s\nwant:\n%s", after, before)
			}
		})
	}
}

// snapshot is what the kernel enforces, whatever the places it is in.
func snapshot(t *testing.T, k *Kernel) string {
	t.Helper()
	epoch := k.Epoch()
	out := fmt.Sprintln("facts", dump[bpf.WeirFactKey, uint32](t, k.facts.m))
	out += fmt.Sprintln("masks", dump[bpf.WeirMaskKey, datapath.Mask](t, k.masks.m))
	again := &rulesets{keys: k.rulesets.keys, exact: k.rulesets.exact, groups: k.rulesets.groups, spans: k.rulesets.spans, rules: k.rulesets.rules,
		groupSpace: k.rulesets.groupSpace.empty(), spanSpace: k.rulesets.spanSpace.empty(), ruleSpace: k.rulesets.ruleSpace.empty()}
	must(t, again.load(0))
	for _, id := range slices.Sorted(maps.Keys(again.placed)) {
		out += fmt.Sprintln("ruleset", id, again.placed[id].ruleset)
	}
	out += fmt.Sprintln("numbers", dump[uint32, uint32](t, k.endpoints.numbers.m))
	for n := range k.endpoints.memory.count {
		if e := k.endpoints.memory.at(n); !e.zero() {
			word, _, ok := slots{e}.read(epoch)
			out += fmt.Sprintln("endpoint", n, word, ok, []uint64(e[endpointFields:]))
		}
	}
	for _, x := range []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/8"} {
		out += fmt.Sprintln(x, lookup(t, k, prefix(x).Addr(), epoch))
	}
	return out + fmt.Sprintln(len(dump[bpf.WeirAddressKey, uint32](t, k.peers.addresses.m)))
}

func TestFullMapIsNamedAndNothingChanges(t *testing.T) {
	small := map[string]uint32{
		bpf.WeirMapFacts: 4, bpf.WeirMapRulesets: 4, bpf.WeirMapExactGroups: 4, bpf.WeirMapPortGroups: 4,
		bpf.WeirMapPortSpans: 12, bpf.WeirMapPeerMasks: 4, bpf.WeirMapRuleIds: 40, bpf.WeirMapAddresses: 4, bpf.WeirMapPrefixes: 4, bpf.WeirMapFrontends: 4,
	}
	scan := func(n int) (r datapath.Ruleset) {
		for range n {
			r.Groups = append(r.Groups, datapath.PortGroup{High: 65535, AnyPeer: true, Set: 1, Labels: true, Rules: []uint32{300}})
		}
		return r
	}
	cases := map[string]func(s *datapath.State, n int){
		bpf.WeirMapFacts: func(s *datapath.State, n int) {
			for i := range n {
				s.Facts[datapath.Fact{Set: 1, Identity: identity.Number(256 + i)}] = 0
			}
		},
		bpf.WeirMapRulesets: func(s *datapath.State, n int) {
			for i := range n {
				s.Rulesets[uint32(1+i)] = datapath.Ruleset{Default: 300}
			}
		},
		bpf.WeirMapExactGroups: func(s *datapath.State, n int) {
			r := datapath.Ruleset{Default: 300}
			for i := range n {
				r.Groups = append(r.Groups, datapath.PortGroup{Protocol: 6, Low: uint16(i), High: uint16(i), AnyPeer: true, Rules: []uint32{300}})
			}
			s.Rulesets[uint32(n)] = r
		},
		bpf.WeirMapPortGroups: func(s *datapath.State, n int) { s.Rulesets[uint32(n)] = scan(n) },
		bpf.WeirMapPortSpans: func(s *datapath.State, n int) {
			for i := range n {
				s.Rulesets[uint32(1+i)] = scan(datapath.ScanMax + 1) // one for all ports, and two masks
			}
		},
		bpf.WeirMapPeerMasks: func(s *datapath.State, n int) {
			s.Rulesets[1] = scan(datapath.ScanMax + 1)
			for i := range n {
				s.Facts[datapath.Fact{Set: 1, Identity: identity.Number(256 + i)}] = 0
			}
		},
		bpf.WeirMapRuleIds: func(s *datapath.State, n int) {
			r := scan(1)
			r.Groups[0].Rules = make([]uint32, 10*n-1) // and a zero: 40 fit
			for i := range r.Groups[0].Rules {
				r.Groups[0].Rules[i] = 300
			}
			s.Rulesets[uint32(n)] = r
		},
		bpf.WeirMapAddresses: func(s *datapath.State, n int) {
			for i := range n {
				maps.Copy(s.Peers, peersOf(fmt.Sprintf("10.0.0.%d", i), 256))
			}
		},
		bpf.WeirMapPrefixes: func(s *datapath.State, n int) {
			for i := range n {
				maps.Copy(s.Peers, peersOf(fmt.Sprintf("10.%d.0.0/16", i), 256))
			}
		},
		bpf.WeirMapFrontends: func(s *datapath.State, n int) {
			for i := range n {
				s.Frontends[datapath.Frontend{Addr: prefix("10.0.0.1/32").Addr(), Port: uint16(i), Protocol: 6}] = struct{}{}
			}
		},
	}
	for name, fill := range cases {
		t.Run(name, func(t *testing.T) {
			k := openQuiet(t, pinMaps(t, map[string]uint32{name: small[name]}))
			s := state()
			fill(s, 4)
			epoch := commitState(t, k, s)
			before := snapshot(t, k)
			s = state()
			s.Endpoints[1] = datapath.Endpoint{Ifindex: 5, Egress: 1, Ingress: 1}
			fill(s, 5)
			_, err := k.Commit(s)
			full := new(datapath.FullError)
			if !errors.As(err, &full) || full.Map != name {
				t.Fatalf("error %v, want map %s full", err, name)
			}
			if !strings.Contains(err.Error(), name) || full.Need <= full.Size {
				t.Errorf("error %q: size %d need %d", err, full.Size, full.Need)
			}
			if after := snapshot(t, k); k.Epoch() != epoch || after != before {
				t.Errorf("a failed commit changed the kernel:\n%s\nwas:\n%s", after, before)
			}
			// What fits alone fits, once the former state is out of the way.
			s = state()
			fill(s, 4)
			commitState(t, k, s)
		})
	}
}

// Where two generations together do not fit, the stale one goes first.
func TestStaleMakesRoom(t *testing.T) {
	k := openQuiet(t, pinMaps(t, map[string]uint32{bpf.WeirMapFacts: 6}))
	for generation := range 5 {
		s := state()
		for i := range 3 {
			s.Facts[datapath.Fact{Set: uint32(generation + 1), Identity: identity.Number(256 + i)}] = 0
		}
		commitState(t, k, s)
	}
}

func TestImpossibleRulesetsAreRefused(t *testing.T) {
	group := datapath.PortGroup{Protocol: 6, Low: 80, High: 80, AnyPeer: true, Rules: []uint32{300}}
	wide := group
	wide.High = 90
	many := make([]datapath.PortGroup, datapath.WideMax+1)
	for i := range many {
		many[i] = wide
	}
	none := group
	none.Rules = nil
	k := openQuiet(t, pinMaps(t, nil))
	for what, r := range map[string]datapath.Ruleset{
		"two exact groups of one port": {Groups: []datapath.PortGroup{group, group}},
		"257 wide groups":              {Groups: many},
		"a group without rules":        {Groups: []datapath.PortGroup{none}},
	} {
		s := state()
		s.Rulesets[1] = r
		if _, err := k.Commit(s); err == nil || !strings.Contains(err.Error(), "ruleset 1") {
			t.Errorf("%s: error %v, want one that names ruleset 1", what, err)
		}
	}
}
