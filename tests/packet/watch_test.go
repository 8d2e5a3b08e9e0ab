package packet

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/reader"
	"github.com/weirnet/weir/tests/testnode"
)

// watch sees a scene's flow table and hears its events. A flow is named by the frame that
// began it.
type watch struct {
	*scene
	t      *testing.T
	tables *testnode.Tables

	mu    sync.Mutex
	heard []datapath.Event
}

func (s *scene) watch(t *testing.T) *watch {
	t.Helper()
	tables, err := s.Tables()
	if err != nil {
		t.Fatal(err)
	}
	w := &watch{scene: s, t: t, tables: tables}
	in, err := reader.Open(s.Config.BPFFSDir)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go w.listen(in, done)
	t.Cleanup(func() { in.Close(); <-done; tables.Close() })
	return w
}

func (w *watch) listen(in datapath.Reader, done chan struct{}) {
	defer close(done)
	for {
		e, err := in.Read()
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			w.t.Errorf("read events: %v", err)
			return
		}
		w.mu.Lock()
		w.heard = append(w.heard, e)
		w.mu.Unlock()
	}
}

// tuple is what a frame that begins a flow makes its ends.
func tuple(f testnode.Frame) (from, to netip.AddrPort) {
	var sport, dport uint16
	switch f.Protocol {
	case layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolSCTP:
		sport, dport = f.Sport, f.Dport
	case layers.IPProtocolICMPv4, layers.IPProtocolICMPv6:
		sport = f.ICMPID
	}
	return netip.AddrPortFrom(mustAddr(f.Src), sport), netip.AddrPortFrom(mustAddr(f.Dst), dport)
}

func (w *watch) key(f testnode.Frame) (key bpf.WeirFlowKey, side int) {
	from, to := tuple(f)
	return testnode.FlowKey(from, to, uint8(f.Protocol))
}

// flow is the entry of the flow, nil for none.
func (w *watch) flow(f testnode.Frame) *bpf.WeirFlow {
	w.t.Helper()
	var flow bpf.WeirFlow
	key, _ := w.key(f)
	ok, err := w.tables.Flow(&key, &flow)
	if err != nil {
		w.t.Fatal(err)
	}
	if !ok {
		return nil
	}
	return &flow
}

// owner is the endpoint that is charged for an entry.
func owner(f *bpf.WeirFlow) uint32 { return f.Endpoint[f.State/uint32(bpf.WeirFlowStateFLOW_OWNER)&1] }

func isClosed(f *bpf.WeirFlow) bool {
	return f.State&uint32(bpf.WeirFlowStateFLOW_CLOSED) != 0
}

func isRevoked(f *bpf.WeirFlow) bool { return f.Stamp&uint64(bpf.WeirStampBitsSTAMP_DROP) != 0 }

// began is whether the frame's sender is the flow's initiator.
func (w *watch) began(f testnode.Frame) bool {
	w.t.Helper()
	flow := w.flow(f)
	_, side := w.key(f)
	return flow != nil && int(flow.State&uint32(bpf.WeirFlowStateFLOW_INITIATOR)) == side
}

// age lets d pass for the flows.
func (w *watch) age(d time.Duration, frames ...testnode.Frame) {
	w.t.Helper()
	for _, f := range frames {
		key, _ := w.key(f)
		if err := w.tables.Age(&key, d); err != nil {
			w.t.Fatalf("%+v: %v", f, err)
		}
	}
}

// lapse lets d pass for the flows and the sweep see it.
func (w *watch) lapse(d time.Duration, frames ...testnode.Frame) {
	w.t.Helper()
	w.age(d, frames...)
	w.tables.Sweep(w.t)
}

// events of a kind about the flow, once there are n of them.
func (w *watch) events(kind datapath.EventKind, f testnode.Frame, n int) []datapath.Event {
	w.t.Helper()
	from, to := tuple(f)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		got := slices.Clone(w.heard)
		w.mu.Unlock()
		got = slices.DeleteFunc(got, func(e datapath.Event) bool {
			return e.Kind != kind || e.Source != from || e.Destination != to || e.Protocol != uint8(f.Protocol)
		})
		if len(got) >= n {
			return got
		}
		if time.Now().After(end) {
			w.t.Fatalf("%d events of kind %d about %v -> %v, want %d", len(got), kind, from, to, n)
		}
	}
}

// ended is the newest end of the flow.
func (w *watch) ended(f testnode.Frame) datapath.Event {
	w.t.Helper()
	got := w.events(datapath.EventEnded, f, 1)
	return got[len(got)-1]
}

// charged is how many flows count on a pod's share.
func (w *watch) charged(p testnode.Pod) uint64 {
	w.t.Helper()
	n, err := w.Kernel.FlowsOf(p.Number)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *watch) control() bpf.WeirControl {
	w.t.Helper()
	c, err := w.tables.Control()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *watch) counters() datapath.Counters {
	w.t.Helper()
	c, err := w.Kernel.Counters()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// answer turns a frame round; flags for TCP.
func answer(f testnode.Frame, flags string) testnode.Frame {
	f.Src, f.Dst, f.Sport, f.Dport, f.Flags = f.Dst, f.Src, f.Dport, f.Sport, flags
	switch {
	case f.Protocol == layers.IPProtocolICMPv4:
		f.ICMPType = 0
	case f.Protocol == layers.IPProtocolICMPv6:
		f.ICMPType = 129
	}
	return f
}

// flags is the frame with other TCP flags.
func flags(f testnode.Frame, flags string) testnode.Frame {
	f.Flags = flags
	return f
}

func (w *watch) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not within a minute: %s", what)
		}
	}
}
