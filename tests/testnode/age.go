package testnode

import (
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

// sweepSlice is how many slots the sweep visits in one tick (bpf/sweep.h).
const sweepSlice = 4096

// Age makes an entry look as if d more had passed since its newest packet and, if it is
// closed, since its end. Packets of the flow must not come meanwhile.
func (t *Tables) Age(key *bpf.WeirFlowKey, d time.Duration) error {
	var f bpf.WeirFlow
	if err := t.flows.Lookup(key, &f); err != nil {
		return fmt.Errorf("age flow: %w", err)
	}
	ms := uint64(d.Milliseconds())
	f.Side[0].Last -= ms
	f.Side[1].Last -= ms
	if f.State&uint32(bpf.WeirFlowStateFLOW_CLOSED) != 0 {
		f.Told -= uint32(ms)
	}
	if err := t.flows.Update(key, &f, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("age flow: %w", err)
	}
	return nil
}

// Control reads the node's page of words.
func (t *Tables) Control() (bpf.WeirControl, error) {
	var c bpf.WeirControl
	if err := t.control.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("read map %s: %w", maps.MapControl, err)
	}
	return c, nil
}

// Sweep waits until the sweep has visited every entry that is there now.
func (t *Tables) Sweep(tb testing.TB) {
	tb.Helper()
	c, err := t.Control()
	if err != nil {
		tb.Fatal(err)
	}
	done := c.SweepTicks + 2 + c.FlowSlotNext/sweepSlice
	for end := time.Now().Add(time.Minute); c.SweepTicks < done; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("the sweep stands at tick %d for a minute", c.SweepTicks)
		}
		if c, err = t.Control(); err != nil {
			tb.Fatal(err)
		}
	}
}
