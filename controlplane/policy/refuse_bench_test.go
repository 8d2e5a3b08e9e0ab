package policy_test

import (
	"fmt"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/tests/randomcluster"
)

// BenchmarkRefusals is a compilation of a large cluster that does not fit the map of facts by far.
func BenchmarkRefusals(b *testing.B) {
	for _, size := range sizes[:2] {
		l := randomcluster.NewLarge(size[0], size[1], 110)
		full := policy.Compile(l.Cluster, l.Node, l.Locals, policy.NewAllocator()).State.Size().Facts
		for _, most := range []int{100, full * 3 / 4} {
			b.Run(fmt.Sprintf("pods=%d/facts=%d of %d", size[0], most, full), func(b *testing.B) {
				n := l.Node
				n.Limits.Facts = most
				refused := 0
				for b.Loop() {
					refused = len(policy.Compile(l.Cluster, n, l.Locals, policy.NewAllocator()).Enforced.Refused)
				}
				b.ReportMetric(float64(refused), "refused")
			})
		}
	}
}
