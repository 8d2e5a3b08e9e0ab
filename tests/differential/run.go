// Package differential asks the programs on their real maps, the reference verdict, its
// explanation, and engines that others wrote the same questions, over random clusters: what
// becomes of a packet, and which rules say so.
package differential

import (
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"testing"

	"github.com/weirnet/weir/datapath"
)

// Options of a run.
type Options struct {
	Seed   int64 // of the first node
	Nodes  int   // random ones; each sees one cluster after another
	Sets   int   // clusters on each node
	Judges []Judge
	Review Review // nil = none
}

// Run commits random clusters to nodes, one after another, and hands them packets: the first
// of new flows, TCP from the middle of unknown ones, and more of those that began under
// earlier clusters, from either end. Verdict, rule ids, marks, flow entries, denial counts and
// events must be what the reference says; the judges must say the same, and the explanation.
// It returns how many packets all of them spoke of.
func Run(t *testing.T, o Options) (unanimous int) {
	var sum tally
	var mu sync.Mutex
	t.Run("nodes", func(t *testing.T) {
		for i := range o.Nodes {
			t.Run(fmt.Sprint("seed=", o.Seed+int64(i)), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, o.Seed+int64(i), o)
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					sum.add(r.tally)
				}()
				for set := 0; set < o.Sets && !t.Failed(); set++ {
					r.next(t)
					if failed := r.round(t, r.questions()); failed != "" {
						t.Fatal(failed)
					}
				}
			})
		}
	})
	t.Attr("compared", sum.String())
	sum.check(t)
	return sum.unanimous
}

// Find is Run on one node until somebody disagrees: it returns what Run would print.
func Find(t *testing.T, o Options) string {
	t.Helper()
	r := newRig(t, o.Seed, o)
	for range o.Sets {
		r.next(t)
		if failed := r.round(t, r.questions()); failed != "" {
			return failed
		}
	}
	return ""
}

// round asks about every pair of places, then about flows of earlier clusters. It returns
// the first disagreement, shrunk.
func (r *rig) round(t *testing.T, questions []*question) (failed string) {
	t.Helper()
	err := r.node.Do(func() error {
		if err := r.askAll(questions); err != nil {
			return err
		}
		return r.revisit()
	})
	if f := new(failure); asFailure(err, &f) {
		return r.explain(f)
	} else if err != nil {
		t.Fatal(err)
	}
	r.checkEvents(t)
	return ""
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
