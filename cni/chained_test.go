package cni_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
)

// chain is a list whose only plugin follows one that has made eth0 with 10.9.0.7.
func (n *node) chain(name string) *libcni.NetworkConfigList {
	n.t.Helper()
	return n.list(name, map[string]any{"ipam": nil, "prevResult": map[string]any{
		"cniVersion": "1.1.0", "dns": map[string]any{"nameservers": []string{"10.96.0.10"}},
		"interfaces": []any{map[string]any{"name": "cni0"}, map[string]any{"name": "eth0", "sandbox": "/x"}, map[string]any{"name": "net1", "sandbox": "/x"}},
		"ips": []any{
			map[string]any{"address": "192.0.2.7/24", "interface": 2}, // another interface of the pod's
			map[string]any{"address": "10.9.0.7/24", "interface": 1, "gateway": "10.9.0.1"},
		},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}},
	}})
}

// made is a container whose interface another plugin made, with that end on the node.
func (n *node) made(id, host string) *container {
	n.t.Helper()
	c := n.newContainer(id)
	n.ip(n.name, "link add "+host+" type veth peer name eth0 netns "+c.netns)
	n.ip(c.netns, "addr add 10.9.0.7/24 dev eth0")
	n.ip(c.netns, "link set eth0 up")
	n.ip(n.name, "link set "+host+" up")
	return c
}

func (c *container) checkChain(name string) error {
	return c.node.runtime(func(cnic *libcni.CNIConfig) error {
		return cnic.CheckNetworkList(context.Background(), c.node.chain(name), c.rt)
	})
}

func (c *container) delChain(name string) error {
	return c.node.runtime(func(cnic *libcni.CNIConfig) error {
		return cnic.DelNetworkList(context.Background(), c.node.chain(name), c.rt)
	})
}

func TestChained(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.made("a", "veth1")
	state := func() string {
		names := strings.Fields(n.ip(n.name, "-br link") + n.ip(c.netns, "-br link"))
		return n.ip(n.name, "-4 -o addr") + n.ip(c.netns, "-4 -o addr") + n.ip(c.netns, "route") + n.ip(n.name, "route") +
			fmt.Sprintln(len(names), strings.Contains(n.ip(n.name, "link"), "alias"))
	}
	before := state()
	r, err := c.addWith(n.chain("cbr0"))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Interfaces) != 3 || len(r.IPs) != 2 || len(r.Routes) != 1 || r.IPs[1].Gateway.String() != "10.9.0.1" || len(r.DNS.Nameservers) != 1 {
		t.Errorf("result %+v: not what the plugin before gave", r)
	}
	if after := state(); after != before {
		t.Errorf("ADD changed interfaces, from\n%sto\n%s", before, after)
	}
	q := n.agent.requests[0]
	if !q.Chained || q.Network != "cbr0" || q.Pins != c.hostIfName() || q.HostIfName != "veth1" || fmt.Sprint(q.Addresses) != "[10.9.0.7]" || q.NetnsCookie == 0 {
		t.Errorf("agent was asked for %+v", q)
	}
	if err := c.checkChain("cbr0"); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	n.ip(c.netns, "addr del 10.9.0.7/24 dev eth0")
	n.ip(n.name, "link set veth1 down")
	wantCode(t, c.checkChain("cbr0"), 100, "eth0 lacks address 10.9.0.7", "veth1 is down")
	n.agent.stop()
	if err := c.delChain("cbr0"); err != nil {
		t.Errorf("DEL without an agent: %v", err)
	}
	if left := n.left(); !strings.Contains(left, "pin: ") {
		t.Error("the interface is there and its programs are not: it is open")
	}
	if n.ip(n.name, "-br link show dev veth1") == "" {
		t.Error("DEL removed another plugin's interface")
	}
	n.ip(n.name, "link del veth1")
	if err := c.delChain("cbr0"); err != nil {
		t.Errorf("DEL again: %v", err)
	}
	if pins := n.pins(); len(pins) != 0 {
		t.Errorf("left: %v", pins)
	}
}

// The other end has to be here: an index alone may be another interface's.
func TestChainedToAnEndElsewhere(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	elsewhere := n.newNetns("else")
	for i := range 20 { // interfaces of the node with whatever index the other end gets
		n.ip(n.name, fmt.Sprintf("link add x%d type veth peer name y%d", i, i))
	}
	n.ip(elsewhere, "link add far type veth peer name eth0 netns "+c.netns)
	_, err := c.addWith(n.chain("cbr0"))
	wantCode(t, err, types.ErrInvalidNetworkConfig, "prevResult: the other end of eth0", "not in the node's")
	n.ip(c.netns, "link del eth0")
	n.ip(n.name, "link add eth0 link x0 netns "+c.netns+" type macvlan")
	_, err = c.addWith(n.chain("cbr0"))
	wantCode(t, err, types.ErrInvalidNetworkConfig, "prevResult: eth0", "macvlan")
	if len(n.agent.requests) != 0 || len(n.pins()) != 0 {
		t.Errorf("asked %v, pinned %v", n.agent.requests, n.pins())
	}
}

// GC of a network leaves the endpoints of others, whose interfaces do not say whose they are.
func TestChainedGC(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	a, b := n.made("a", "veth1"), n.made("b", "veth2")
	for c, network := range map[*container]string{a: "cbr0", b: "other"} {
		if _, err := c.addWith(n.chain(network)); err != nil {
			t.Fatal(err)
		}
	}
	n.agent.edit = func(at api.Attachment, e *api.Endpoint) {
		e.Network = map[string]string{"a": "cbr0", "b": "other"}[at.ContainerID]
	}
	err := n.runtime(func(cnic *libcni.CNIConfig) error {
		return cnic.GCNetworkList(context.Background(), n.chain("cbr0"), &libcni.GCArgs{})
	})
	if err != nil {
		t.Fatalf("GC: %v", err)
	}
	if n.agent.known() != 1 || len(n.agent.gcs) != 1 || fmt.Sprint(n.agent.gcs[0]) != "[{b eth0}]" {
		t.Errorf("%d endpoints are left, the agent was told to keep %v", n.agent.known(), n.agent.gcs)
	}
	if n.ip(n.name, "-br link show dev veth1") == "" {
		t.Error("GC removed another plugin's interface")
	}
}
