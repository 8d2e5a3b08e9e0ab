// Package oracle holds engines that others wrote against the kernel's verdicts, the reference
// and its explanations, on the same packets of the same random clusters. It is a module of
// its own: they need much that the product does not.
package oracle

import (
	"flag"
	"testing"

	"github.com/weirnet/weir/tests/differential"
)

var (
	seed  = flag.Int64("seed", 1, "first seed")
	nodes = flag.Int("nodes", 14, "random nodes; each sees one cluster after another")
	sets  = flag.Int("sets", 60, "clusters on each node")
)

// TestFourAnswersAgree: the programs' on their real maps, the reference's and both engines'.
func TestFourAnswersAgree(t *testing.T) {
	differential.Run(t, differential.Options{Seed: *seed, Nodes: *nodes, Sets: *sets,
		Judges: []differential.Judge{cyclonus, kubeNetworkPolicies}})
}
