package policy_test

import (
	"flag"
	"math/rand"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/randomcluster"
)

var (
	seed = flag.Int64("seed", 1, "first seed of the differential test")
	sets = flag.Int("sets", 150, "random clusters of the differential test")
)

// TestCompileAgreesWithVerdict walks the compiled state as the kernel does and asks the
// reference the same, over random clusters: the verdict of both sides and the rule that
// decides each must be equal. (tests/differential asks the kernel itself.)
func TestCompileAgreesWithVerdict(t *testing.T) {
	tuples, allowed := 0, 0
	for s := *seed; s < *seed+int64(*sets); s++ {
		w := randomcluster.New(rand.New(rand.NewSource(s)))
		ids := policy.NewAllocator()
		c := comparison{w, ids, policy.Compile(w.Cluster, w.Node, w.Locals, ids).State}
		for _, from := range w.Places {
			for _, to := range w.Places {
				for i := 0; i < 8; i++ {
					tuple, ok := w.Tuple(from, to)
					if !ok {
						continue
					}
					tuples++
					if c.ask(t, tuple, from.Local != 0, to.Local != 0) {
						allowed++
					}
				}
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d: %d policies", s, len(w.Cluster.NetworkPolicies))
		}
	}
	t.Logf("%d tuples, %d allowed", tuples, allowed)
	if tuples < 200_000 && *sets >= 150 {
		t.Errorf("only %d tuples", tuples)
	}
	if allowed*20 < tuples || allowed*20 > 19*tuples {
		t.Errorf("%d of %d allowed: the sets are too much alike to tell anything", allowed, tuples)
	}
}

type comparison struct {
	*randomcluster.World
	ids   *policy.Allocator
	state *datapath.State
}

// ask compares the sides that are pods of this node.
func (c comparison) ask(t *testing.T, tuple policy.Tuple, from, to bool) (allowed bool) {
	t.Helper()
	want := policy.Verdict(c.Cluster, c.Node, tuple)
	egress, ingress := policy.Walk(c.state, c.Node, tuple)
	for d, side := range [...]struct {
		here bool
		got  *policy.Judged
		want *policy.Side
	}{{from, egress, want.Egress}, {to, ingress, want.Ingress}} {
		if !side.here {
			continue // judged on its own node
		}
		if side.got == nil || side.want == nil {
			t.Fatalf("%+v, %s: compiled %v, reference %v", tuple, datapath.Direction(d), side.got, side.want)
		}
		rule, ok := c.ids.Rule(side.got.Rule)
		if !ok || side.got.Allow != (side.want.Verdict == policy.Forwarded) || !policy.SameRule(rule, side.want) {
			t.Errorf("%+v, %s: compiled %v by rule %d %+v, reference %+v", tuple, datapath.Direction(d), side.got.Allow, side.got.Rule, rule, side.want)
		}
	}
	return want.Forwarded
}
