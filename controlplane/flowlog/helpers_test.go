package flowlog

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// names is a Names of fixed answers.
type names struct {
	endpoints map[uint32]*Party
	peers     map[netip.Addr]*Party
	rules     map[uint32]policy.Rule

	services   map[netip.Addr]*Ref
	numbered   map[uint16]*Ref
	interfaces map[uint32]string
}

func (n *names) Endpoint(number uint32) *Party { return n.endpoints[number] }

func (n *names) Peer(a netip.Addr, _ identity.Number) *Party { return n.peers[a] }

func (n *names) Service(a netip.Addr) *Ref { return n.services[a] }

func (n *names) ServiceNumbered(number uint16) *Ref { return n.numbered[number] }

func (n *names) Interface(index uint32) string { return n.interfaces[index] }

func (n *names) Rule(id uint32) (policy.Rule, bool) {
	if r, ok := policy.NewAllocator().Rule(id); ok {
		return r, true
	}
	r, ok := n.rules[id]
	return r, ok
}

var noon = time.Date(2026, 11, 24, 12, 0, 0, 123e6, time.UTC)

// shop has web (endpoint 1) and db (endpoint 2) on this node and cart elsewhere. db is
// isolated by two policies, one of which lets web in.
func shop() *names {
	isolating := []policy.Ref{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"}, {Kind: "NetworkPolicy", Namespace: "shop", Name: "deny-all"}}
	return &names{
		endpoints: map[uint32]*Party{
			1: {Namespace: "shop", Name: "web-1", Labels: []string{"app=web", "namespace:team=store", "port:http=80/TCP"}, Workload: Workload{"Deployment", "web"}},
			2: {Namespace: "shop", Name: "db-0", Labels: []string{"app=db"}, Workload: Workload{"StatefulSet", "db"}},
		},
		services:   map[netip.Addr]*Ref{netip.MustParseAddr("10.96.0.10"): {"kube-system", "dns"}},
		numbered:   map[uint16]*Ref{9: {"shop", "db"}},
		interfaces: map[uint32]string{7: "weir0000000000a"},
		peers: map[netip.Addr]*Party{
			netip.MustParseAddr("10.0.1.7"):     {Namespace: "shop", Name: "cart-3", Labels: []string{"app=cart"}},
			netip.MustParseAddr("192.168.0.10"): {Name: "worker-1"},
		},
		rules: map[uint32]policy.Rule{
			300: {ID: 300, Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "db", UID: "u", Index: 0, Direction: datapath.Ingress},
			301: {ID: 301, Kind: policy.KindDefaultDeny, Direction: datapath.Ingress, IsolatedBy: isolating},
			302: {ID: 302, Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "web-out", Index: 2, Direction: datapath.Egress},
			303: {ID: 303, Kind: policy.KindRefused, Direction: datapath.Ingress, IsolatedBy: isolating[:1]},
		},
	}
}

// began is web -> db:6379 as it begins, allowed on both sides.
func began() datapath.Event {
	return datapath.Event{
		Kind: datapath.EventNew, Time: noon, Created: 1e9, Epoch: 12,
		Source: netip.MustParseAddrPort("10.0.0.2:40001"), Destination: netip.MustParseAddrPort("10.0.0.3:6379"),
		Protocol: datapath.TCP, Ifindex: 7, Endpoint: [2]uint32{1, 2}, Identity: [2]identity.Number{1001, 1002},
		Rule: [2]uint32{datapath.RuleNotIsolated, 300}, Direction: datapath.None,
		Judged: datapath.JudgedEgress | datapath.JudgedIngress, Path: 1, TCPFlags: 0x02, Packets: [2]uint64{1, 0}, Bytes: [2]uint64{60, 0},
	}
}

func refused() datapath.Event {
	e := began()
	e.Kind, e.Created, e.Dropped, e.Reason, e.Direction = datapath.EventDenied, 0, true, datapath.ReasonPolicy, datapath.Ingress
	e.Rule[1], e.Path = 301, 0
	return e
}

func newLog(n Names, size int) *Log {
	return New(n, Options{Node: "worker-1", Version: "0.1.0", Size: size, Now: func() time.Time { return noon.Add(time.Second) }})
}

// reader yields what it is sent.
type reader struct {
	events chan datapath.Event
	closed chan struct{}
	broken error
}

func newReader() *reader {
	return &reader{events: make(chan datapath.Event), closed: make(chan struct{}), broken: os.ErrClosed}
}

func (r *reader) Read() (datapath.Event, error) {
	select {
	case e, ok := <-r.events:
		if !ok {
			return datapath.Event{}, r.broken
		}
		return e, nil
	case <-r.closed:
		return datapath.Event{}, os.ErrClosed
	}
}

func (r *reader) Close() error { close(r.closed); return nil }

// collector is a Sink.
type collector struct {
	got     []*observerpb.GetFlowsResponse
	flushes int
	enough  int           // Send fails from so many on; 0 = never
	hold    chan struct{} // Send waits for it
}

var errEnough = errors.New("enough")

func (c *collector) Send(m *observerpb.GetFlowsResponse) error {
	if c.hold != nil {
		<-c.hold
	}
	c.got = append(c.got, m)
	if c.enough > 0 && len(c.got) >= c.enough {
		return errEnough
	}
	return nil
}

func (c *collector) Flush() error { c.flushes++; return nil }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
