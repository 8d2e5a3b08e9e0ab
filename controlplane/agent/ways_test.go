package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
)

// fakeRouter has the ways it is told to have.
type fakeRouter struct {
	blocked chan struct{} // Route returns once it is closed

	mu      sync.Mutex
	to      map[netip.Prefix]datapath.Way
	why     []string
	err     error
	changed func()
}

func (r *fakeRouter) Route(*source.Nodes, []netip.Prefix) error {
	<-r.blocked
	return nil
}

func (r *fakeRouter) Ways(*source.Nodes) (map[netip.Prefix]datapath.Way, []string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, nil, r.err
	}
	return maps.Clone(r.to), r.why, nil
}

func (r *fakeRouter) WatchWays(ctx context.Context, changed func()) error {
	r.mu.Lock()
	r.changed = changed
	r.mu.Unlock()
	<-ctx.Done()
	return nil
}

// set changes what it has.
func (r *fakeRouter) set(to map[netip.Prefix]datapath.Way, err error, why ...string) {
	r.mu.Lock()
	r.to, r.err, r.why = to, err, why
	changed := r.changed
	r.mu.Unlock()
	go changed()
}

// clusterSource is a source of nodes as well.
type clusterSource struct {
	Source
	nodes *source.Nodes
}

func (s clusterSource) Run(ctx context.Context, update func(source.Update)) error {
	return s.Source.Run(ctx, func(u source.Update) {
		u.Nodes = s.nodes
		update(u)
	})
}

var (
	rangeTwo = netip.MustParsePrefix("10.0.2.0/24")
	wayTwo   = datapath.Way{Ifindex: 2, MTU: 1500, Addr: netip.MustParseAddr("192.0.2.2")}
)

func waysText(s *datapath.State) string {
	var out []string
	for line := range strings.Lines(s.Text()) {
		if strings.HasPrefix(line, "way ") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, ", ")
}

func TestWaysAreCommitted(t *testing.T) {
	b := newBench(t)
	own, two := nodeOf("node", []string{"192.0.2.1"}, "10.0.1.0/24"), nodeOf("two", []string{"192.0.2.2"}, "10.0.2.0/24")
	b.nodes = &source.Nodes{Own: &own, Others: []source.Node{two}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}}
	router := &fakeRouter{blocked: make(chan struct{}), to: map[netip.Prefix]datapath.Way{rangeTwo: wayTwo}}
	b.router = router
	b.hooks.attach(2, "eth0", "from_network") // it was running before
	b.start()
	there := fmt.Sprintf("way to node %d (IPv4) via 192.0.2.2 dev 2 mtu 1500", nodeNumber("two"))
	if got := waysText(b.kernel.State()); got != there {
		t.Errorf("the first commit takes away the ways that there are: %q, want %q", got, there)
	}
	if got := b.kernel.State().Origins[rangeTwo]; got.Node != nodeNumber("two") || got.Address {
		t.Errorf("the programs are not told whose the range is: %+v", got)
	}
	close(router.blocked)
	expect := func(what, ways string, status api.HostRoutingStatus, warning string) {
		t.Helper()
		b.eventually(what, func() bool {
			s, err := b.agent.Status(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprint(*s.HostRouting)
			warned := strings.Join(s.Warnings, "\n")
			return waysText(b.kernel.State()) == ways && text == fmt.Sprint(status) && strings.Contains(warned, warning) && (warning != "" || !strings.Contains(warned, "stack"))
		})
	}
	expect("the ways that there are", there, api.HostRoutingStatus{Path: "bpf", Nodes: 1, Others: 1}, "")
	router.set(map[netip.Prefix]datapath.Way{rangeTwo: {Ifindex: 2, MTU: 1400, Addr: wayTwo.Addr}}, nil)
	smaller := strings.ReplaceAll(there, "1500", "1400")
	expect("another way", smaller, api.HostRoutingStatus{Path: "bpf", Nodes: 1, Others: 1}, "")
	router.set(nil, errors.New("list rules: no buffer space"))
	expect("what cannot be looked at stays", smaller, api.HostRoutingStatus{Path: "bpf", Nodes: 1, Others: 1, Why: []string{"it cannot be looked at: list rules: no buffer space"}}, "no buffer space")
	router.set(nil, nil, "a rule")
	expect("no way", "", api.HostRoutingStatus{Path: "stack", Others: 1, Why: []string{"a rule"}},
		"pods of other nodes (all or some of those of 1 of 1) are reached by this node's stack, at its speed: a rule; change that, or say --bpf-host-routing=false if it is meant")
	router.set(map[netip.Prefix]datapath.Way{rangeTwo: wayTwo}, nil)
	expect("it is back", there, api.HostRoutingStatus{Path: "bpf", Nodes: 1, Others: 1}, "")

	// What comes back the way must be seen by the programs first.
	b.hooks.mu.Lock()
	delete(b.hooks.attached, loader.Attachment{Name: "eth0", Hook: "from_network", Ifindex: 2})
	b.hooks.mu.Unlock()
	router.set(map[netip.Prefix]datapath.Way{rangeTwo: wayTwo}, nil)
	expect("no way by a device without the program", "", api.HostRoutingStatus{Path: "stack", Others: 1, Why: []string{
		"what comes from them by device eth0 the programs do not see first: name it an uplink (--uplink), if it is a device of Ethernet that shares no bridge with pods"}}, "device eth0")
	b.agent.attachDevices(nil) // as it does every 5 s
	expect("the program is there again", there, api.HostRoutingStatus{Path: "bpf", Nodes: 1, Others: 1}, "")

	// Flows that have the path keep it: the ways stay.
	b.stop()
	b.off = true
	b.start()
	expect("turned off", there, api.HostRoutingStatus{Path: "stack", Others: 1, Why: []string{"--bpf-host-routing=false"}}, "")
	router.set(nil, nil, "a rule")
	expect("turned off, no warning", "", api.HostRoutingStatus{Path: "stack", Others: 1, Why: []string{"--bpf-host-routing=false"}}, "")

	b.stop()
	b.router = nil
	b.start()
	if s, err := b.agent.Status(t.Context(), 0); err != nil || s.HostRouting != nil {
		t.Errorf("without a router: %+v, %v", s.HostRouting, err)
	}
}

func TestWaysTo(t *testing.T) {
	tunnel := func(addr string) datapath.Way {
		return datapath.Way{Ifindex: 5, MTU: 1450, Addr: netip.MustParseAddr(addr), Tunnel: true}
	}
	other := wayTwo
	other.Ifindex = 3
	nodes := &source.Nodes{Others: []source.Node{
		nodeOf("two", nil, "10.0.2.0/24", "10.1.2.0/24", "fd00:2::/64"), nodeOf("three", nil, "fd00:3::1/64"), nodeOf("empty", nil),
	}}
	key := func(name string, v6 bool) datapath.WayKey { return datapath.WayKey{Node: nodeNumber(name), V6: v6} }
	for name, c := range map[string]struct {
		to     map[string]datapath.Way
		want   ways
		whole  int
		unseen []uint32
	}{
		"all": {
			map[string]datapath.Way{"10.0.2.0/24": wayTwo, "10.1.2.0/24": wayTwo, "fd00:2::/64": tunnel("192.0.2.2"), "fd00:3::/64": tunnel("192.0.2.3")},
			ways{key("two", false): wayTwo, key("two", true): tunnel("192.0.2.2"), key("three", true): tunnel("192.0.2.3")}, 2, nil,
		},
		"one range lacks":        {map[string]datapath.Way{"10.0.2.0/24": wayTwo, "fd00:2::/64": wayTwo}, ways{key("two", true): wayTwo}, 0, nil},
		"ranges differ":          {map[string]datapath.Way{"10.0.2.0/24": wayTwo, "10.1.2.0/24": tunnel("192.0.2.2")}, ways{}, 0, nil},
		"by a device unseen":     {map[string]datapath.Way{"fd00:2::/64": other, "fd00:3::/64": other}, ways{}, 0, []uint32{3}},
		"a tunnel by the uplink": {map[string]datapath.Way{"fd00:3::/64": {Ifindex: 2, Addr: wayTwo.Addr, Tunnel: true}}, ways{}, 0, []uint32{2}},
		"none":                   {nil, ways{}, 0, nil},
	} {
		to := map[netip.Prefix]datapath.Way{}
		for text, w := range c.to {
			to[netip.MustParsePrefix(text)] = w
		}
		got, p, unseen := waysTo(nodes, to, map[device]bool{{2, false}: true, {5, true}: true})
		if !maps.Equal(got, c.want) || p.nodes != c.whole || p.others != 2 || p.some != (len(c.want) > 0) || !slices.Equal(unseen, c.unseen) {
			t.Errorf("%s: %v, %d of %d nodes, unseen %v; want %v, %d of 2, %v", name, got, p.nodes, p.others, unseen, c.want, c.whole, c.unseen)
		}
		if name == "one range lacks" && !slices.Equal(p.why, []string{"node two: no route of Weir's leads to its pods 10.1.2.0/24"}) {
			t.Errorf("%s: %q", name, p.why)
		}
	}
}
