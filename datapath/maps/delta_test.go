package maps

import (
	"fmt"
	"math/rand"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/randomcluster"
)

// TestDeltaLeavesNothing commits what changes reach of random clusters, and demands that a
// comparison of everything finds nothing left to do.
func TestDeltaLeavesNothing(t *testing.T) {
	deltas := 0
	for seed := range int64(6) {
		r := rand.New(rand.NewSource(seed))
		k := openQuiet(t, pinMaps(t, nil))
		w := randomcluster.New(r)
		number(w.Locals)
		ids := policy.NewAllocator()
		x, result := policy.NewIncremental(policy.Before{}, w.Cluster, w.Node, w.Locals, ids)
		commitState(t, k, result.State)
		for i := range 80 {
			was := w.Cluster
			for range 1 + r.Intn(3) {
				w.Edit()
			}
			step := x.Apply(w.Node, w.Locals, was.ChangesTo(w.Cluster))
			if step == nil {
				x, result = policy.NewIncremental(result.InForce(), w.Cluster, w.Node, w.Locals, ids)
				commitState(t, k, result.State)
				continue
			}
			deltas++
			_, err := k.CommitDelta(step.Result.State, step.Delta)
			must(t, err)
			result = step.Result
			if left := k.left(t, result.State); left != "" {
				t.Fatalf("seed %d, change %d: %s", seed, i, left)
			}
			if r.Intn(3) == 0 {
				must(t, k.Settle())
				if left := k.left(t, result.State); left != "" {
					t.Fatalf("seed %d, change %d, settled: %s", seed, i, left)
				}
			}
		}
	}
	t.Log(deltas, "deltas")
	if deltas < 250 {
		t.Error("too few deltas to tell anything")
	}
}

func number(locals []policy.Local) {
	for i := range locals {
		locals[i].Endpoint.Ifindex, locals[i].Endpoint.NetnsCookie = 100+locals[i].Number, uint64(locals[i].Number)
	}
}

// left is what a comparison of everything would still do.
func (k *Kernel) left(t *testing.T, s *datapath.State) string {
	t.Helper()
	c, err := k.plan(s, nil)
	must(t, err)
	for _, x := range c.peers.unwanted {
		if !k.peers.isStale(x) {
			return fmt.Sprintf("%s is not stale", x)
		}
	}
	if c.bump || c.repairs() || len(c.peers.prefixes) > 0 || !c.origins.empty() || !c.ways.empty() || !c.services.netns.empty() || len(c.services.words)+len(c.services.added)+len(c.services.unwanted) > 0 {
		return fmt.Sprintf("%+v", *c)
	}
	return ""
}

// After a commit that failed, everything is compared, whatever the delta says.
func TestDeltaAfterAnError(t *testing.T) {
	k := openQuiet(t, pinMaps(t, map[string]uint32{"facts": 4}))
	s := state()
	s.Facts[datapath.Fact{Set: 1, Identity: 300}] = 0
	commitState(t, k, s)
	more := state()
	more.Facts[datapath.Fact{Set: 1, Identity: 300}] = 0
	var d datapath.Delta
	for i := range uint32(9) {
		f := datapath.Fact{Set: 2 + i, Identity: 300}
		more.Facts[f], d.Facts = 0, append(d.Facts, f)
	}
	if _, err := k.CommitDelta(more, &d); err == nil {
		t.Fatal("it fits")
	}
	delete(s.Facts, datapath.Fact{Set: 1, Identity: 300})
	_, err := k.CommitDelta(s, &datapath.Delta{})
	must(t, err)
	must(t, k.Settle())
	if left := k.left(t, s); left != "" || len(k.facts.applied) != 0 {
		t.Errorf("%d facts: %s", len(k.facts.applied), left)
	}
}
