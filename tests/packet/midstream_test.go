package packet

import (
	"fmt"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

var (
	stray      = dropped(bpf.WeirDropReasonDROP_TCP_STRAY)
	shareSpent = dropped(bpf.WeirDropReasonDROP_FLOW_SHARE)
)

// isolated makes b a pod that a alone may reach, on any port, and that may reach nobody.
func (w *watch) isolated() {
	w.t.Helper()
	w.Set(w.b, closed, fromAAny)
	w.Commit(w.t)
}

// Review 5: a server that pushes, whose entry is lost, goes on: the flow is the client's, is
// charged to who sent the packet, and is said to be picked up. As any, it can be revoked.
func TestPickedUpFlow(t *testing.T) {
	w := newScene(t, open).watch(t)
	for v6, r := range []road{w.roads()[0], w.roads()[0]} {
		w.isolated()
		f := begin(r, layers.IPProtocolTCP, 1000, v6)
		push := answer(f, "PA")
		w.from(t, "push", w.b, push, redirected)
		if flow := w.flow(f); !w.began(f) || owner(flow) != w.b.Number || flow.Rule != [2]uint32{datapath.RuleNotIsolated, ruleAAny} {
			t.Errorf("picked up as %+v, want a's flow, charged to b", flow)
		}
		if e := w.events(datapath.EventNew, f, 1); len(e) != 1 || !e[0].PickedUp {
			t.Errorf("recorded %+v, want one flow, picked up", e)
		}
		w.from(t, "a acknowledges", w.a, flags(f, "A"), redirected)
		w.from(t, "push", w.b, push, redirected)
		w.from(t, "b opens on it", w.b, answer(f, "S"), policyDrop)
		w.from(t, "a opens on it", w.a, flags(f, "S"), redirected)
		w.Set(w.b, closed, closed)
		w.Commit(t)
		w.from(t, "push, forbidden", w.b, push, policyDrop)
		w.from(t, "acknowledgement, forbidden", w.a, flags(f, "A"), policyDrop)
		w.isolated()
		w.from(t, "push, allowed again", w.b, push, redirected)
	}
	if c := w.counters(); c.FlowsPickedUp != 2 || c.FlowsNew != 2 {
		t.Errorf("%d picked up of %d new, want 2 of 2", c.FlowsPickedUp, c.FlowsNew)
	}
}

// What its own direction allows is nothing to pick up: it is the sender's own flow.
func TestMidStreamInItsOwnDirection(t *testing.T) {
	w := newScene(t, open).watch(t)
	w.isolated()
	f := tcp(w.a.Addr4, 1000, w.b.Addr4, 80, "PA")
	w.from(t, "data", w.a, f, redirected)
	if e := w.events(datapath.EventNew, f, 1); len(e) != 1 || e[0].PickedUp || !w.began(f) {
		t.Errorf("recorded %+v, want a's own flow", e)
	}
	w.from(t, "answer", w.b, answer(f, "A"), redirected)
}

// Nothing but plain ACK and data is picked up, and nothing that is forbidden both ways.
func TestWhatIsNotPickedUp(t *testing.T) {
	w := newScene(t, open).watch(t)
	w.isolated()
	port := uint16(2000)
	for v6, addr := range [2][2]string{{w.b.Addr4, w.a.Addr4}, {w.b.Addr6, w.a.Addr6}} {
		for fl, want := range map[string]outcome{
			"S": policyDrop, "SA": stray, "FA": stray, "R": stray, "RA": stray, "FPA": stray,
			"A": redirected, "PA": redirected, "PAU": redirected,
		} {
			port++
			w.from(t, fmt.Sprintf("v6 %d, TCP %s", v6, fl), w.b, tcp(addr[0], 80, addr[1], port, fl), want)
		}
		other := testnode.Frame{Src: addr[0], Dst: addr[1], Sport: 80, Dport: 3000, Payload: []byte("push")}
		for _, p := range []layers.IPProtocol{layers.IPProtocolUDP, layers.IPProtocolSCTP, layers.IPProtocolGRE} {
			other.Protocol = p
			w.from(t, fmt.Sprintf("v6 %d, %v", v6, p), w.b, other, policyDrop)
		}
		w.from(t, "an echo reply", w.b, testnode.Echo(addr[0], addr[1], 7, true), dropped(bpf.WeirDropReasonDROP_ICMP_TYPE))
	}
	w.from(t, "to who may not reach b either", w.b, tcp(w.b.Addr4, 80, w.c.Addr4, 1, "A"), policyDrop)
	w.to(t, "from outside, forbidden both ways", w.b, tcp(outside, 80, w.b.Addr4, 1, "A"), w.uplink, 0, policyDrop)
}

// A client behind the node answers into a lost entry of a pod that lets nobody in.
func TestPickedUpFromOutside(t *testing.T) {
	w := newScene(t, open).watch(t)
	w.Set(w.a, toWorld, closed)
	w.Commit(t)
	f := tcp(w.a.Addr4, 1000, outside, 80, "A")
	w.network(t, "the uplink leaves it to the pod's door", "from_network", answer(f, "PA"), w.uplink, 0, next)
	w.to(t, "push", w.a, answer(f, "PA"), w.uplink, 0, next)
	if flow := w.flow(f); !w.began(f) || owner(flow) != w.a.Number {
		t.Errorf("picked up as %+v, want a's flow, charged to a", flow)
	}
	w.to(t, "push of another", w.a, tcp("198.51.100.1", 80, w.a.Addr4, 1000, "PA"), w.uplink, 0, policyDrop)
	w.from(t, "acknowledged", w.a, f, next)
	w.network(t, "and now it is known", "from_network", answer(f, "PA"), w.uplink, 0, next)
}

// Who picks up pays: a pod cannot fill another's share by pushing at it.
func TestPickingUpCostsTheSender(t *testing.T) {
	const share, capacity = 4, 12
	w := newSceneWith(t, open, loader.Config{FlowShare: share, Sizes: loader.Sizes{"flows": capacity}}).watch(t)
	w.isolated()
	for i := range uint16(share) {
		w.from(t, "push", w.b, tcp(w.b.Addr4, 80, w.a.Addr4, 1000+i, "PA"), redirected)
	}
	w.from(t, "push past the share", w.b, tcp(w.b.Addr4, 80, w.a.Addr4, 2000, "PA"), shareSpent)
	if a, b := w.charged(w.a), w.charged(w.b); a != 0 || b != share {
		t.Errorf("charged %d to a and %d to b, want 0 and %d", a, b, share)
	}
}

// Only for a while after the flow table was made: an entry is lost with its table, and a pod
// that may open nothing could send for ever otherwise.
func TestPickUpEnds(t *testing.T) {
	for name, pickup := range map[string]time.Duration{"never": -1, "over": 300 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			w := newSceneWith(t, open, loader.Config{Pickup: pickup}).watch(t)
			w.isolated()
			w.eventually("the end of picking up", func() bool { c := w.control(); return c.Clock > 0 && c.Clock >= c.PickupUntil })
			for v6, addr := range [2][2]string{{w.b.Addr4, w.a.Addr4}, {w.b.Addr6, w.a.Addr6}} {
				for _, fl := range []string{"A", "PA"} {
					w.from(t, fmt.Sprint("v6 ", v6, " ", fl), w.b, tcp(addr[0], 80, addr[1], 7, fl), policyDrop)
				}
				w.from(t, "a's own, mid-stream", w.a, tcp(addr[1], 8, addr[0], 80, "PA"), stray)
				w.from(t, "its answer", w.b, tcp(addr[0], 80, addr[1], 8, "PA"), policyDrop)
			}
			w.Load(t) // an agent that starts moves no end
			w.from(t, "after a restart", w.b, tcp(w.b.Addr4, 80, w.a.Addr4, 9, "PA"), policyDrop)
		})
	}
}
