package packet

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/reader"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/testnode"
)

// Overload, with every buffer far too small: what was sent is what was delivered and what was
// lost, at each step, to the packet.
//
//	packets sent -> kernel rings (a page each, the least there is) -> log (64 records) -> a reader, and one that dawdles
func TestOverloadIsAccountedForExactly(t *testing.T) {
	const each = 20000
	s := newSceneWith(t, closed, loader.Config{Sizes: loader.Sizes{"flow_events": 4096, "denial_events": 4096}})
	log := flowlog.New(nobody{}, flowlog.Options{Node: "n", Size: 64, Counters: s.Kernel.Counters})
	in, err := reader.Open(s.Config.BPFFSDir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- log.Run(ctx, in) }()
	s.FromPod(t, s.a, testnode.UDP(s.a.Addr4, 999, outside, 53))
	for deadline := time.Now().Add(10 * time.Second); log.Status().Records == 0; time.Sleep(time.Millisecond) { // it reads
		if time.Now().After(deadline) {
			t.Fatal("the log does not read")
		}
	}
	before, err := s.Kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	early := log.Status()

	var readers sync.WaitGroup
	sinks := []*countingSink{{}, {dawdle: 5 * time.Millisecond}}
	for _, sink := range sinks {
		sink.began = make(chan struct{})
		readers.Go(func() { _ = log.Query(ctx, api.FlowQuery{Follow: true, New: true}, sink) })
		<-sink.began
	}

	w := &watch{scene: s, t: t}
	allowed := []*volley{fromPod(s.a, testnode.UDP(s.a.Addr4, 1, outside, 53), 1000, each), fromPod(s.c, testnode.UDP(s.c.Addr4, 1, outside, 53), 1000, each)}
	denied := fromPod(s.c, testnode.UDP(s.c.Addr4, 1, s.b.Addr4, 54), 1000, each)
	var sent []<-chan error
	for _, v := range append(allowed, denied) {
		sent = append(sent, w.send(v))
	}
	for _, done := range sent {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if got := allowed[0].passed.Load() + allowed[1].passed.Load(); got != 2*each || denied.passed.Load() != 0 {
		t.Fatalf("%d of %d passed, and %d of none", got, 2*each, denied.passed.Load())
	}

	// Quiet now: what is on its way arrives.
	n, err := s.Kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	emitted := n.EventsEmitted + n.DenialsEmitted - before.EventsEmitted - before.DenialsEmitted
	lost := n.EventsLost + n.DenialsLost
	deadline := time.Now().Add(30 * time.Second)
	settled := func() bool {
		st := log.Status()
		return st.Read-early.Read == emitted && sinks[0].sum() == emitted && sinks[1].sum() == emitted &&
			sinks[0].kernelLost() == lost && sinks[1].kernelLost() == lost
	}
	for !settled() {
		if time.Now().After(deadline) {
			t.Errorf("not settled: emitted %d, lost %d, %+v, readers %d and %d, told %d lost", emitted, lost, log.Status(), sinks[0].sum(), sinks[1].sum(), sinks[0].kernelLost())
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := n.EventsEmitted + n.EventsLost - before.EventsEmitted; got != 2*each {
		t.Errorf("%d flows began, %d events were written and %d lost", 2*each, n.EventsEmitted-before.EventsEmitted, n.EventsLost)
	}
	if got := n.DenialsEmitted + n.DenialsLost + n.DenialsSuppressed - before.DenialsEmitted; got != each {
		t.Errorf("%d packets were denied, %d accounted for: %+v", each, got, n)
	}
	if n.EventsLost == 0 || sinks[1].lost() == 0 {
		t.Errorf("nothing was lost: kernel %d, dawdler %d: this was no overload", n.EventsLost, sinks[1].lost())
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	readers.Wait()
	account, records := log.Status().Readers, log.Status().Records-early.Records
	if len(account) != 1 || account[0].Open != 0 || account[0].Taken+account[0].Lost != 2*records {
		t.Errorf("the account says %+v of %d records, the readers %d and %d lost", account, records, sinks[0].lost(), sinks[1].lost())
	}
	t.Logf("%d packets: kernel wrote %d and lost %d; %d records; the dawdler lost %d", 3*each, emitted, lost, records, sinks[1].lost())
}

// countingSink counts what a client is sent.
type countingSink struct {
	dawdle time.Duration
	began  chan struct{}
	once   sync.Once

	mu                        sync.Mutex
	records, missed, inKernel uint64
}

func (c *countingSink) Send(m *observerpb.GetFlowsResponse) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch lost := m.GetLostEvents(); {
	case lost == nil:
		c.records++
	case lost.GetSource().String() == "HUBBLE_RING_BUFFER":
		c.missed += lost.GetNumEventsLost()
	default:
		c.inKernel += lost.GetNumEventsLost()
	}
	return nil
}

func (c *countingSink) Flush() error {
	c.once.Do(func() { close(c.began) })
	time.Sleep(c.dawdle)
	return nil
}

func (c *countingSink) get(f func() uint64) uint64 { c.mu.Lock(); defer c.mu.Unlock(); return f() }
func (c *countingSink) sum() uint64                { return c.get(func() uint64 { return c.records + c.missed }) }
func (c *countingSink) lost() uint64               { return c.get(func() uint64 { return c.missed }) }
func (c *countingSink) kernelLost() uint64         { return c.get(func() uint64 { return c.inKernel }) }

// nobody is a flowlog.Names that knows none.
type nobody struct{}

func (nobody) Endpoint(uint32) *flowlog.Party                  { return nil }
func (nobody) Peer(netip.Addr, identity.Number) *flowlog.Party { return nil }
func (nobody) Rule(uint32) (policy.Rule, bool)                 { return policy.Rule{}, false }
func (nobody) Service(netip.Addr) *flowlog.Ref                 { return nil }
func (nobody) ServiceNumbered(uint16) *flowlog.Ref             { return nil }
func (nobody) Interface(uint32) string                         { return "" }
