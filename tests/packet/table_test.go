package packet

import (
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

// B17: a pod that opens flows without end gets its share and what is nobody's, and takes
// nothing from its neighbours.
func TestFlowShare(t *testing.T) {
	const share, capacity, borrowable = 4, 16, 16 - 3*4
	s := newSceneWith(t, open, loader.Config{FlowShare: share, Sizes: loader.Sizes{"flows": capacity}})
	opened := func(p testnode.Pod, n int) (ok int) {
		for i := 0; i < n; i++ {
			if s.FromPod(t, p, testnode.UDP(p.Addr4, uint16(2000+i), outside, 53)).Verdict == testnode.Next {
				ok++
			}
		}
		return ok
	}
	before := s.Drops(t)
	if got := opened(s.a, 100); got != share+borrowable {
		t.Errorf("a opened %d flows, want its share and what can be lent: %d", got, share+borrowable)
	}
	want := uint64(100 - share - borrowable)
	if d := diff(before, s.Drops(t)); d[datapath.Reason(bpf.WeirDropReasonDROP_FLOW_SHARE)] != want {
		t.Errorf("dropped %v, want %d for the share", d, want)
	}
	for _, p := range []testnode.Pod{s.b, s.c} {
		if got := opened(p, 100); got != share {
			t.Errorf("pod %d opened %d flows beside a greedy one, want its share %d", p.Number, got, share)
		}
	}
	s.from(t, "a's first flow lives", s.a, testnode.UDP(s.a.Addr4, 2000, outside, 53), next)
}

// The sweep ages entries without an agent: closed and reported, later deleted, and their
// share and slot are free again.
func TestSweepAgesFlows(t *testing.T) {
	s := newSceneWith(t, open, loader.Config{Timeouts: loader.Timeouts{UDP: 200 * time.Millisecond, Linger: 200 * time.Millisecond}})
	const n = 50
	for i := 0; i < n; i++ {
		s.from(t, "new flow", s.a, testnode.UDP(s.a.Addr4, uint16(1000+i), s.b.Addr4, 53), redirected)
	}
	s.from(t, "TCP stays", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S"), redirected)
	deadline := time.Now().Add(20 * time.Second)
	for {
		left, err := s.Kernel.FlowsOf(s.a.Number)
		if err != nil {
			t.Fatal(err)
		}
		if left == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d flows left after 20 s, want 1", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
	c, _ := s.Kernel.Counters()
	if c.FlowsEnded != n || c.EventsEmitted+c.EventsLost != 2*n+1 {
		t.Errorf("ended %d, events %d; want %d and %d", c.FlowsEnded, c.EventsEmitted+c.EventsLost, n, 2*n+1)
	}
}

// Review 18: programs loaded again, by a starting agent, change no verdict and keep flows.
func TestReloadKeepsFlows(t *testing.T) {
	s := newScene(t, fromA80)
	s.Set(s.b, closed, fromA80)
	s.Commit(t)
	s.from(t, "SYN", s.a, tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S"), redirected)
	epoch := s.Kernel.Epoch()
	s.Load(t)
	if got := s.Commit(t); got != epoch {
		t.Errorf("epoch %d after adopting an unchanged state, want %d", got, epoch)
	}
	s.from(t, "answer by the new programs", s.b, tcp(s.b.Addr4, 80, s.a.Addr4, 1, "SA"), redirected)
	s.from(t, "denied as before", s.b, tcp(s.b.Addr4, 9, s.a.Addr4, 1, "S"), dropped(bpf.WeirDropReasonDROP_POLICY))
}

// B21: another pod with a gone one's address. The old pod's entry answers for nobody.
func TestAddressReuse(t *testing.T) {
	s := newScene(t, open)
	f := tcp(s.a.Addr4, 1, s.b.Addr4, 80, "S")
	s.from(t, "to the old pod", s.a, f, redirected)
	delete(s.State.Endpoints, s.b.Number)
	delete(s.State.Peers, prefix(s.b.Addr4+"/32"))
	s.Commit(t)
	old := tcp(s.b.Addr4, 80, s.a.Addr4, 1, "A")
	if r := s.FromPod(t, s.b, old); r.Verdict != testnode.Drop {
		t.Errorf("the old pod's interface: verdict %d", r.Verdict)
	}
	d := s.AddPod(t, s.b.Addr4, "", idC, open, closed)
	s.Commit(t)
	s.from(t, "the new pod denies the old tuple", s.a, f, dropped(bpf.WeirDropReasonDROP_POLICY))
	s.from(t, "the old interface stays dead", s.b, old, dropped(bpf.WeirDropReasonDROP_NO_ENDPOINT))
	s.Set(d, open, fromA80)
	s.Commit(t)
	s.from(t, "allowed at the new pod", s.a, f, redirected)
	s.from(t, "its answer", d, tcp(d.Addr4, 80, s.a.Addr4, 1, "SA"), redirected)
}
