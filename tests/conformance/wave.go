package conformance

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/tests/lab"
)

// token names a question of a wave: it travels with the question and comes back with the
// answer.
type token uint32

const tokenSize = 4

func (w *wave) token(index int) token { return token(uint32(w.number)<<16 | uint32(index)) }

func (t token) index() int   { return int(t & 0xffff) }
func (t token) wave() uint16 { return uint16(t >> 16) }

// wave is all the questions of a step, asked at the same time.
//
// It is over when every answer that must come has come and the kernel has counted a drop by
// policy for every question that must have none. So nothing waits for silence to last, and
// silence is never taken for a verdict: a packet that was lost otherwise leaves the count
// short, and one that was let through leaves it short and is answered.
type wave struct {
	number   uint16
	expected []expectation
	got      []atomic.Int32 // lab.Answer of each
	missing  atomic.Int64   // answers that must come yet
	answers  chan struct{}  // closed when none is missing
	over     atomic.Bool
}

func newWave(number uint16, expected []expectation) *wave {
	w := &wave{number: number, expected: expected, got: make([]atomic.Int32, len(expected)), answers: make(chan struct{})}
	w.missing.Store(int64(len(expected) - w.denied()))
	if w.missing.Load() == 0 {
		close(w.answers)
	}
	return w
}

// denied is how many questions must not be answered.
func (w *wave) denied() int {
	n := 0
	for _, e := range w.expected {
		if !e.allowed() {
			n++
		}
	}
	return n
}

func (w *wave) going() bool { return !w.over.Load() }

func (w *wave) answer(t token) { w.note(t, lab.Answered) }
func (w *wave) refuse(t token) { w.note(t, lab.Refused) }

// note takes the first thing that came of a question; what belongs to another wave is late.
func (w *wave) note(t token, a lab.Answer) {
	if t.wave() != w.number || t.index() >= len(w.expected) {
		return
	}
	first := w.got[t.index()].CompareAndSwap(int32(lab.Silent), int32(a))
	if first && a == lab.Answered && w.expected[t.index()].allowed() && w.missing.Add(-1) == 0 {
		close(w.answers)
	}
}

func (w *wave) answerOf(index int) lab.Answer { return lab.Answer(w.got[index].Load()) }

// ask sends all questions from their pods and returns a function that ends the wave and
// says what went wrong in asking.
func (w *wave) ask(pods map[types.NamespacedName]*pod) (end func() error) {
	from := map[*pod][]token{}
	for i, e := range w.expected {
		p := pods[e.from]
		from[p] = append(from[p], w.token(i))
	}
	var all sync.WaitGroup
	errs := make([]error, len(from))
	n := 0
	for p, tokens := range from {
		p.wave.Store(w)
		failed := &errs[n]
		n++
		all.Go(func() { *failed = p.ask(w, tokens) })
	}
	return func() error {
		w.over.Store(true)
		all.Wait()
		return errors.Join(errs...)
	}
}

// ask puts one pod's questions and returns when the wave is over.
func (p *pod) ask(w *wave, tokens []token) error {
	var calls []token
	for _, t := range tokens {
		q := w.expected[t.index()].question
		var err error
		switch q.protocol {
		case corev1.ProtocolTCP:
			calls = append(calls, t)
		case corev1.ProtocolUDP:
			err = p.sendUDP(t, q)
		case corev1.ProtocolSCTP:
			err = p.sendSCTP(t, q)
		}
		if err != nil {
			return fmt.Errorf("ask %s %s %d/%s: %w", q.from, q.toAddr, q.port, q.protocol, err)
		}
	}
	done := make(chan error)
	p.thread <- func() { done <- p.callAll(w, calls) }
	return <-done
}

// await returns when no answer is missing or patience ends.
func (w *wave) await(patience time.Duration) {
	select {
	case <-w.answers:
	case <-time.After(patience):
	}
}
