// Package differential asks the programs on their real maps and the reference verdict the
// same questions, over random clusters: what becomes of a packet, and which rules say so.
package differential

import (
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"sync"
	"testing"

	"github.com/weirnet/weir/datapath"
)

var (
	seed  = flag.Int64("seed", 1, "first seed")
	nodes = flag.Int("nodes", 14, "random nodes; each sees one cluster after another")
	sets  = flag.Int("sets", 60, "clusters on each node")
)

// TestKernelAgreesWithReference commits random clusters to a node, one after another, and
// hands it packets: the first of new flows, TCP from the middle of unknown ones, and more of
// those that began under earlier clusters, from either end. Verdict, rule ids, marks, flow
// entries, denial counts and events must be what the reference says.
func TestKernelAgreesWithReference(t *testing.T) {
	var sum tally
	var mu sync.Mutex
	t.Run("nodes", func(t *testing.T) {
		for i := range *nodes {
			t.Run(fmt.Sprint("seed=", *seed+int64(i)), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, *seed+int64(i))
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					sum.add(r.tally)
				}()
				for set := 0; set < *sets && !t.Failed(); set++ {
					r.next(t)
					r.round(t)
				}
			})
		}
	})
	t.Attr("compared", sum.String())
	sum.check(t)
}

// round asks about every pair of places, then about flows of earlier clusters.
func (r *rig) round(t *testing.T) {
	t.Helper()
	questions := r.questions()
	err := r.node.Do(func() error {
		if err := r.askAll(questions); err != nil {
			return err
		}
		return r.revisit()
	})
	if f := new(failure); asFailure(err, &f) {
		t.Fatal(r.explain(f))
	} else if err != nil {
		t.Fatal(err)
	}
	r.checkEvents(t)
}

func (r *rig) askAll(questions []*question) error {
	for _, q := range questions {
		if err := r.ask(q); err != nil {
			return err
		}
	}
	return nil
}

// ask sends the first packet of a flow; some are answered.
func (r *rig) ask(q *question) error {
	if other, err := r.begunByOther(q); err != nil || other {
		_, failed := r.send(packet{question: q.reversed(), reply: true})
		return errors.Join(err, failed)
	}
	if r.rand.Intn(8) == 0 {
		if err := r.checkExplain(q, r.reference(q)); err != nil {
			return err
		}
	}
	if q.tuple.Protocol == datapath.TCP && q.way <= toPod && q.from.Local != q.to.Local && r.rand.Intn(6) == 0 {
		return r.askLate(q)
	}
	q.sent = r.cluster
	forwarded, err := r.send(packet{question: q, first: true})
	if err != nil || !forwarded {
		return err
	}
	if r.rand.Intn(8) == 0 && q.from.Local != q.to.Local {
		if _, err := r.send(packet{question: q, reply: true}); err != nil {
			return err
		}
	}
	r.remember(q)
	return nil
}

// askLate sends what is not the beginning of a flow, and of none that is known. A plain ACK
// may be the answer in a flow that the other side began; the others make no flow.
func (r *rig) askLate(q *question) error {
	p := packet{question: q, first: true, flags: []string{"A", "A", "R", "SA", "FA"}[r.rand.Intn(5)]}
	if p.flags == "A" && !r.reference(q).forwarded && r.reference(q.reversed()).forwarded {
		p.question, p.reply = q.reversed(), true
	}
	_, err := r.send(p)
	return err
}

// revisit sends more packets of flows that earlier clusters allowed, of some twice.
func (r *rig) revisit() error {
	r.rand.Shuffle(len(r.old), func(i, j int) { r.old[i], r.old[j] = r.old[j], r.old[i] })
	for _, q := range r.old[:min(len(r.old), 600)] {
		for n := 1 + r.rand.Intn(2); n > 0; n-- {
			if _, err := r.send(packet{question: q, reply: r.rand.Intn(2) == 0 && q.from.Local != q.to.Local}); err != nil {
				return err
			}
		}
	}
	return nil
}

// remember keeps a flow for later clusters; there is room for some of the last few's.
func (r *rig) remember(q *question) {
	const room = 4000
	if len(r.old) < room {
		r.old = append(r.old, q)
	} else {
		r.old[r.rand.Intn(room)] = q
	}
}

func newRand(seed int64) *rand.Rand { return rand.New(rand.NewSource(seed)) }
