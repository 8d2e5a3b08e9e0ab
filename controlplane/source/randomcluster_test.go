package source

import (
	"math/rand"
	"testing"

	"github.com/weirnet/weir/tests/randomcluster"
)

// TestRandomPoliciesAreValid: what engines are compared on is what an API server lets in.
func TestRandomPoliciesAreValid(t *testing.T) {
	for seed := range int64(200) {
		w := randomcluster.New(rand.New(rand.NewSource(seed)))
		w.Edit()
		for name, np := range w.Cluster.NetworkPolicies {
			if errs := checkNetworkPolicy(np.DeepCopy()); len(errs) > 0 {
				t.Fatalf("seed %d, %s: %v", seed, name, errs)
			}
		}
	}
}
