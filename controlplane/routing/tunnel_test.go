package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/tests/sandbox"
)

const testPort = 8472

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// tunnelled is one node's tunnel, and what its programs were put on.
type tunnelled struct {
	*testing.T
	VXLAN
	self     source.Node
	attached []string // with whether the device was up
}

func newTunnelled(t *testing.T, own ...string) *tunnelled {
	sandbox.Netns(t)
	s := &tunnelled{T: t, self: self}
	s.self.Addresses = addrs(own...)
	s.VXLAN = VXLAN{Port: testPort, Attach: func(ifindex int, name string) error {
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		s.attached = append(s.attached, fmt.Sprint(name, " up ", l.Attrs().Flags&net.FlagUp != 0))
		return nil
	}}
	return s
}

func (s *tunnelled) route(others ...source.Node) error {
	return s.Route(&source.Nodes{Own: &s.self, Others: others}, nil)
}

func (s *tunnelled) link() *netlink.Vxlan {
	s.Helper()
	l, err := netlink.LinkByName(tunnelDevice)
	must(s.T, err)
	return l.(*netlink.Vxlan)
}

// addresses of the device, without its link-local one.
func (s *tunnelled) addresses() string {
	s.Helper()
	list, err := netlink.AddrList(s.link(), netlink.FAMILY_ALL)
	must(s.T, err)
	var out []string
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			out = append(out, a.IPNet.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func rules(t *testing.T) string {
	t.Helper()
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RuleList(family)
		must(t, err)
		for _, r := range list {
			if r.Priority != 0 && r.Priority < 32766 {
				out = append(out, fmt.Sprintf("%d from %s table %d", r.Priority, r.Src, r.Table))
			}
		}
	}
	return strings.Join(out, ", ")
}

func tables(t *testing.T) int {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	list, err := c.ListTables()
	must(t, err)
	return len(list)
}

const (
	ownRoutes = "prohibit 10.0.1.0/24, prohibit fd00:1::/64"
	ownRules  = "1190 from 10.0.1.0/24 table 119, 1190 from fd00:1::/64 table 119"
)

func TestTunnelFollowsTheNodes(t *testing.T) {
	s := newTunnelled(t, "192.0.2.1", "2001:db8::1")
	device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	moved := two
	moved.Addresses = addrs("2001:db8::3", "192.0.2.3") // in another order
	toTwo := func(v4, v6 string) string {
		return fmt.Sprintf("10.0.2.0/24 by the tunnel to %s, fd00:2::/64 by the tunnel to %s, pods: %s/32 by the tunnel to %s, pods: %s/128 by the tunnel to %s, ", v4, v4, v4, v4, v6, v4)
	}
	for i, step := range []struct {
		nodes []source.Node
		want  string
	}{
		{nil, ownRoutes},
		{[]source.Node{two}, toTwo("192.0.2.2", "2001:db8::2") + ownRoutes},
		{[]source.Node{two}, toTwo("192.0.2.2", "2001:db8::2") + ownRoutes},
		{[]source.Node{moved}, toTwo("192.0.2.3", "2001:db8::3") + ownRoutes},
		{[]source.Node{{Name: "new", Addresses: two.Addresses}}, ownRoutes}, // it has no pods yet
		{nil, ownRoutes},
	} {
		must(t, s.route(step.nodes...))
		if got := listed(t); got != step.want {
			t.Fatalf("step %d\ngot  %s\nwant %s", i, got, step.want)
		}
		if got := rules(t); got != ownRules {
			t.Fatalf("step %d: rules %s", i, got)
		}
	}
	l := s.link()
	if !l.FlowBased || l.Port != testPort || l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().RawFlags&unix.IFF_NOARP == 0 || l.Attrs().MTU != 1450 {
		t.Errorf("%+v", l)
	}
	if got := s.addresses(); got != "192.0.2.1/32 2001:db8::1/128" {
		t.Errorf("addresses %s", got)
	}
	if n := tables(t); n != 2 {
		t.Errorf("%d nftables tables, want one of each family", n)
	}
	if len(s.attached) != 1 || s.attached[0] != "weir-vxlan up false" {
		t.Errorf("programs: %v, want once, before the device is up", s.attached)
	}
	must(t, Remove())
	if got := listed(t) + rules(t); got != "" {
		t.Errorf("left: %s", got)
	}
	if _, err := netlink.LinkByName(tunnelDevice); err == nil {
		t.Error("the device is left")
	}
	if n := tables(t); n != 0 {
		t.Errorf("%d nftables tables are left", n)
	}
	must(t, Remove())
}

// Each mode takes away what the others made, in both directions.
func TestModesReplaceEachOther(t *testing.T) {
	s := newTunnelled(t, "192.0.2.1", "2001:db8::1")
	device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	nodes := &source.Nodes{Own: &s.self, Others: []source.Node{two}}
	for range 2 {
		must(t, Native{}.Route(nodes, nil))
		if got := listed(t); got != "10.0.2.0/24 via 192.0.2.2, fd00:2::/64 via 2001:db8::2, "+ownRoutes || rules(t) != "" {
			t.Fatalf("native: %s; %s", got, rules(t))
		}
		if _, err := netlink.LinkByName(tunnelDevice); err == nil {
			t.Fatal("native: the tunnel's device is there")
		}
		must(t, s.Route(nodes, nil))
		if got := listed(t); strings.Contains(got, " via ") || !strings.Contains(got, "10.0.2.0/24 by the tunnel to 192.0.2.2, fd00:2::/64 by the tunnel to 192.0.2.2") {
			t.Fatalf("vxlan: %s", got)
		}
	}
	must(t, None{}.Route(nodes, nil))
	if got := listed(t) + rules(t); got != "" {
		t.Fatalf("none: %s", got)
	}
}

// The MTU is what fits to every node, by the devices on the way there.
func TestTunnelMTU(t *testing.T) {
	s := newTunnelled(t, "2001:db8::1", "192.0.2.1")
	device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	device(t, "far", "198.51.100.1/24", "2001:db8:9::1/64")
	if got := s.PodMTU(); got != 0 {
		t.Errorf("without a tunnel and a way out: %d", got)
	}
	far, err := netlink.LinkByName("far")
	must(t, err)
	out := &netlink.Route{LinkIndex: far.Attrs().Index, Gw: net.IPv4(198, 51, 100, 254)}
	must(t, netlink.RouteAdd(out))
	if got := s.PodMTU(); got != 1430 {
		t.Errorf("without a tunnel: %d, want what fits any", got)
	}
	must(t, netlink.RouteDel(out))
	mtu := func(name string, mtu int) {
		l, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetMTU(l, mtu))
	}
	four := source.Node{Name: "four", Addresses: addrs("192.0.2.4"), PodCIDRs: prefixes("10.0.4.0/24")}
	farNode := source.Node{Name: "far", Addresses: addrs("2001:db8:9::9"), PodCIDRs: prefixes("10.0.9.0/24")}
	for i, step := range []struct {
		change func()
		nodes  []source.Node
		want   int
	}{
		{func() {}, nil, 1430}, // by IPv6, this node's first
		{func() {}, []source.Node{four}, 1450},
		{func() {}, []source.Node{four, two}, 1430},
		{func() { mtu("up", 9000) }, []source.Node{four, two}, 8930},
		{func() { mtu("far", 1400) }, []source.Node{four, two, farNode}, 1330},
		{func() {}, nil, 8930},
	} {
		step.change()
		must(t, s.route(step.nodes...))
		if got := s.PodMTU(); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
}

// Routes of IPv6 through a device that has none are an error of the kernel's; why is said.
func TestTunnelTooSmallForIPv6(t *testing.T) {
	s := newTunnelled(t, "192.0.2.1")
	device(t, "up", "192.0.2.1/24")
	up, err := netlink.LinkByName("up")
	must(t, err)
	must(t, netlink.LinkSetMTU(up, 1300))
	if err := s.route(two); err == nil || !strings.Contains(err.Error(), "what fits the tunnel, 1250 bytes, is less than IPv6 asks for (1280)") {
		t.Errorf("%v", err)
	}
	if got := listed(t); !strings.Contains(got, "10.0.2.0/24 by the tunnel to 192.0.2.2") {
		t.Errorf("IPv4 is not routed: %s", got)
	}
	s.self.PodCIDRs = s.self.PodCIDRs[:1]
	must(t, s.route(source.Node{Name: "four", Addresses: two.Addresses, PodCIDRs: two.PodCIDRs[:1]}))
}

// What this node is not any more, the device does not say it is.
func TestTunnelHasTheNodesAddresses(t *testing.T) {
	s := newTunnelled(t, "192.0.2.1", "2001:db8::1", "203.0.113.9") // the last is no device's: a NAT's
	device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	must(t, s.route(two))
	up, err := netlink.LinkByName("up")
	must(t, err)
	a, err := netlink.ParseAddr("2001:db8::1/64")
	must(t, err)
	must(t, netlink.AddrDel(up, a))
	_ = s.route(two)
	if got := s.addresses(); got != "192.0.2.1/32" {
		t.Errorf("addresses %s", got)
	}
}

// What is in the place of the device, or of its port, is said or put right.
func TestTunnelAmongOthers(t *testing.T) {
	s := newTunnelled(t, "192.0.2.1")
	device(t, "up", "192.0.2.1/24")
	must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1"}, VxlanId: 1, Port: testPort}))
	flannel, err := netlink.LinkByName("flannel.1")
	must(t, err)
	must(t, netlink.LinkSetUp(flannel))
	if err := s.route(two); err == nil || !strings.Contains(err.Error(), "UDP port 8472 of this node is another's") {
		t.Errorf("%v", err)
	}
	must(t, netlink.LinkDel(flannel))
	must(t, s.route(two))
	first := s.link().Attrs().Index

	s.Port = 4789 // the agent was given another
	must(t, s.route(two))
	if l := s.link(); l.Port != 4789 || l.Attrs().Index == first {
		t.Errorf("port %d, index %d after %d", l.Port, l.Attrs().Index, first)
	}
	if len(s.attached) < 2 || slices.Contains(s.attached, "weir-vxlan up true") {
		t.Errorf("programs: %v", s.attached)
	}

	s.Attach = func(int, string) error { return errors.New("no programs") }
	must(t, netlink.LinkSetDown(s.link()))
	if err := s.route(two); err == nil || !strings.Contains(err.Error(), "no programs") {
		t.Errorf("%v", err)
	}
	if s.link().Attrs().Flags&net.FlagUp != 0 {
		t.Error("the device is up without its programs")
	}
}

func TestNodesThatNoTunnelReachesAreNamed(t *testing.T) {
	s := newTunnelled(t, "192.0.2.1")
	device(t, "up", "192.0.2.1/24")
	six := source.Node{Name: "six", Addresses: addrs("2001:db8::6"), PodCIDRs: prefixes("10.0.6.0/24")}
	lost := source.Node{Name: "lost", Addresses: addrs("198.51.100.7"), PodCIDRs: prefixes("10.0.7.0/24")}
	inside := source.Node{Name: "inside", Addresses: addrs("10.0.2.9"), PodCIDRs: prefixes("10.0.8.0/24")}
	must(t, s.route(two))
	err := s.route(six, lost, two, inside)
	for _, want := range []string{
		"node six: it has no InternalIP of a family that this node (n1) has one of (IPv4)",
		"node lost: no route to its address 198.51.100.7", "node inside: its address 10.0.2.9 lies in another node's range of pods",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if got := listed(t); !strings.Contains(got, "10.0.2.0/24 by the tunnel to 192.0.2.2") {
		t.Errorf("the others are not routed: %s", got)
	}
}

// What pods send to an address that a node claims, and another has, does not go to the one that claims it.
func TestNoTunnelToABorrowedAddress(t *testing.T) {
	a := addrs("192.0.2.3", "192.0.2.2")
	w := way{node: source.Node{Name: "a", Addresses: a, Borrowed: []source.Borrowed{{Address: a[1], Node: "m"}}}, to: a[0]}
	got := w.routes(7, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")})
	if want := []route{{table: podsTable, to: netip.MustParsePrefix("192.0.2.3/32"), node: a[0], dev: 7}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
