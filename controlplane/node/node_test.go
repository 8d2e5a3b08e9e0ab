package node

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/sandbox"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addVeth(t *testing.T, name, peer string) netlink.Link {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	for _, n := range []string{peer, name} {
		l, err := netlink.LinkByName(n)
		must(t, err)
		must(t, netlink.LinkSetUp(l))
	}
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func addAddr(t *testing.T, l netlink.Link, text string) {
	t.Helper()
	a, err := netlink.ParseAddr(text)
	must(t, err)
	must(t, netlink.AddrAdd(l, a))
}

func device(s State, name string) *Device {
	for _, d := range s.Devices {
		if d.Name == name {
			return &d
		}
	}
	return nil
}

func TestState(t *testing.T) {
	sandbox.Netns(t)
	up := addVeth(t, "up0", "up1")
	addAddr(t, up, "192.0.2.1/24")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP("192.0.2.10")}))
	pod := addVeth(t, "weir0123456789a", "pod0")
	addAddr(t, pod, "10.9.9.9/32")
	ipvs := addVeth(t, "kube-ipvs0", "other")
	addAddr(t, ipvs, "10.96.0.1/32")
	addAddr(t, addVeth(t, datapath.TunnelDevice, "inside"), "192.0.2.77/32") // one that the node lost
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	addAddr(t, lo, "203.0.113.7/32")

	s, err := read()
	must(t, err)
	for addr, want := range map[string]bool{
		"192.0.2.1": true, "203.0.113.7": true, gateway6.String(): true,
		"127.0.0.1": false, "10.9.9.9": false, "10.96.0.1": false, "192.0.2.77": false,
	} {
		if got := slices.Contains(s.Addresses, netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s among the node's addresses: %v", addr, got)
		}
	}
	if d := device(s, "up0"); d == nil || !d.DefaultRoute || d.Index != up.Attrs().Index {
		t.Errorf("up0: %+v", d)
	}
	if d := device(s, "up1"); d == nil || d.DefaultRoute {
		t.Errorf("up1: %+v", d)
	}
	if d := device(s, datapath.TunnelDevice); d == nil || !d.Tunnel || d.MTU != 1500 || device(s, "up0").Tunnel {
		t.Errorf("the tunnel: %+v", d)
	}
	if device(s, "lo") != nil || device(s, "weir0123456789a") != nil || s.PodSides["weir0123456789a"] != uint32(pod.Attrs().Index) {
		t.Errorf("%+v", s)
	}
	for _, c := range []struct {
		index uint32
		name  string
		want  bool
	}{{uint32(up.Attrs().Index), "up0", true}, {uint32(up.Attrs().Index), "up1", false}, {4242, "up0", false}} {
		if got, err := (Network{}).Has(c.index, c.name); err != nil || got != c.want {
			t.Errorf("has %d %s: %v, %v", c.index, c.name, got, err)
		}
	}
}

func TestWatch(t *testing.T) {
	sandbox.Netns(t)
	ctx, cancel := context.WithCancel(t.Context())
	states := make(chan State, 64)
	ended := make(chan error, 1)
	go func() {
		sandbox.Netns(t) // of its own: the calling thread's is what counts
		l := addVeth(t, "up0", "up1")
		addAddr(t, l, "192.0.2.1/24")
		ended <- Network{}.Watch(ctx, func(s State) {
			if device(s, "late") == nil {
				addVeth(t, "late", "late1")
				addAddr(t, l, "192.0.2.2/24")
			}
			states <- s
		})
	}()
	timeout := time.After(10 * time.Second)
	for found := false; !found; {
		select {
		case s := <-states:
			found = device(s, "late") != nil && slices.Contains(s.Addresses, netip.MustParseAddr("192.0.2.2"))
		case <-timeout:
			t.Fatal("the change was not seen")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestForwardingIsTurnedOnOnce(t *testing.T) {
	sandbox.Netns(t)
	if _, err := os.ReadFile("/proc/thread-self/net/dev"); err != nil {
		t.Fatal(err)
	}
	changed, err := EnableForwarding()
	must(t, err)
	if !strings.Contains(strings.Join(changed, " "), "net.ipv4.ip_forward=1") {
		t.Fatalf("changed %v", changed)
	}
	if changed, err = EnableForwarding(); err != nil || len(changed) != 0 {
		t.Fatalf("again: %v, %v", changed, err)
	}
}
