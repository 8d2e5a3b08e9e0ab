package atomic

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

var commits = flag.Int("commits", 1000, "commits of each scene")

// Each epoch lasts for so many packets of one judge at least.
const packetsAnEpoch = 200

// TestNoPacketSeesAMixture hands new packets to the hooks on two threads while a third
// commits one state after the other.
func TestNoPacketSeesAMixture(t *testing.T) {
	for name, s := range scenes {
		t.Run(name, func(t *testing.T) {
			f := newFlood(t, s)
			events := f.watch(t)
			sum, err := f.run(t, *commits)
			if err != nil {
				t.Fatal(err)
			}
			sum.report(t, f.base, *commits)
			events.check(t, f)
		})
	}
}

// TestAMixtureIsCaught shows that the flood can fail: the second state has some words that
// are still the first's.
func TestAMixtureIsCaught(t *testing.T) {
	for name, s := range scenes {
		if s.outside != nil {
			continue
		}
		n := 0
		for m := range mixed(s.states(s.locals())) {
			if n++; n > 6 {
				break
			}
			t.Run(fmt.Sprint(name, n), func(t *testing.T) {
				f := newFlood(t, s)
				for number, ep := range m.Endpoints {
					ep.Ifindex = f.locals[number-1].Endpoint.Ifindex
					m.Endpoints[number] = ep
				}
				f.states[1] = m
				if _, err := f.run(t, 10); err == nil {
					t.Error("nobody noticed")
				}
			})
		}
	}
}

// run floods and commits, and says what was not as the epoch's state has it.
func (f *flood) run(t *testing.T, commits int) (sum tally, err error) {
	t.Helper()
	var judges []*judgeThread
	for i, cpu := range cpus(t) {
		judges = append(judges, f.judge(t, i+1, cpu))
	}
	f.judges = len(judges)
	f.flip(t, commits)
	var errs []error
	for _, j := range judges {
		errs = append(errs, <-j.done)
		sum.add(j.tally)
	}
	errs = append(errs, f.checkDenials(sum))
	return sum, errors.Join(errs...)
}

// flood is a node between two states.
type flood struct {
	node      *testnode.Node
	locals    []policy.Local
	states    [2]*datapath.State
	pairs     []pair
	addresses map[pair][2]netip.Addr
	outcomes  map[pair][2]outcome
	base      uint64 // epoch of states[0], first
	judges    int
	judged    chan struct{} // by one of them, packetsAnEpoch more
	sent      atomic.Uint64 // by sockets
	over      context.Context
	stop      context.CancelFunc
}

func newFlood(t *testing.T, s scene) *flood {
	t.Helper()
	f := emptyFlood(t, s, loader.Config{})
	for i := range f.locals {
		f.locals[i].Endpoint.Ifindex = uint32(f.node.AddDevice(t, fmt.Sprint("pod", i+1)))
	}
	f.compile(t, s)
	return f
}

// emptyFlood is one whose pods have no interfaces yet.
func emptyFlood(t *testing.T, s scene, cfg loader.Config) *flood {
	t.Helper()
	f := &flood{
		node: testnode.New(t, cfg), locals: s.locals(), pairs: s.pairs(), judged: make(chan struct{}),
		outcomes: map[pair][2]outcome{}, addresses: map[pair][2]netip.Addr{},
	}
	f.over, f.stop = context.WithCancel(t.Context())
	return f
}

// compile makes the states and what they say, and puts the first in force.
func (f *flood) compile(t *testing.T, s scene) {
	t.Helper()
	f.states[0], f.states[1] = s.states(f.locals)
	for _, p := range f.pairs {
		f.addresses[p] = [2]netip.Addr{s.address(p.from, p.family), s.address(p.to, p.family)}
		f.outcomes[p] = [2]outcome{s.judge(f.states[0], p), s.judge(f.states[1], p)}
	}
	epoch, err := f.node.Kernel.Commit(f.states[0])
	if err != nil {
		t.Fatal(err)
	}
	f.base = epoch
}

// at is what the state of an epoch says.
func (f *flood) at(p pair, epoch uint64) outcome { return f.outcomes[p][(epoch-f.base)&1] }

// flip commits one state after the other.
func (f *flood) flip(t *testing.T, commits int) {
	t.Helper()
	defer f.stop()
	for n := uint64(1); n <= uint64(commits); n++ {
		if !f.wait() {
			return
		}
		epoch, err := f.node.Kernel.Commit(f.states[n&1])
		if err != nil {
			t.Fatal(err)
		}
		if epoch != f.base+n {
			t.Fatalf("commit %d: epoch %d, want %d", n, epoch, f.base+n)
		}
	}
	f.wait()
}

// wait lets a judge send packetsAnEpoch; false when one has found something and stopped. The
// first word of each may be of packets from before, and one word more is a judge's second.
func (f *flood) wait() bool {
	for range f.judges + 1 {
		select {
		case <-f.judged:
		case <-f.over.Done():
			return false
		}
	}
	return true
}
