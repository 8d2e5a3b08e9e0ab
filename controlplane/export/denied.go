package export

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// deniedMost is how many policies have counts of their own; the rest are "other".
const deniedMost = 256

const other = "other"

// deniedBy is what denied packets are counted by.
type deniedBy struct{ namespace, policy, direction, cause string }

// deniedCounts turn the kernel's counts by rule id into counts by policy that never go down:
// rules come and go, and so do the kernel's counts of them. What has once been counted as
// "other" stays there.
type deniedCounts struct {
	most int

	mu     sync.Mutex
	seen   map[datapath.DenialCount]uint64 // packets counted, by the rest
	totals map[deniedBy]uint64
}

func newDenied(most int) *deniedCounts {
	return &deniedCounts{most: most, seen: map[datapath.DenialCount]uint64{}, totals: map[deniedBy]uint64{}}
}

// deniedCount is a total.
type deniedCount struct {
	deniedBy
	packets uint64
}

// add takes the kernel's counts, and returns the totals.
func (d *deniedCounts) add(counts []datapath.DenialCount, rule func(uint32) (policy.Rule, bool)) []deniedCount {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := make(map[datapath.DenialCount]uint64, len(counts))
	for _, c := range counts {
		packets := c.Packets
		c.Packets, c.Bytes = 0, 0
		seen[c] = packets
		if c.Rule == datapath.RuleNone {
			continue // no rule's doing: counted by reason
		}
		if before := d.seen[c]; packets >= before {
			packets -= before
		} // else the count began anew
		d.totals[d.place(deniedByOf(c, rule))] += packets
	}
	d.seen = seen
	var out []deniedCount
	for _, by := range sorted(d.totals, compareDenied) {
		out = append(out, deniedCount{by, d.totals[by]})
	}
	return out
}

// place is by, or "other" where there is no room for more.
func (d *deniedCounts) place(by deniedBy) deniedBy {
	if _, has := d.totals[by]; has || len(d.totals) < d.most {
		return by
	}
	return deniedBy{other, other, by.direction, other}
}

func deniedByOf(c datapath.DenialCount, rule func(uint32) (policy.Rule, bool)) deniedBy {
	by := deniedBy{direction: c.Direction.String(), cause: "unknown"}
	r, ok := rule(c.Rule)
	if !ok {
		return by
	}
	by.namespace, by.policy, by.cause = r.Namespace, r.Name, r.Kind
	if r.Name != "" {
		return by
	}
	var names []string
	for _, p := range r.IsolatedBy {
		by.namespace = p.Namespace // a pod is isolated by policies of its own namespace
		names = append(names, p.Name)
	}
	by.policy = policyLabel(names)
	return by
}

// labelNames is how many policies a label names.
const labelNames = 5

// policyLabel names policies, of many the first, how many more, and a digest that tells such sets apart:
// one label for each set of names.
func policyLabel(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	all := strings.Join(names, ",")
	more := len(names) - labelNames
	if more <= 0 {
		return all
	}
	sum := sha256.Sum256([]byte(all))
	return fmt.Sprintf("%s,+%d(%x)", strings.Join(names[:labelNames], ","), more, sum[:4])
}

func compareDenied(a, b deniedBy) int {
	return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.policy, b.policy), cmp.Compare(a.direction, b.direction), cmp.Compare(a.cause, b.cause))
}
