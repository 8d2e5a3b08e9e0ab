package packet

import (
	"fmt"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

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

// reopened is one SYN on one old tuple.
type reopened struct {
	situation
	byB   bool
	want  opening
	first testnode.Frame // the connection's own SYN
}

func (r reopened) String() string {
	return fmt.Sprintf("%s, opened by %s, %v", r.name, map[bool]string{false: "a", true: "b"}[r.byB], r.first.Src)
}

// B16, review 7: a SYN on an old tuple is judged as what it is, an opener: in its own
// direction, and never by what was allowed before.
func TestSYNOnAnOldTuple(t *testing.T) {
	w := newSceneWith(t, fromAAny, loader.Config{Timeouts: loader.Timeouts{Linger: time.Hour}}).watch(t)
	port := uint16(1000)
	for _, free := range []bool{true, false} { // b may reach a
		for _, history := range [][2]bool{{false, false}, {true, false}, {true, true}} {
			var all []*reopened
			for _, s := range situations {
				if s.revoked != history[0] || s.again != history[1] {
					continue
				}
				for i := range 4 {
					port++
					r := &reopened{situation: s, byB: i&1 != 0, want: s.byA}
					if r.byB {
						r.want = map[bool]opening{true: s.byB, false: denied}[free]
					}
					r.first = w.play(life{protocol: layers.IPProtocolTCP, packets: s.packets}, port, i&2 != 0)
					all = append(all, r)
				}
			}
			w.pass(all, free, history[0], history[1])
			for _, r := range all {
				w.reopen(r)
			}
			w.Set(w.b, open, fromAAny)
			w.Commit(t)
		}
	}
}

// pass brings the connections where their situations have them.
func (w *watch) pass(all []*reopened, free, revoked, again bool) {
	w.t.Helper()
	egress := map[bool]uint32{true: open, false: closed}[free]
	w.Set(w.b, egress, map[bool]uint32{true: closed, false: fromAAny}[revoked])
	w.Commit(w.t)
	for _, r := range all {
		if revoked {
			w.from(w.t, r.String()+": a's next packet", w.a, flags(r.first, "A"), policyDrop)
		} else if r.byA == same { // the entry is stamped in the present epoch
			w.from(w.t, r.String()+": a's next packet", w.a, r.first, redirected)
		}
	}
	if again {
		w.Set(w.b, egress, fromAAny)
		w.Commit(w.t)
	}
	for _, r := range all {
		w.age(r.age, r.first)
	}
	w.tables.Sweep(w.t)
}

func (w *watch) reopen(r *reopened) {
	w.t.Helper()
	opener, syn := w.a, r.first
	if r.byB {
		opener, syn = w.b, answer(r.first, "S")
	}
	was, before := w.flow(r.first), w.counters()
	w.from(w.t, r.String(), opener, syn, []outcome{redirected, redirected, next, policyDrop}[r.want])
	after := w.counters()
	if got := after.FlowsNew-before.FlowsNew == 1; got != (r.want == fresh) {
		w.t.Errorf("%s: a new flow %v, want %v", r, got, r.want == fresh)
	}
	if got := after.Untracked-before.Untracked == 1; got != (r.want == untracked) {
		w.t.Errorf("%s: untracked %v, want %v", r, got, r.want == untracked)
	}
	if r.want != fresh {
		if is := w.flow(r.first); is.State != was.State || is.Created != was.Created || owner(is) != owner(was) {
			w.t.Errorf("%s: the entry changed from %+v to %+v", r, was, is)
		}
		return
	}
	if e := w.ended(r.first); e.End != r.end {
		w.t.Errorf("%s: the old flow ended by %d, want %d", r, e.End, r.end)
	}
	w.goesOn(r.String(), opener, syn)
}

// goesOn holds that the flow is the opener's now, and its peer answers.
func (w *watch) goesOn(what string, opener testnode.Pod, syn testnode.Frame) {
	w.t.Helper()
	peer := w.a
	if opener == w.a {
		peer = w.b
	}
	if !w.began(syn) || owner(w.flow(syn)) != opener.Number {
		w.t.Errorf("%s: the flow is not the opener's: %+v", what, w.flow(syn))
	}
	w.from(w.t, what+": answered", peer, answer(syn, "SA"), redirected)
	w.from(w.t, what+": and open", opener, flags(syn, "A"), redirected)
	w.events(datapath.EventNew, syn, 1)
}
