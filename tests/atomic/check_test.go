package atomic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/reader"
)

// tally is how many packets were judged, and under which epoch.
type tally struct {
	packets, dropped int
	between          int // forwarded while the epoch moved, without an entry that tells
	epochs           map[uint64]int
}

func (n *tally) add(m tally) {
	if n.epochs == nil {
		n.epochs = map[uint64]int{}
	}
	n.packets, n.dropped, n.between = n.packets+m.packets, n.dropped+m.dropped, n.between+m.between
	for epoch, k := range m.epochs {
		n.epochs[epoch] += k
	}
}

// under counts a packet to its epoch, 0 = not known.
func (n *tally) under(epoch uint64) {
	if epoch == 0 {
		n.between++
	} else {
		n.epochs[epoch]++
	}
}

func (n *tally) report(t *testing.T, base uint64, commits int) {
	t.Helper()
	least, median, most := spread(n.epochs, base, commits)
	t.Attr("judged", fmt.Sprintf("%d packets under %d epochs, %d dropped; an epoch: least %d, median %d, most %d; %d while it moved, not known under which",
		n.packets, commits+1, n.dropped, least, median, most, n.between))
	if least == 0 {
		t.Errorf("an epoch had no packets")
	}
	if n.dropped*20 < n.packets || n.dropped*20 > 19*n.packets {
		t.Errorf("%d of %d dropped: too much alike to tell anything", n.dropped, n.packets)
	}
}

// spread of how many an epoch had.
func spread(epochs map[uint64]int, base uint64, commits int) (least, median, most int) {
	var each []int
	for epoch := base; epoch <= base+uint64(commits); epoch++ {
		each = append(each, epochs[epoch])
	}
	slices.Sort(each)
	return each[0], each[len(each)/2], each[len(each)-1]
}

// chatter is what a real interface says by itself, from before it is an endpoint, and what
// the kernel drops of answers that nobody waits for any more.
var chatter = []bpf.WeirDropReason{bpf.WeirDropReasonDROP_NEIGHBOUR, bpf.WeirDropReasonDROP_MULTICAST, bpf.WeirDropReasonDROP_NO_ENDPOINT, bpf.WeirDropReasonDROP_KERNEL}

// checkDenials holds the exact counts of denials, which know no epoch, to those that one of
// the states has: a mixture's would be of another direction or rule.
func (f *flood) checkDenials(sum tally) error {
	type denial struct {
		endpoint, rule uint32
		direction      datapath.Direction
	}
	may := map[denial]bool{}
	for p, states := range f.outcomes {
		for _, o := range states {
			if !o.forwarded {
				rule, direction := o.denial()
				may[denial{p.from, rule, datapath.Direction(direction)}] = true
				may[denial{p.to, rule, datapath.Direction(direction)}] = true // an answer's
			}
		}
	}
	all, err := f.node.Kernel.Denials()
	if err != nil {
		return err
	}
	total := 0
	for _, d := range all {
		if slices.Contains(chatter, bpf.WeirDropReason(d.Reason)) {
			continue
		}
		total += int(d.Packets)
		if !slices.Contains(denials, bpf.WeirDropReason(d.Reason)) || !may[denial{d.Endpoint, d.Rule, d.Direction}] {
			return fmt.Errorf("a denial that neither state has: %+v", d)
		}
	}
	if total != sum.dropped && sum.dropped >= 0 {
		return fmt.Errorf("%d packets dropped, %d denials counted", sum.dropped, total)
	}
	return nil
}

// watching reads the node's events, each of which says its epoch.
type watching struct {
	in     datapath.Reader
	done   chan struct{}
	wrong  []datapath.Event
	seen   map[datapath.EventKind]int
	epochs map[uint64]int // events that tell how something was judged
}

func (f *flood) watch(t *testing.T) *watching {
	t.Helper()
	in, err := reader.Open(f.node.Config.BPFFSDir)
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{in: in, done: make(chan struct{}), seen: map[datapath.EventKind]int{}, epochs: map[uint64]int{}}
	of := map[[2]netip.Addr]pair{}
	for p, addrs := range f.addresses {
		of[addrs] = p
	}
	go func() {
		defer close(w.done)
		for {
			ev, err := in.Read()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil {
				t.Errorf("read events: %v", err)
				return
			}
			w.seen[ev.Kind]++
			p := of[[2]netip.Addr{ev.Source.Addr(), ev.Destination.Addr()}]
			if ev.Source.Port() == dport {
				p = of[[2]netip.Addr{ev.Destination.Addr(), ev.Source.Addr()}]
			}
			if ev.Kind == datapath.EventEnded || ev.Reason == datapath.ReasonKernel {
				continue
			}
			w.epochs[ev.Epoch]++
			if !f.agrees(ev, f.at(p, ev.Epoch)) {
				w.wrong = append(w.wrong, ev)
			}
		}
	}()
	return w
}

func (f *flood) agrees(ev datapath.Event, want outcome) bool {
	return ev.Dropped != want.forwarded && ev.Rule == want.rule
}

func (w *watching) check(t *testing.T, f *flood) {
	t.Helper()
	w.in.Close()
	<-w.done
	c, err := f.node.Kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	t.Attr("events", fmt.Sprintf("%d flows began, %d were revoked, %d denied packets, %d ended; %d lost, %d denials past the budget; restamped %d, judged again %d",
		w.seen[datapath.EventNew], w.seen[datapath.EventRevoked], w.seen[datapath.EventDenied], w.seen[datapath.EventEnded],
		c.EventsLost+c.DenialsLost, c.DenialsSuppressed, c.FlowsRestamped, c.FlowsRejudged))
	if len(w.wrong) > 0 {
		t.Errorf("%d events are not of their epoch's state; the first: %+v", len(w.wrong), w.wrong[0])
	}
}
