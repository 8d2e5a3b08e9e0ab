package routing

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/tests/sandbox"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// device makes an interface with addresses, and its neighbour's end.
func device(t *testing.T, name string, addrs ...string) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}))
	for _, n := range []string{name, name + "p"} {
		l, err := netlink.LinkByName(n)
		must(t, err)
		must(t, netlink.LinkSetUp(l))
		if n == name {
			for _, a := range addrs {
				addr, err := netlink.ParseAddr(a)
				must(t, err)
				addr.Flags = unix.IFA_F_NODAD
				must(t, netlink.AddrAdd(l, addr))
			}
		}
	}
}

func listed(t *testing.T) string {
	t.Helper()
	have, err := ours()
	must(t, err)
	var lines []string
	for r := range have {
		line := r.String()
		if r.table != unix.RT_TABLE_MAIN {
			line = fmt.Sprintf("pods: %s", line)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

var (
	self = source.Node{Name: "n1", PodCIDRs: prefixes("10.0.1.0/24", "fd00:1::/64")}
	two  = source.Node{Name: "n2", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}, PodCIDRs: prefixes("10.0.2.0/24", "fd00:2::/64")}
)

func TestRoutesFollowTheNodes(t *testing.T) {
	sandbox.Netns(t)
	device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	link, err := netlink.LinkByName("up")
	must(t, err)
	foreign := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 0, 9, 0).To4(), Mask: net.CIDRMask(24, 32)}, Gw: net.IPv4(192, 0, 2, 9), LinkIndex: link.Attrs().Index}
	must(t, netlink.RouteAdd(foreign))
	moved := two
	moved.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")}
	own := "prohibit 10.0.1.0/24, prohibit fd00:1::/64"
	for _, step := range []struct {
		nodes []source.Node
		want  string
	}{
		{nil, own},
		{[]source.Node{two}, "10.0.2.0/24 via 192.0.2.2, fd00:2::/64 via 2001:db8::2, " + own},
		{[]source.Node{two}, "10.0.2.0/24 via 192.0.2.2, fd00:2::/64 via 2001:db8::2, " + own},
		{[]source.Node{moved}, "10.0.2.0/24 via 192.0.2.3, fd00:2::/64 via 2001:db8::3, " + own},
		{nil, own},
	} {
		must(t, Routes(self, step.nodes))
		if got := listed(t); got != step.want {
			t.Fatalf("got  %s\nwant %s", got, step.want)
		}
	}
	must(t, Remove())
	if got := listed(t); got != "" {
		t.Errorf("left: %s", got)
	}
	if all, err := netlink.RouteListFiltered(netlink.FAMILY_V4, foreign, netlink.RT_FILTER_DST); err != nil || len(all) != 1 {
		t.Errorf("somebody else's route: %v, %v", all, err)
	}
}

// An older version's routes for addresses that no pod has told no connected UDP socket's owner
// that its peer is gone.
func TestOlderRoutesToNowhere(t *testing.T) {
	sandbox.Netns(t)
	device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	for _, p := range self.PodCIDRs {
		old := route{table: unix.RT_TABLE_MAIN, to: p, kind: unix.RTN_UNREACHABLE}
		must(t, netlink.RouteAdd(old.kernel()))
	}
	for range 2 {
		must(t, Routes(self, nil))
		if got, want := listed(t), "prohibit 10.0.1.0/24, prohibit fd00:1::/64"; got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
	for _, network := range []string{"udp4", "udp6"} {
		to := map[string]string{"udp4": "10.0.1.9:53", "udp6": "[fd00:1::9]:53"}[network]
		if conn, err := net.Dial(network, to); err == nil { // here at once; by an ICMP error for those who are routed
			conn.Close()
			t.Errorf("%s: connected", to)
		}
	}
}

func TestNodesThatCannotBeRoutedAreNamed(t *testing.T) {
	sandbox.Netns(t)
	device(t, "up", "192.0.2.1/24")
	link, err := netlink.LinkByName("up")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)}))
	far := source.Node{Name: "far", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.2")}, PodCIDRs: prefixes("10.0.3.0/24")}
	half := source.Node{Name: "half", Addresses: two.Addresses[:1], PodCIDRs: prefixes("fd00:4::/64")}
	err = Routes(self, []source.Node{far, half, {Name: "n2", Addresses: two.Addresses[:1], PodCIDRs: two.PodCIDRs[:1]}})
	for _, want := range []string{"node far: its address 198.51.100.2 is behind the router 192.0.2.254", "node half: it has pods in fd00:4::/64 and no InternalIP of that family"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if got := listed(t); !strings.Contains(got, "10.0.2.0/24 via 192.0.2.2") {
		t.Errorf("the others are not routed: %s", got)
	}
}

// elsewhere moves a device into a namespace of its own, where f runs.
func elsewhere(t *testing.T, device string, f func() error) {
	t.Helper()
	path, moved := make(chan string), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("new namespace: %v", err)
		}
		path <- fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		<-moved
		if err := f(); err != nil {
			t.Error(err)
		}
	}()
	ns, err := os.Open(<-path)
	must(t, err)
	defer ns.Close()
	l, err := netlink.LinkByName(device)
	must(t, err)
	must(t, netlink.LinkSetNsFd(l, int(ns.Fd())))
	close(moved)
}

// A packet from a pod's address leaves with the node's, but for the cluster's ranges.
func TestMasquerade(t *testing.T) {
	sandbox.Netns(t)
	device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
	device(t, "pod", "10.0.1.2/24", "fd00:1::2/64") // stands for a pod: its address is local
	must(t, Masquerade(prefixes("10.0.1.0/24", "fd00:1::/64"), prefixes("10.0.0.0/16", "fd00::/16"), []netip.Addr{netip.MustParseAddr("192.0.2.9")}))
	must(t, Masquerade(prefixes("10.0.1.0/24", "fd00:1::/64"), prefixes("10.0.0.0/16", "fd00::/16"), []netip.Addr{netip.MustParseAddr("192.0.2.9")})) // again
	link, err := netlink.LinkByName("up")
	must(t, err)
	for _, dst := range []string{"10.0.2.0/24", "fd00:2::/64"} {
		_, n, _ := net.ParseCIDR(dst)
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: n, Scope: netlink.SCOPE_LINK}))
	}
	got, listening := make(chan string), make(chan struct{})
	elsewhere(t, "upp", func() error { return outside(listening, got) })
	<-listening
	for _, c := range []struct{ from, to, want string }{
		{"10.0.1.2", "192.0.2.10", "192.0.2.1"},
		{"10.0.1.2", "192.0.2.9", "10.0.1.2"}, // a node
		{"10.0.1.2", "10.0.2.7", "10.0.1.2"},  // a pod elsewhere
		{"192.0.2.1", "192.0.2.10", "192.0.2.1"},
		{"fd00:1::2", "2001:db8::10", "2001:db8::1"},
		{"fd00:1::2", "fd00:2::7", "fd00:1::2"},
	} {
		conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(c.from)}, &net.UDPAddr{IP: net.ParseIP(c.to), Port: 5000})
		must(t, err)
		_, err = conn.Write([]byte("x"))
		must(t, err)
		conn.Close()
		select {
		case seen := <-got:
			if seen != c.want {
				t.Errorf("%s -> %s arrives from %s, want %s", c.from, c.to, seen, c.want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s -> %s does not arrive", c.from, c.to)
		}
	}
	must(t, removeMasquerade())
	must(t, removeMasquerade()) // nothing is no error
}

// outside has every address that is tried, and tells where datagrams come from.
func outside(listening chan<- struct{}, got chan<- string) error {
	l, err := netlink.LinkByName("upp")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, text := range []string{"192.0.2.10/24", "192.0.2.9/24", "10.0.2.7/24", "2001:db8::10/64", "fd00:2::7/64"} {
		a, _ := netlink.ParseAddr(text)
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	four, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 5000})
	if err != nil {
		return err
	}
	six, err := net.ListenUDP("udp6", &net.UDPAddr{Port: 5000})
	if err != nil {
		return err
	}
	close(listening)
	go tell(four, got)
	return tell(six, got)
}

func tell(u *net.UDPConn, got chan<- string) error {
	for b := make([]byte, 16); ; {
		_, from, err := u.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		got <- from.Addr().Unmap().String()
	}
}
