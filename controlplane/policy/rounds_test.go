package policy_test

import (
	"fmt"
	"math/rand"
	"reflect"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/tests/randomcluster"
)

// TestRoundsKnowOfEachOther edits random clusters under random limits, and a large one, and demands that
// rounds that take over what those before them made refuse the same with the same words, and compile the
// same, numbers included, as rounds that make everything anew.
func TestRoundsKnowOfEachOther(t *testing.T) {
	refused, held := 0, 0
	same := func(name string, before [2]policy.Before, ids [2]*policy.Allocator, w *randomcluster.World) (out [2]*policy.Result) {
		t.Helper()
		out[0] = policy.Recompile(before[0], w.Cluster, w.Node, w.Locals, ids[0])
		out[1] = policy.RecompileAnew(before[1], w.Cluster, w.Node, w.Locals, ids[1])
		for what, pair := range map[string][2]any{
			"state": {out[0].State, out[1].State}, "errors": {out[0].Errors, out[1].Errors}, "warnings": {out[0].Warnings, out[1].Warnings},
			"refused": {out[0].Enforced.Refused, out[1].Enforced.Refused}, "enforced": {out[0].Enforced.NetworkPolicies, out[1].Enforced.NetworkPolicies},
			"held": {out[0].Held, out[1].Held}, "blocks": {out[0].Blocks, out[1].Blocks}, "identities": {out[0].Identities, out[1].Identities},
			"endpoints": {out[0].Endpoints, out[1].Endpoints}, "names": {out[0].Names, out[1].Names}, "policies": {out[0].Policies, out[1].Policies},
		} {
			if !reflect.DeepEqual(pair[0], pair[1]) {
				t.Fatalf("%s: %s\n%v\nanew\n%v", name, what, pair[0], pair[1])
			}
		}
		refused += len(out[0].Enforced.Refused)
		held += len(out[0].Held)
		return out
	}
	for s := range int64(80) {
		random := rand.New(rand.NewSource(1000 + s))
		w := randomcluster.New(random)
		ids := [2]*policy.Allocator{policy.NewAllocator(), policy.NewAllocator()}
		full := policy.Compile(w.Cluster, w.Node, w.Locals, policy.NewAllocator()).State.Size()
		for i, v := range full.Values() {
			*w.Node.Limits.Values()[i] = max(*v*(10+random.Intn(100))/100, 4)
		}
		before := [2]policy.Before{}
		for i := range 8 {
			r := same(fmt.Sprintf("seed %d, edit %d", s, i), before, ids, w)
			before = [2]policy.Before{r[0].InForce(), r[1].InForce()}
			if random.Intn(2) == 0 {
				before[0].Retry()
				before[1].Retry()
			}
			if w.Edit(); random.Intn(3) == 0 {
				w.Renew()
			}
			w.Cluster = rewritten(random, w.Cluster)
		}
	}
	l := randomcluster.NewLarge(400, 40, 40)
	full := policy.Compile(l.Cluster, l.Node, l.Locals, policy.NewAllocator()).State.Size()
	for _, share := range []int{5, 30, 80} {
		for i := range full.Values() {
			w := &randomcluster.World{Cluster: l.Cluster, Node: l.Node, Locals: l.Locals}
			*w.Node.Limits.Values()[i] = max(1, *full.Values()[i]*share/100)
			same(fmt.Sprintf("%d %% of %s", share, w.Node.Limits.Maps()[i]), [2]policy.Before{}, [2]*policy.Allocator{policy.NewAllocator(), policy.NewAllocator()}, w)
		}
	}
	if refused < 300 || held < 30 {
		t.Errorf("%d refused, %d of them as they were before: too few to tell anything", refused, held)
	}
	t.Logf("%d refused, %d held", refused, held)
}
