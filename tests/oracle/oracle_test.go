// Package oracle holds engines that others wrote against the kernel's verdicts, the reference
// and its explanations, on the same packets of the same random clusters. It is a module of
// its own: they need much that the product does not.
package oracle

import (
	"flag"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weirnet/weir/tests/differential"
)

var (
	seed  = flag.Int64("seed", 1, "first seed")
	nodes = flag.Int("nodes", 10, "random nodes; each sees one cluster after another")
	sets  = flag.Int("sets", 60, "clusters on each node")
)

// TestFourAnswersAgree: the programs' on their real maps, the reference's and both engines'.
// What the explanation names is what the engines say of each policy and rule alone.
func TestFourAnswersAgree(t *testing.T) {
	debug.SetGCPercent(400) // memory is there, time is not
	n := &counts{}
	unanimous := differential.Run(t, differential.Options{Seed: *seed, Nodes: *nodes, Sets: *sets, Judges: judges, Review: review(n)})
	t.Attr("explained", n.String())
	n.check(t)
	if *nodes >= 10 && *sets >= 60 && unanimous < 1_000_000 {
		t.Errorf("only %d verdicts have all answers", unanimous)
	}
}

// counts are how much of explanations was reviewed.
type counts struct {
	mu sync.Mutex
	of map[string]int
}

func (c *counts) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]int{}
	}
	c.of[what] += n
}

func (c *counts) String() string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(c.of)) {
		parts = append(parts, fmt.Sprintf("%d %s", c.of[what], what))
	}
	return strings.Join(parts, ", ")
}

// check fails if little was put to the test, or much was excused.
func (c *counts) check(t *testing.T) {
	t.Helper()
	good := c.of["near misses put right"]
	if good == 0 || c.of["deciding rules"] == 0 {
		t.Errorf("nothing was reviewed: %s", c)
	}
	for what, n := range c.of {
		if strings.HasPrefix(what, "near misses that say") && n*2 > good || what == "near misses of what nothing can be" && n*10 > good {
			t.Errorf("%d %s, and %d that were put right: too many", n, what, good)
		}
	}
}
