package differential

import (
	"flag"
	"testing"
)

var (
	seed  = flag.Int64("seed", 1, "first seed")
	nodes = flag.Int("nodes", 4, "random nodes; each sees one cluster after another")
	sets  = flag.Int("sets", 60, "clusters on each node")
)

// TestKernelAgreesWithReference is what needs no other module; tests/oracle has more judges
// and more nodes.
func TestKernelAgreesWithReference(t *testing.T) {
	Run(t, Options{Seed: *seed, Nodes: *nodes, Sets: *sets})
}
