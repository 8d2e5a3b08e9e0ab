package cni_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/loader"
)

// An address may be given to the next pod once the endpoint is out of the kernel, and
// the links may go once no packet can come.
func TestDelOrder(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	c.mustAdd()
	before, during := n.left(c), ""
	n.agent.onDelete = func(api.Attachment) {
		n.agent.mu.Unlock() // the fake holds it, and left counts
		during = n.left(c)
		n.agent.mu.Lock()
	}
	if err := c.del(); err != nil {
		t.Fatal(err)
	}
	if during != before {
		t.Errorf("when the agent was told\n%swant all of\n%s", during, before)
	}
	n.mustLeaveNothing(c)
}

func TestDelTwice(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	c.mustAdd()
	for range 2 {
		if err := c.del(); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.newContainer("never").del(); err != nil {
		t.Errorf("DEL without an ADD: %v", err)
	}
	n.mustLeaveNothing(c)
}

func TestDelWithoutAgent(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	c.mustAdd()
	n.agent.stop()
	if err := c.del(); err != nil {
		t.Fatal(err)
	}
	if got := n.left(c); got != "endpoints: 1\n" { // for the agent to collect
		t.Errorf("left behind:\n%s", got)
	}
}

func TestDelWithoutNetns(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c, d := n.newContainer("a"), n.newContainer("b")
	c.mustAdd()
	d.mustAdd()
	c.destroy()
	d.destroy()
	d.rt.NetNS = ""
	for _, x := range []*container{c, d} {
		if err := x.del(); err != nil {
			t.Fatal(err)
		}
	}
	n.mustLeaveNothing()
}

// An administrator's mistake in the configuration must not keep pods from going.
func TestDelWithBadConfig(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	right := maps.Clone(n.conf)
	for name, wrong := range map[string]map[string]any{
		"value and key": {"xdp": "fast", "colour": "blue"},
		"type":          {"mtu": "big"},
		"bpffsDir":      {"bpffsDir": "sys/fs/bpf"},
	} {
		c := n.newContainer("a")
		c.mustAdd()
		maps.Copy(n.conf, wrong)
		if err := c.del(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name != "bpffsDir" { // then the agent collects the pins
			n.mustLeaveNothing(c)
		}
		n.conf = maps.Clone(right)
	}
}

// With addresses that cannot be given back the pod goes all the same, and they are given
// back when the configuration is right again.
func TestDelWithBadIPAM(t *testing.T) {
	n := newNode(t, "10.9.0.0/29") // six addresses, one of them the gateway's
	right := n.conf["ipam"]
	with := func(key string, value any) map[string]any {
		ipam := maps.Clone(right.(map[string]any))
		ipam[key] = value
		return ipam
	}
	for name, wrong := range map[string]any{
		"ranges":    with("ranges", poolOf([]string{"10.9.0.0/33"})),
		"no ranges": with("ranges", nil),
		"no plugin": with("type", "no-such-ipam"),
		"no type":   with("type", nil),
		"missing":   nil,
	} {
		c := n.newContainer("a")
		c.mustAdd()
		lease := fmt.Sprintln(n.pool()[0])
		n.conf["ipam"] = wrong
		if wrong == nil {
			delete(n.conf, "ipam")
		}
		for range 2 {
			if err := c.del(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if left := n.left(c); left != lease {
			t.Errorf("%s: left behind\n%s, want the address alone", name, left)
		}
		if _, err := n.newContainer("b").add(); err == nil {
			t.Errorf("%s: an ADD with that configuration", name)
		}
		n.conf["ipam"] = right
		next := n.newContainer("c")
		next.mustAdd()
		if pool := n.pool(); len(pool) != 1 {
			t.Errorf("%s: %s are given out, to one pod", name, pool)
		}
		if err := next.del(); err != nil {
			t.Fatal(err)
		}
		n.mustLeaveNothing(c, next)
	}
}

// GC gives back what is owed, too, and leaves what other networks owe.
func TestGCSettles(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	right := n.conf["ipam"]
	c := n.newContainer("a")
	c.mustAdd()
	n.conf["ipam"] = map[string]any{"type": "no-such-ipam"}
	if err := c.del(); err != nil {
		t.Fatal(err)
	}
	n.conf["ipam"] = right
	for _, network := range []string{"second", "weir"} {
		if len(n.pool()) != 1 {
			t.Fatalf("before GC of %s: pool %s", network, n.pool())
		}
		if err := n.runtime(func(cnic *libcni.CNIConfig) error {
			return cnic.GCNetworkList(t.Context(), n.list(network, nil), &libcni.GCArgs{})
		}); err != nil {
			t.Fatal(err)
		}
	}
	n.mustLeaveNothing(c)
}

func TestCheckNamesEachMismatch(t *testing.T) {
	n := newNode(t, "10.9.0.0/24", "fd09::/64")
	c := n.newContainer("a")
	c.mustAdd()
	host := c.hostIfName()
	for _, breakage := range []struct {
		breaks, mends func()
		want          string
	}{
		{func() { n.ip(c.netns, "route del default") }, func() { n.ip(c.netns, "route add default via 169.254.1.1 dev eth0 onlink") }, "eth0 lacks route 0.0.0.0/0"},
		{func() { n.ip(c.netns, "-6 neigh del fe80::ecee:eeff:feee:eeee dev eth0") }, func() {
			n.ip(c.netns, "-6 neigh add fe80::ecee:eeff:feee:eeee lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent")
		}, "eth0 lacks permanent neighbour fe80::ecee:eeff:feee:eeee"},
		{func() { n.ip(n.name, "route del 10.9.0.2/32") }, func() { n.ip(n.name, "route add 10.9.0.2/32 dev "+host) }, host + " lacks route 10.9.0.2/32"},
		{func() { n.ip(c.netns, "addr del fd09::2/128 dev eth0") }, func() { n.ip(c.netns, "addr add fd09::2/128 dev eth0 nodad") }, "eth0 lacks address fd09::2/128"},
		{func() { n.sh("ip netns exec " + c.netns + " sysctl -qw net.ipv6.conf.eth0.accept_ra=1") }, func() {
			n.sh("ip netns exec " + c.netns + " sysctl -qw net.ipv6.conf.eth0.accept_ra=0")
		}, "eth0 has accept_ra=1, not 0"},
		{func() { n.agent.edit = func(_ api.Attachment, e *api.Endpoint) { e.Ready = false } }, func() { n.agent.edit = nil }, "not ready"},
		{func() { n.agent.edit = func(_ api.Attachment, e *api.Endpoint) { e.HostIfindex = 9999 } }, func() { n.agent.edit = nil }, "on interface 9999"},
		{func() { n.agent.edit = func(_ api.Attachment, e *api.Endpoint) { e.ContainerID = "x" } }, func() { n.agent.edit = nil }, "no such endpoint"},
	} {
		breakage.breaks()
		err := c.check()
		wantCode(t, err, 100, breakage.want)
		if strings.Contains(err.Error(), "; ") {
			t.Errorf("more than one mismatch: %v", err)
		}
		breakage.mends()
		if err := c.check(); err != nil {
			t.Fatalf("mended %q: %v", breakage.want, err)
		}
	}
	if err := loader.DetachPod(n.bpffsDir(), host); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.check(), 100, "from_pod is not attached to "+host+"; to_pod is not attached to "+host)
	n.ip(n.name, "link del "+host)
	wantCode(t, c.check(), 100, host+" on the node", "eth0 in the pod")
}

// GC removes what the runtime does not list, whether its namespace lives or not, and
// leaves another network's pods alone.
func TestGC(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	keep, stale, gone, other := n.newContainer("keep"), n.newContainer("stale"), n.newContainer("gone"), n.newContainer("other")
	keep.mustAdd()
	kept := n.pool()
	stale.mustAdd()
	gone.mustAdd()
	pool := map[string]any{"type": "host-local", "dataDir": n.dir + "/pool", "subnet": "10.8.0.0/24"}
	if _, err := other.addWith(n.list("second", map[string]any{"ipam": pool})); err != nil {
		t.Fatal(err)
	}
	gone.destroy()
	n.sh("rm -r " + n.dir + "/cache") // the runtime has forgotten, too
	err := n.runtime(func(c *libcni.CNIConfig) error {
		return c.GCNetworkList(context.Background(), n.list("weir", nil), &libcni.GCArgs{
			ValidAttachments: []types.GCAttachment{{ContainerID: "keep", IfName: "eth0"}},
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := n.pool(); fmt.Sprint(got) != fmt.Sprint(kept) {
		t.Errorf("pool: got %s, want %s", got, kept)
	}
	left := n.left(keep, stale, other)
	for c, want := range map[*container]bool{keep: true, stale: false, gone: false, other: true} {
		if strings.Contains(left, c.hostIfName()) != want {
			t.Errorf("%s: want kept=%t in\n%s", c.rt.ContainerID, want, left)
		}
	}
	if n.agent.known() != 2 || len(n.agent.gcs) != 1 || len(n.agent.gcs[0]) != 2 ||
		!slices.Contains(n.agent.gcs[0], api.Attachment{ContainerID: "other", IfName: "eth0"}) {
		t.Errorf("agent: %d endpoints, GC calls %v", n.agent.known(), n.agent.gcs)
	}
}

func TestStatus(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	status := func() error {
		return n.runtime(func(c *libcni.CNIConfig) error {
			return c.GetStatusNetworkList(context.Background(), n.list("weir", nil))
		})
	}
	if err := status(); err != nil {
		t.Errorf("with an agent: %v", err)
	}
	n.agent.epoch.Store(0)
	wantCode(t, status(), 50, "no datapath")
	n.agent.stop()
	wantCode(t, status(), 50, "no agent at")
}
