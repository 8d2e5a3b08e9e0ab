package packet

import (
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

// opening is what a SYN comes to on an entry that is there.
type opening int

const (
	same      opening = iota // it is the entry's own flow
	fresh                    // a new flow in its place
	untracked                // let through, the entry is left alone
	denied                   // dropped for policy, the entry is left alone
)

// situation is where a connection from a to b stands when somebody opens the tuple again.
type situation struct {
	name    string
	packets string        // as life has them
	age     time.Duration // then this passes
	revoked bool          // and b lets nobody in any more
	again   bool          // and then a again
	end     uint8         // how the old flow is reported once there is a fresh one
	byA     opening
	byB     opening // with b free to reach a; without, it is denied
}

const hours = 7 * time.Hour

var situations = []situation{
	{name: "SYN seen", packets: ">S", byA: same, byB: untracked},
	{name: "SYN answered", packets: ">S <SA", byA: same, byB: untracked},
	{name: "open", packets: ">S <SA >A", byA: same, byB: untracked},
	{name: "a is done", packets: ">S <SA >A >FA", byA: same, byB: untracked},
	{name: "b is done", packets: ">S <SA >A <FA", byA: same, byB: untracked},
	{name: "closing", packets: ">S <SA >A >FA <FA", end: endFIN, byA: fresh, byB: fresh},
	{name: "reset", packets: ">S <SA >A <R", end: endRST, byA: fresh, byB: fresh},
	{name: "refused", packets: ">S <RA", end: endRST, byA: fresh, byB: fresh},
	{name: "closed by both", packets: ">S <SA >A >FA <FA", age: hours, end: endFIN, byA: fresh, byB: fresh},
	{name: "timed out", packets: ">S <SA >A", age: hours, end: endTimeout, byA: fresh, byB: fresh},
	{name: "revoked", packets: ">S <SA >A", revoked: true, end: endRevoked, byA: denied, byB: fresh},
	{name: "revoked when closing", packets: ">S <SA >A >FA <FA", revoked: true, end: endRevoked, byA: denied, byB: fresh},
	{name: "revoked and timed out", packets: ">S <SA >A", revoked: true, age: hours, end: endRevoked, byA: denied, byB: fresh},
	{name: "revoked and allowed again", packets: ">S <SA >A", revoked: true, again: true, end: endRevoked, byA: fresh, byB: fresh},
}

// B16, review 7: a SYN on an old tuple is judged as what it is, an opener: in its own
// direction, and never by what was allowed before.
func TestSYNOnAnOldTuple(t *testing.T) {
	for _, s := range situations {
		t.Run(strings.ReplaceAll(s.name, " ", "-"), func(t *testing.T) {
			w := newSceneWith(t, fromAAny, loader.Config{Timeouts: loader.Timeouts{Linger: time.Hour}}).watch(t)
			for i, c := range []struct {
				byB  bool
				free bool // b may reach a
				want opening
			}{{false, true, s.byA}, {false, false, s.byA}, {true, true, s.byB}, {true, false, denied}} {
				for _, v6 := range []bool{false, true} {
					w.reopen(s, uint16(1000+i), v6, c.byB, c.free, c.want)
				}
			}
		})
	}
}

func (w *watch) reopen(s situation, port uint16, v6, byB, free bool, want opening) {
	w.t.Helper()
	first := w.prepare(s, port, v6, free)
	opener, by, syn := w.a, "a", first
	if byB {
		opener, by, syn = w.b, "b", answer(first, "S")
	}
	what := strings.Join([]string{s.name, "opened by", by}, " ")
	was, before := w.flow(first), w.counters()
	w.from(w.t, what, opener, syn, []outcome{redirected, redirected, next, dropped(bpf.WeirDropReasonDROP_POLICY)}[want])
	after := w.counters()
	if got := after.FlowsNew-before.FlowsNew == 1; got != (want == fresh) {
		w.t.Errorf("%s: a new flow %v, want %v", what, got, want == fresh)
	}
	if got := after.Untracked-before.Untracked == 1; got != (want == untracked) {
		w.t.Errorf("%s: untracked %v, want %v", what, got, want == untracked)
	}
	if want != fresh {
		if is := w.flow(first); is.State != was.State || is.Created != was.Created || is.Owner != was.Owner {
			w.t.Errorf("%s: the entry changed from %+v to %+v", what, was, is)
		}
		return
	}
	if e := w.ended(first); e.End != s.end {
		w.t.Errorf("%s: the old flow ended by %d, want %d", what, e.End, s.end)
	}
	w.goesOn(what, first, opener, syn)
}

// prepare brings the connection where the situation has it and returns its SYN.
func (w *watch) prepare(s situation, port uint16, v6, free bool) testnode.Frame {
	w.t.Helper()
	w.Set(w.b, open, fromAAny)
	w.Commit(w.t)
	first := w.play(life{protocol: 6, packets: s.packets}, port, v6)
	egress := uint32(open)
	if !free {
		egress = closed
	}
	w.Set(w.b, egress, map[bool]uint32{true: closed, false: fromAAny}[s.revoked])
	w.Commit(w.t)
	if s.revoked {
		w.from(w.t, s.name+": a's next packet", w.a, flags(first, "A"), dropped(bpf.WeirDropReasonDROP_POLICY))
	} else if s.byA == same { // the entry is stamped in the present epoch
		w.from(w.t, s.name+": a's next packet", w.a, first, redirected)
	}
	if s.again {
		w.Set(w.b, egress, fromAAny)
		w.Commit(w.t)
	}
	if s.age != 0 {
		w.lapse(s.age, first)
	}
	return first
}

// goesOn holds that the flow is the opener's now, and its peer answers.
func (w *watch) goesOn(what string, first testnode.Frame, opener testnode.Pod, syn testnode.Frame) {
	w.t.Helper()
	peer := w.a
	if opener == w.a {
		peer = w.b
	}
	if !w.began(syn) || w.flow(first).Owner != opener.Number {
		w.t.Errorf("%s: the flow is not the opener's: %+v", what, w.flow(first))
	}
	w.from(w.t, what+": answered", peer, answer(syn, "SA"), redirected)
	w.from(w.t, what+": and open", opener, flags(syn, "A"), redirected)
	if n := len(w.events(datapath.EventNew, syn, 1)); n < 1 {
		w.t.Errorf("%s: no record of the new flow", what)
	}
}
