package cni_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/weirnet/weir/controlplane/api"
)

// Addresses, routes and neighbours of both sides, as ip(8) shows them; HOST is the
// host side's name, MAC the pod's.
const (
	pod4 = `10.9.0.2/32
default via 169.254.1.1 dev eth0 onlink
169.254.1.1 lladdr ee:ee:ee:ee:ee:ee PERMANENT
`
	pod6 = `fd09::2/128
default via fe80::ecee:eeff:feee:eeee dev eth0 metric 1024 onlink pref medium
fe80::ecee:eeff:feee:eeee lladdr ee:ee:ee:ee:ee:ee PERMANENT
`
	node4 = `10.9.0.2 dev HOST scope link
10.9.0.2 lladdr MAC PERMANENT
`
	node6 = `fd09::2 dev HOST metric 1024 pref medium
fd09::2 lladdr MAC PERMANENT
`
)

func TestAdd(t *testing.T) {
	for _, tc := range []struct {
		name, pod4, pod6, node4, node6 string
		ranges                         []string
		disable6                       string
	}{
		{"ipv4", pod4, "", node4, "", []string{"10.9.0.0/24"}, "1"},
		{"ipv6", "", pod6, "", node6, []string{"fd09::/64"}, "0"},
		{"dual", pod4, pod6, node4, node6, []string{"10.9.0.0/24", "fd09::/64"}, "0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, tc.ranges...)
			c := n.newContainer("web-1")
			n.sh("ip netns exec " + c.netns + " sysctl -qw net.ipv6.conf.all.disable_ipv6=1") // as runtimes do
			r := c.mustAdd()
			names := strings.NewReplacer(c.hostIfName(), "HOST", r.Interfaces[1].Mac, "MAC")
			for _, side := range []struct{ what, got, want string }{
				{"pod, IPv4", n.show(c.netns, "eth0", 4), tc.pod4},
				{"pod, IPv6", n.show(c.netns, "eth0", 6), tc.pod6},
				{"node, IPv4", names.Replace(n.show(n.name, c.hostIfName(), 4)), tc.node4},
				{"node, IPv6", names.Replace(n.show(n.name, c.hostIfName(), 6)), tc.node6},
			} {
				if side.got != side.want {
					t.Errorf("%s: got\n%swant\n%s", side.what, side.got, side.want)
				}
			}
			n.wantSysctls(c.netns, "eth0", tc.disable6)
			n.wantSysctls(n.name, c.hostIfName(), tc.disable6)
			n.wantUp(c)
			n.wantRequest(c, r.Interfaces[1].Mac)
			if err := c.check(); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if err := c.del(); err != nil {
				t.Errorf("DEL: %v", err)
			}
			n.mustLeaveNothing(c)
		})
	}
}

// show is one family of an interface: global addresses, routes, permanent neighbours.
func (n *node) show(netns, dev string, family int) string {
	n.t.Helper()
	f := fmt.Sprintf("-%d ", family)
	text := ""
	for _, line := range strings.Split(n.ip(netns, f+"-o addr show scope global dev "+dev), "\n") {
		if fields := strings.Fields(line); len(fields) > 3 {
			text += fields[3] + "\n"
		}
	}
	for _, line := range strings.Split(n.ip(netns, f+"route"), "\n") {
		if strings.Contains(line, "dev "+dev) && !strings.HasPrefix(line, "fe80::/64") && !strings.Contains(line, "proto kernel") {
			text += strings.TrimSpace(line) + "\n"
		}
	}
	for _, line := range strings.Split(n.ip(netns, f+"neigh show nud permanent dev "+dev), "\n") {
		if line != "" {
			text += strings.TrimSpace(line) + "\n"
		}
	}
	return text
}

func (n *node) wantSysctls(netns, dev, disable6 string) {
	n.t.Helper()
	got := n.sh("ip netns exec " + netns + " sh -c 'cd /proc/sys/net/ipv6/conf/" + dev + " && cat disable_ipv6 accept_ra accept_dad dad_transmits'")
	if want := disable6 + "\n0\n0\n0\n"; got != want {
		n.t.Errorf("sysctls of %s in %s (disable_ipv6, accept_ra, accept_dad, dad_transmits): got %q, want %q", dev, netns, got, want)
	}
}

func (n *node) wantUp(c *container) {
	n.t.Helper()
	for _, args := range []string{"link show up dev eth0", "link show up dev lo"} {
		if n.ip(c.netns, args) == "" {
			n.t.Errorf("%s is empty", args)
		}
	}
	host := n.ip(n.name, "-d link show up dev "+c.hostIfName())
	if !strings.Contains(host, "link/ether ee:ee:ee:ee:ee:ee") || !strings.Contains(host, "state UP") {
		n.t.Errorf("host side: %s", host)
	}
}

// wantRequest checks what the agent was told about the only ADD.
func (n *node) wantRequest(c *container, mac string) {
	n.t.Helper()
	if len(n.agent.requests) != 1 {
		n.t.Fatalf("the agent got %d requests, want 1", len(n.agent.requests))
	}
	r := n.agent.requests[0]
	var index uint32
	if _, err := fmt.Sscanf(n.ip(n.name, "-o link show dev "+c.hostIfName()), "%d:", &index); err != nil {
		n.t.Fatal(err)
	}
	if r.NetnsCookie == 0 {
		n.t.Error("no network namespace cookie")
	}
	r.NetnsCookie = 0
	want := api.AddRequest{
		ContainerID: c.rt.ContainerID, IfName: "eth0", HostIfName: c.hostIfName(), HostIfindex: index, MAC: mac,
		Addresses: r.Addresses, Netns: c.rt.NetNS, PodNamespace: "shop", PodName: c.rt.ContainerID, PodUID: "uid-" + c.rt.ContainerID,
		Network: "weir", Pins: c.hostIfName(),
	}
	if fmt.Sprint(r) != fmt.Sprint(want) || len(r.Addresses) == 0 || strings.Contains(r.Addresses[0], "/") {
		n.t.Errorf("agent was asked for\n%+v, want\n%+v", r, want)
	}
}

// Packets pass between the node and a pod, and between pods by way of the node, with
// nothing but what ADD has set; and none before the programs let them.
func TestReachable(t *testing.T) {
	n := newNode(t, "10.9.0.0/24", "fd09::/64")
	n.sh("ip netns exec " + n.name + " sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	n.ip(n.name, "link set lo up")
	n.ip(n.name, "addr add 10.10.0.1/32 dev lo")
	n.ip(n.name, "addr add fd10::1/128 dev lo")
	a, b := n.newContainer("a"), n.newContainer("b")
	a.mustAdd()
	ips := b.mustAdd().IPs
	for _, opened := range []bool{false, true} {
		if opened {
			n.openPrograms()
		}
		for _, ip := range ips {
			for _, from := range []string{n.name, a.netns} {
				err := exec.Command("ip", "netns", "exec", from, "ping", "-c1", "-W0.4", ip.Address.IP.String()).Run()
				if (err == nil) != opened {
					t.Errorf("programs open=%t: ping %s from %s: %v", opened, ip.Address.IP, from, err)
				}
			}
		}
	}
}

func TestResult(t *testing.T) {
	n := newNode(t, "10.9.0.0/24", "fd09::/64")
	c := n.newContainer("web-1")
	r, err := c.addWith(n.list("weir", map[string]any{"mtu": 1400, "dns": map[string]any{"nameservers": []string{"10.96.0.10"}}}))
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, i := range r.Interfaces {
		got += fmt.Sprintf("%s %d %t\n", i.Name, i.Mtu, i.Sandbox == c.rt.NetNS)
	}
	for _, ip := range r.IPs {
		got += fmt.Sprintf("%s via %s on %d\n", &ip.Address, ip.Gateway, *ip.Interface)
	}
	for _, route := range r.Routes {
		got += fmt.Sprintf("%s via %s\n", &route.Dst, route.GW)
	}
	got += fmt.Sprintln("dns", r.DNS.Nameservers)
	want := c.hostIfName() + ` 1400 false
eth0 1400 true
10.9.0.2/32 via 169.254.1.1 on 1
fd09::2/128 via fe80::ecee:eeff:feee:eeee on 1
0.0.0.0/0 via 169.254.1.1
::/0 via fe80::ecee:eeff:feee:eeee
dns [10.96.0.10]
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// The pod's names alone, as a script gives them: host-local knows none of them.
func TestArgsWithoutIgnoreUnknown(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("web-1")
	c.rt.Args = [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-1"}}
	c.mustAdd()
	if err := c.del(); err != nil {
		t.Errorf("del: %v", err)
	}
}

// Without a value, a pod's MTU is that of the node's way out, or what fits the tunnel.
func TestMTUOfTheNode(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	n.ip(n.name, "link add up0 mtu 1450 type veth peer name up1")
	n.ip(n.name, "link set up0 up")
	n.ip(n.name, "route add default dev up0")
	if r := n.newContainer("a").mustAdd(); r.Interfaces[1].Mtu != 1450 {
		t.Errorf("got MTU %d, want 1450", r.Interfaces[1].Mtu)
	}
	for tunnel, want := range map[int]int{1400: 1400, 8950: 1450} {
		n.agent.ping.MTU = tunnel
		if r := n.newContainer(fmt.Sprint("tunnel", tunnel)).mustAdd(); r.Interfaces[0].Mtu != want || r.Interfaces[1].Mtu != want {
			t.Errorf("MTU %d and %d, want %d: the agent says that %d fits its tunnel", r.Interfaces[0].Mtu, r.Interfaces[1].Mtu, want, tunnel)
		}
	}
}

func TestAddWithoutAgent(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	n.agent.stop()
	c := n.newContainer("a")
	began := time.Now()
	_, err := c.add()
	wantCode(t, err, 11, "no agent at "+n.stateDir()+"/agent.sock", "start weir-agent")
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %s", took)
	}
	n.mustLeaveNothing(c)
}

func TestAddWithForeignAgent(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	n.agent.ping.BPFFSDir = "/sys/fs/bpf/other"
	_, err := c.add()
	wantCode(t, err, 7, "bpffsDir", "/sys/fs/bpf/other", n.bpffsDir())
	n.agent.ping.NetnsInode++
	_, err = c.add()
	wantCode(t, err, 7, "stateDir", "network namespace")
	n.mustLeaveNothing(c)
}

// A refusal keeps the agent's code and message and takes everything back.
func TestUndoOfARefusal(t *testing.T) {
	n := newNode(t, "10.9.0.0/24", "fd09::/64")
	c := n.newContainer("a")
	before := ""
	n.agent.onAdd = func(api.AddRequest) {
		before = fmt.Sprintln(n.ip(n.name, "-br link show dev "+c.hostIfName()) != "", len(n.pool()))
	}
	n.agent.refuse = &api.Error{Code: 11, Message: "pod shop/a is not known yet"}
	_, err := c.add()
	wantCode(t, err, 11, "pod shop/a is not known yet")
	if before != "true 2\n" {
		t.Errorf("when the agent was asked (interface, addresses): %s", before)
	}
	n.mustLeaveNothing(c)
	n.agent.refuse = nil
	c.mustAdd()
}

// A step that fails half-way: the node has a route of somebody else to the address.
func TestUndoOfAFailedStep(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	n.ip(n.name, "link set lo up")
	n.ip(n.name, "route add 10.9.0.2/32 dev lo")
	c := n.newContainer("a")
	_, err := c.add()
	wantCode(t, err, 999, "route 10.9.0.2/32 to "+c.hostIfName(), "file exists")
	n.mustLeaveNothing(c)
	if n.ip(n.name, "route") == "" {
		t.Error("the other route is gone")
	}
}

func TestSecondAdd(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	c.mustAdd()
	before := n.left(c)
	_, err := c.add()
	wantCode(t, err, 999, c.hostIfName(), "DEL")
	if after := n.left(c); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
	if err := c.check(); err != nil {
		t.Errorf("CHECK of the first: %v", err)
	}
	other := n.newContainer("b") // another container, same namespace and interface name
	other.rt.NetNS = c.rt.NetNS
	_, err = other.add()
	wantCode(t, err, 999, "eth0", c.netns)
	if after := n.left(c); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
}

func TestPoolExhausted(t *testing.T) {
	n := newNode(t, "10.9.0.0/30") // .1 is the gateway's, .2 is left
	n.newContainer("a").mustAdd()
	before := n.left()
	c := n.newContainer("b")
	_, err := c.add()
	wantCode(t, err, 999, "network weir", "host-local", "10.9.0.", "exhausted")
	if after := n.left(c); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
}

func TestTwentyAtOnce(t *testing.T) {
	n := newNode(t, "10.9.0.0/24", "fd09::/64")
	var all []*container
	for i := range 20 {
		all = append(all, n.newContainer(fmt.Sprintf("p%d", i)))
	}
	each := func(do func(*container) error) {
		t.Helper()
		var wg sync.WaitGroup
		errs := make([]error, len(all))
		for i, c := range all {
			wg.Go(func() { errs[i] = do(c) })
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil {
				t.Errorf("%s: %v", all[i].rt.ContainerID, err)
			}
		}
	}
	each(func(c *container) error { _, err := c.add(); return err })
	each((*container).check)
	if got := len(slices.Compact(n.pool())); got != 40 {
		t.Errorf("%d addresses given out, want 40", got)
	}
	each((*container).del)
	n.mustLeaveNothing(all...)
}

func TestPodNamespaceIsTheNodes(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	c.rt.NetNS = n.netns.Path()
	_, err := c.add()
	wantCode(t, err, 8, "own network namespace")
	c.rt.NetNS = "/var/run/netns/weirt-nowhere"
	_, err = c.add()
	wantCode(t, err, 8, "weirt-nowhere")
	n.mustLeaveNothing()
}

// Only the veth's own settings change on the node.
func TestNodeSysctlsUntouched(t *testing.T) {
	n := newNode(t, "10.9.0.0/24", "fd09::/64")
	read := func() (all string) {
		_ = n.netns.Do(func(ns.NetNS) error {
			for _, f := range []string{"ipv4/conf/all/rp_filter", "ipv4/ip_forward", "ipv6/conf/all/disable_ipv6", "ipv6/conf/default/accept_ra", "ipv6/conf/all/accept_ra", "ipv6/conf/all/forwarding"} {
				b, err := os.ReadFile("/proc/sys/net/" + f)
				all += fmt.Sprintln(f, string(b), err)
			}
			return nil
		})
		return all
	}
	before := read()
	n.newContainer("a").mustAdd()
	if after := read(); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
}

// The programs come before anything that makes traffic possible: without them ADD gets
// no further, though a later step would fail as well.
func TestAttachComesFirst(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	n.ip(n.name, "link set lo up")
	n.ip(n.name, "route add 10.9.0.2/32 dev lo")
	n.sh("rm " + n.bpffsDir() + "/progs/stub_to_pod")
	c := n.newContainer("a")
	_, err := c.add()
	wantCode(t, err, 999, "stub_to_pod", "the agent has not loaded them yet")
	n.mustLeaveNothing(c)
}

func TestXDPModes(t *testing.T) {
	for mode, want := range map[string]string{"off": "", "generic": "xdpgeneric", "native": "xdp", "auto": "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, "10.9.0.0/24")
			n.conf["xdp"] = mode
			c := n.newContainer("a")
			c.mustAdd()
			got := ""
			for _, word := range strings.Fields(n.ip(n.name, "link show dev "+c.hostIfName())) {
				if strings.HasPrefix(word, "xdp") {
					got = word
				}
			}
			got, _, _ = strings.Cut(got, "/")
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if err := c.check(); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if err := c.del(); err != nil {
				t.Errorf("DEL: %v", err)
			}
			n.mustLeaveNothing(c)
		})
	}
}

// Run by `ip netns exec`, the plugin sees another /sys than the agent; the pins go
// where the agent's are all the same, and DEL finds them there.
func TestHiddenBPFFS(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	hide := "mount -t tmpfs none " + n.dir + "/bpf"
	for _, step := range []struct {
		command string
		pinned  bool
	}{{"ADD", true}, {"DEL", false}} {
		if out, err := n.raw(hide, n.stdin(), c.env(step.command)...); err != nil {
			t.Fatalf("%s: %v, %s", step.command, err, out)
		}
		if got := len(n.pins()) > 0; got != step.pinned {
			t.Errorf("after %s: pinned=%t, want %t", step.command, got, step.pinned)
		}
	}
	n.mustLeaveNothing(c)
}
