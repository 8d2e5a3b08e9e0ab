// Package packetfuzz hands made-up and mutated frames of both families to the real programs
// and asks an independent parser what each of them is. Nothing may pass that the two take
// for different packets.
package packetfuzz

import (
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	seed   = flag.Int64("seed", 1, "first seed")
	frames = flag.Int("frames", 1000000, "frames in all")
)

// perNode frames meet one node's flow table; then there is another, with the next seed.
const perNode = 50000

func TestNothingPassesMisread(t *testing.T) {
	var sum tally
	var mu sync.Mutex
	t.Run("nodes", func(t *testing.T) {
		for i := range (*frames + perNode - 1) / perNode {
			t.Run(fmt.Sprint("seed=", *seed+int64(i)), func(t *testing.T) {
				t.Parallel()
				j := newJudge(newScene(t))
				mine, err := j.fuzz(newGenerator(*seed+int64(i)), min(perNode, *frames-i*perNode))
				if err != nil {
					t.Fatalf("%v\nAgain: -run %s -seed %d -frames %d", err, "TestNothingPassesMisread", *seed+int64(i), perNode)
				}
				mu.Lock()
				defer mu.Unlock()
				sum.add(mine)
			})
		}
	})
	t.Attr("compared", sum.String())
	if !t.Failed() {
		sum.check(t)
	}
}

// asPod reports whether a frame's source is a pod's: the node does not speak as a pod, and
// what it would begin so makes entries that are not the pod's.
func (j *judge) asPod(c sample) bool {
	return isPod(placeOf(j.read(c).source))
}

// isStub reports whether a frame ends before its IP header does: kernels as of 6.18 do not
// take such frames for a test run.
func isStub(frame []byte) bool {
	return frame[12] == 0x08 && len(frame) < 14+20 || frame[12] == 0x86 && len(frame) < 14+40
}

// fuzz judges frames in the node's namespace until two disagree.
func (j *judge) fuzz(g *generator, n int) (*tally, error) {
	sum := &tally{}
	err := j.Do(func() error {
		for range n {
			c, clean := g.next()
			if c.way.sender == host && j.asPod(c) {
				continue
			}
			cl, r, d, err := j.try(c)
			if errors.Is(err, unix.EINVAL) && isStub(c.frame) {
				sum.stubs++
				continue
			}
			if err != nil {
				return fmt.Errorf("%s, frame %x: %w", c.way, c.frame, err)
			}
			if d != nil {
				return j.shrink(d)
			}
			sum.note(clean, cl, r, j.mustPass(c.way, r))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum.past = j.pastStack
	c, err := j.Kernel.Counters()
	if err != nil {
		return nil, err
	}
	return sum, sum.reasons(c.Drops)
}
