package maps

import (
	"slices"
	"testing"

	"github.com/weirnet/weir/datapath"
)

func TestGraceReturns(t *testing.T) {
	must(t, Grace())
	if err := graceByInnerMap(); err != nil {
		t.Errorf("the way without membarrier: %v", err)
	}
}

// Where a commit would recycle what a running program may still read it waits for a
// grace, and it does not once the background had its own.
func TestCommitWaitsBeforeItRecycles(t *testing.T) {
	with := func(peers ...any) *datapath.State {
		s := state()
		s.Peers = peersOf(peers...)
		return s
	}
	ep := func(n, ruleset uint32) *datapath.State {
		return endpointState(map[uint32]datapath.Endpoint{n: pod(6+n, ruleset, 1)})
	}
	for name, c := range map[string]struct {
		before []*datapath.State
		last   *datapath.State
	}{
		"an address's slot":       {[]*datapath.State{with("10.0.0.1", 256), with("10.0.0.1", 257)}, with("10.0.0.1", 258)},
		"a prefix's slot":         {[]*datapath.State{with("10.0.0.0/8", 256), with("10.0.0.0/8", 257)}, with("10.0.0.0/8", 258)},
		"a covering prefix's":     {[]*datapath.State{with("10.0.0.0/8", 256), with("10.0.0.0/8", 257)}, with("10.0.0.0/8", 257, "10.1.0.0/16", 258)},
		"an endpoint's slot":      {[]*datapath.State{ep(1, 1), ep(1, 2)}, ep(1, 3)},
		"an endpoint's number":    {[]*datapath.State{ep(1, 1), endpointState(nil)}, ep(1, 2)},
		"an endpoint's interface": {[]*datapath.State{ep(1, 1)}, endpointState(map[uint32]datapath.Endpoint{1: pod(9, 1, 1)})},
	} {
		t.Run(name, func(t *testing.T) {
			waits := 0
			k, err := open(pinMaps(t, nil), InForce, func() error { waits++; return nil })
			must(t, err)
			defer k.Close()
			k.collecting = true // no background
			for _, s := range c.before {
				commitState(t, k, s)
			}
			waits = 0
			commitState(t, k, c.last)
			if waits == 0 {
				t.Error("the commit did not wait")
			}
		})
	}
}

func TestCommitAfterSettleDoesNotWait(t *testing.T) {
	waits := 0
	k, err := open(pinMaps(t, nil), InForce, func() error { waits++; return nil })
	must(t, err)
	defer k.Close()
	k.collecting = true
	for i := range 5 {
		s := endpointState(map[uint32]datapath.Endpoint{1: pod(7, uint32(1+i), 1)})
		s.Peers = peersOf("10.0.0.0/8", 256+i, "10.0.0.1", 300+i)
		waits = 0
		commitState(t, k, s)
		if waits != 0 {
			t.Errorf("commit %d waited for %d graces on the latency path", i, waits)
		}
		must(t, k.Settle())
	}
}

// A removed key's element is free a grace after the removal, not with it; and nothing is
// inserted beside a removed key before that.
func TestRemovedIsFreeAGraceLater(t *testing.T) {
	waits := 0
	k, err := open(pinMaps(t, nil), InForce, func() error { waits++; return nil })
	must(t, err)
	defer k.Close()
	k.collecting = true
	s := state()
	s.Peers = peersOf("10.0.0.0/8", 256, "10.0.0.1", 300)
	s.Rulesets[1] = datapath.Ruleset{Default: 300, Groups: []datapath.PortGroup{{High: 65535, AnyPeer: true, Rules: []uint32{300}}}}
	commitState(t, k, s)
	prefix8, _ := k.peers.index(prefix("10.0.0.0/8"))
	address1, _ := k.peers.index(prefix("10.0.0.1/32"))
	commitState(t, k, state())
	once := func() {
		tick := k.tick
		must(t, k.grace())
		must(t, k.collect(tick))
	}
	once()
	if len(k.peers.prefixes.applied)+len(k.peers.addresses.applied) != 0 {
		t.Fatal("the keys are not removed")
	}
	if slices.Contains(k.peers.free, prefix8) || slices.Contains(k.peers.free, address1) || k.rulesets.ruleSpace.sum() == 0 {
		t.Error("places are free before a grace after the removal")
	}
	for name, s := range map[string]*datapath.State{"prefix": {Peers: peersOf("11.0.0.0/8", 256)}, "address": {Peers: peersOf("11.0.0.1", 256)}} {
		c, err := k.plan(s, nil)
		must(t, err)
		if !c.needsGrace() {
			t.Errorf("a new %s may recycle the removed one's memory", name)
		}
	}
	once()
	if !slices.Contains(k.peers.free, prefix8) || !slices.Contains(k.peers.free, address1) || k.rulesets.ruleSpace.sum() != 0 {
		t.Error("places are not free a grace after the removal")
	}
	if k.garbage() {
		t.Error("something is left")
	}
}
