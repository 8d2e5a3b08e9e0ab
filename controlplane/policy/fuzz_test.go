package policy_test

import (
	"encoding/binary"
	"math/rand"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/tests/randomcluster"
)

// choices are the fuzzer's: a source of random numbers that are its bytes, and when those
// are used up others, which follow from how many there were.
type choices struct {
	bytes []byte
	rest  rand.Source
}

func (c *choices) Int63() int64 {
	if len(c.bytes) == 0 {
		return c.rest.Int63()
	}
	// One byte decides: it is what Intn takes its remainder of, and whether it is below a limit.
	b := int64(c.bytes[0])
	c.bytes = c.bytes[1:]
	return b<<55 | b<<32
}

func (c *choices) Seed(int64) {}

// FuzzCompile builds clusters and edits them as the fuzzer chooses. After each edit the
// compiled state and the reference answer alike for every pair of places, and a second
// compilation gives the same.
func FuzzCompile(f *testing.F) {
	for seed := range int64(12) {
		b := make([]byte, 40*seed)
		rand.New(rand.NewSource(seed)).Read(b)
		f.Add(b)
	}
	f.Add(binary.BigEndian.AppendUint64(nil, 1<<63-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := randomcluster.New(rand.New(&choices{b, rand.NewSource(int64(len(b)))}))
		ids := policy.NewAllocator()
		for range 3 {
			result := policy.Compile(w.Cluster, w.Node, w.Locals, ids)
			for _, problem := range result.Errors {
				t.Errorf("a valid cluster: %v", problem)
			}
			again := policy.Compile(w.Cluster, w.Node, w.Locals, ids)
			if result.State.Text() != again.State.Text() {
				t.Errorf("compiled twice:\n%s\n%s", result.State.Text(), again.State.Text())
			}
			c := comparison{w, ids, result.State}
			for _, from := range w.Places {
				for _, to := range w.Places {
					if tuple, ok := w.Tuple(from, to); ok {
						c.ask(t, tuple, from.Local != 0, to.Local != 0)
					}
				}
			}
			w.Edit()
		}
	})
}
