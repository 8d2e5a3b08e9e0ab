package routing

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/sandbox"
)

// ip runs one ip(8) command in this namespace.
func ip(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}

type wayfinder interface {
	Route(*source.Nodes, []netip.Prefix) error
	Ways(*source.Nodes) (map[netip.Prefix]datapath.Way, []string, error)
}

// told are the ways as text, without their device.
func told(t *testing.T, w wayfinder, nodes *source.Nodes) (ways, why string) {
	t.Helper()
	to, reasons, err := w.Ways(nodes)
	must(t, err)
	var lines []string
	for _, p := range slices.SortedFunc(maps.Keys(to), netip.Prefix.Compare) {
		how := "via"
		if to[p].Tunnel {
			how = "by tunnel to"
		}
		lines = append(lines, fmt.Sprintf("%s %s %s mtu %d", p, how, to[p].Addr, to[p].MTU))
	}
	return strings.Join(lines, ", "), strings.Join(reasons, "\n")
}

const (
	nativeWays = "10.0.2.0/24 via 192.0.2.2 mtu 1500, fd00:2::/64 via 2001:db8::2 mtu 1500"
	tunnelWays = "10.0.2.0/24 by tunnel to 192.0.2.2 mtu 1450, fd00:2::/64 by tunnel to 192.0.2.2 mtu 1450"
)

func TestWaysAreTheRoutes(t *testing.T) {
	for mode, want := range map[string]string{"native": nativeWays, "vxlan": tunnelWays} {
		t.Run(mode, func(t *testing.T) {
			s := newTunnelled(t, "192.0.2.1", "2001:db8::1")
			device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
			var w wayfinder = Native{}
			if mode == "vxlan" {
				w = s.VXLAN
			}
			nodes := &source.Nodes{Own: &s.self, Others: []source.Node{two, {Name: "new", Addresses: addrs("192.0.2.3")}}}
			check := func(when, ways, why string) {
				t.Helper()
				if gotWays, gotWhy := told(t, w, nodes); gotWays != ways || gotWhy != why {
					t.Errorf("%s:\ngot  %s\n     %s\nwant %s\n     %s", when, gotWays, gotWhy, ways, why)
				}
			}
			check("before there are routes", "", "")
			must(t, w.Route(nodes, nil))
			check("with routes", want, "")
			to, _, err := w.Ways(nodes)
			must(t, err)
			l, err := netlink.LinkByName(map[string]string{"native": "up", "vxlan": tunnelDevice}[mode])
			must(t, err)
			for p, way := range to {
				if int(way.Ifindex) != l.Attrs().Index {
					t.Errorf("%s by device %d", p, way.Ifindex)
				}
			}
			ip(t, "route del 10.0.2.0/24")
			check("a route is gone", want[strings.Index(want, "fd00"):], "")
			must(t, w.Route(nodes, nil))
			check("it is back", want, "")
			if ways, why := told(t, w, &source.Nodes{Own: &s.self}); ways+why != "" {
				t.Errorf("a node is gone: %s, %s", ways, why)
			}
			if mode == "native" {
				ip(t, "link set dev up mtu 1400")
				check("the MTU changed", strings.ReplaceAll(want, "1500", "1400"), "")
			}
		})
	}
}

// What would be sent another way than by our routes has no way told.
func TestNoWaysBesideOthersRoutes(t *testing.T) {
	v4 := nativeWays[strings.Index(nativeWays, "10."):strings.Index(nativeWays, ", ")]
	v6 := nativeWays[strings.Index(nativeWays, "fd00"):]
	for _, c := range []struct {
		name     string
		commands []string
		ways     string
		why      string // in it
	}{
		{"a longer route", []string{"route add 10.0.2.128/25 via 192.0.2.9"}, v6, "node n2: of what is sent to its pods 10.0.2.0/24 a route that is not Weir's, to 10.0.2.128/25 in table 254"},
		{"a longer route to nowhere", []string{"-6 route add blackhole fd00:2::7/128"}, v4, "fd00:2::7/128"},
		{"a better one", []string{"-6 route add fd00:2::/64 via 2001:db8::9 metric 10"}, v4, "fd00:2::/64 in table 254"},
		{"an equal one", []string{"-6 route append fd00:2::/64 via 2001:db8::9 metric 1024"}, v4, "fd00:2::/64"},
		{"one for a type of service", []string{"route add 10.0.2.0/24 tos 0x10 via 192.0.2.9"}, v6, "10.0.2.0/24"},
		{"one for a source", []string{"-6 route add fd00:2::/64 from fd00:1::/64 via 2001:db8::9"}, v4, "fd00:2::/64"},
		{"local addresses", []string{"route add local 10.0.0.0/14 dev lo"}, v6, "10.0.0.0/14 in table 255"},
		{"one address", []string{"addr add 10.0.2.9/32 dev up"}, v6, "10.0.2.9/32"},
		{"of another tunnel", []string{"route add 10.0.2.64/26 encap ip id 5 dst 192.0.2.9 dev up"}, v6, "10.0.2.64/26"},
		{"shorter ones", []string{"route add 10.0.0.0/14 via 192.0.2.9", "-6 route add default via 2001:db8::9"}, nativeWays, ""},
		{"worse ones", []string{"route add 10.0.2.0/24 via 192.0.2.9 metric 5", "-6 route add fd00:2::/64 via 2001:db8::9 metric 2000"}, nativeWays, ""},
		{"in a table of nobody's", []string{"route add 10.0.2.128/25 via 192.0.2.9 table 77"}, nativeWays, ""},
		{"elsewhere", []string{"route add 10.0.3.0/24 via 192.0.2.9", "addr add 10.0.1.7/32 dev up"}, nativeWays, ""},

		{"a rule", []string{"rule add table 52 priority 5270"}, "", "ip rule 5270 (from all to all lookup 52)"},
		{"a rule of IPv6", []string{"-6 rule add to fd00::/16 table 52 priority 7"}, "", "ip rule 7 (from all to fd00::/16 lookup 52)"},
		{"a rule for marks", []string{"rule add fwmark 0x100 table 52 priority 7"}, "", "ip rule 7"},
		{"a rule by device", []string{"rule add iif up table 52 priority 7"}, "", "ip rule 7"},
		{"a rule for all but", []string{"rule add not from 192.0.2.1 table 52 priority 7"}, "", "ip rule 7"},
		{"a rule like ours", []string{"rule add from 10.0.1.0/24 table 119 priority 1190"}, "", "ip rule 1190"},
		{"a rule to nowhere", []string{"rule add blackhole from 10.0.2.0/24 priority 7"}, "", "ip rule 7"},
		{"no rule for the main table", []string{"rule del priority 32766"}, "", "32766 (lookup main)"},
		{"rules about others", []string{"rule add from 192.0.2.1 table 52", "rule add to 203.0.113.0/24 table 52", "rule add iif lo table 52", "rule add oif up table 52", "-6 rule add from 2001:db8::1 table 52"}, nativeWays, ""},

		{"IPsec", []string{"xfrm policy add src 10.0.0.0/16 dst 10.0.0.0/16 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel"}, "", "IPsec policy (ip xfrm policy: src 10.0.0.0/16 dst 10.0.0.0/16 dir out)"},
		{"IPsec of all", []string{"xfrm policy add src ::/0 dst ::/0 dir fwd priority 9 tmpl proto esp mode transport"}, "", "IPsec policy"},
		{"IPsec blocks", []string{"xfrm policy add src fd00:2::/64 dst fd00:1::/64 dir in action block"}, "", "IPsec policy"},
		{"IPsec between nodes", []string{"xfrm policy add src 192.0.2.1 dst 192.0.2.2 dir out tmpl proto esp mode transport"}, nativeWays, ""},
		{"IPsec's default", []string{"xfrm policy setdefault fwd block"}, "", "getdefault"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Netns(t)
			device(t, "up", "192.0.2.1/24", "2001:db8::1/64")
			nodes := &source.Nodes{Own: &self, Others: []source.Node{two}}
			must(t, Native{}.Route(nodes, nil))
			if ways, why := told(t, Native{}, nodes); ways != nativeWays || why != "" {
				t.Fatalf("before: %s, %s", ways, why)
			}
			for _, command := range c.commands {
				ip(t, command)
			}
			if ways, why := told(t, Native{}, nodes); ways != c.ways || !strings.Contains(why, c.why) || (c.why == "") != (why == "") {
				t.Errorf("got  %s\n     %s\nwant %s\n     %s", ways, why, c.ways, c.why)
			}
		})
	}
}

// Changes that Ways sees are told.
func TestWaysAreWatched(t *testing.T) {
	sandbox.Netns(t)
	device(t, "up", "192.0.2.1/24")
	ns, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer ns.Close()
	ctx, cancel := context.WithCancel(context.Background())
	changed, ended := make(chan struct{}, 100), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			ended <- err
			return
		}
		ended <- Native{}.WatchWays(ctx, func() { changed <- struct{}{} })
	}()
	for begun := false; !begun; { // until it is subscribed
		ip(t, "route replace 10.0.9.0/24 via 192.0.2.9")
		select {
		case <-changed:
			begun = true
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	for _, command := range []string{
		"route add 10.0.2.128/25 via 192.0.2.9", "rule add table 52", "-6 rule add table 52",
		"xfrm policy add src 10.0.0.0/16 dst 10.0.0.0/16 dir out tmpl proto esp mode transport", "link set dev up mtu 1400",
	} {
		for len(changed) > 0 {
			<-changed
		}
		ip(t, command)
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Errorf("nothing is told of: ip %s", command)
		}
		time.Sleep(3 * newsSettle)
	}
	cancel()
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
}
