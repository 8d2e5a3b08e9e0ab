package cni_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weirnet/weir/cni"
)

// Everything wrong in the configuration is code 7 with the key in front; nothing is made.
func TestBadConfig(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	for _, tc := range []struct {
		changes map[string]any
		want    string
	}{
		{map[string]any{"xdp": "fast"}, "xdp: "},
		{map[string]any{"xdp": 1}, "xdp: must be string"},
		{map[string]any{"mtu": 500}, "mtu: 500"},
		{map[string]any{"mtu": "big"}, "mtu: must be int"},
		{map[string]any{"stateDir": "run/weir"}, "stateDir: "},
		{map[string]any{"stateDir": "/run/../etc"}, "stateDir: "},
		{map[string]any{"bpffsDir": "weir"}, "bpffsDir: "},
		{map[string]any{"ipam": nil}, "ipam.type: "},
		{map[string]any{"ipam": map[string]any{"type": "../host-local"}}, "ipam.type: "},
		{map[string]any{"ipam": map[string]any{"type": "no-such-ipam"}}, "ipam.type: "},
		{map[string]any{"colour": "blue"}, "colour: unknown key"},
		{map[string]any{"StateDir": "/run/weir"}, "StateDir: unknown key"},
	} {
		_, err := c.addWith(n.list("weir", tc.changes))
		wantCode(t, err, types.ErrInvalidNetworkConfig, tc.want)
	}
	n.mustLeaveNothing(c)
}

func TestRoutesWithAGatewayAreRefused(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	n.conf["ipam"].(map[string]any)["routes"] = []map[string]any{{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.9.0.1"}}
	_, err := c.add()
	wantCode(t, err, 7, "ipam.routes", "192.0.2.0/24", "10.9.0.1")
	n.mustLeaveNothing(c)
}

// Where the list and the configuration disagree on who makes the interface.
func TestChainIsRefused(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	before := map[string]any{"cniVersion": "1.1.0", "ips": []any{map[string]any{"address": "10.9.0.7/24"}}}
	for _, tc := range []struct {
		changes map[string]any
		want    string
	}{
		{map[string]any{"prevResult": before}, "ipam: "},
		{map[string]any{"ipam": nil}, "ipam.type: missing"},
		{map[string]any{"ipam": nil, "mtu": 1400, "prevResult": before}, "mtu: "},
		{map[string]any{"ipam": nil, "dns": map[string]any{"domain": "x"}, "prevResult": before}, "dns: "},
		{map[string]any{"ipam": nil, "prevResult": before}, "prevResult: there is no interface eth0"},
		{map[string]any{"ipam": nil, "prevResult": map[string]any{"cniVersion": "1.1.0"}}, "prevResult.ips: no address for eth0"},
		{map[string]any{"ipam": nil, "prevResult": map[string]any{"cniVersion": "1.1.0", "ips": []any{
			map[string]any{"address": "10.9.0.7/24"}, map[string]any{"address": "10.9.0.8/24"}}}}, "prevResult.ips: "},
		{map[string]any{"ipam": nil, "prevResult": map[string]any{"cniVersion": "1.1.0", "ips": []any{
			map[string]any{"address": "10.9.0.7/24", "interface": 3}}}}, "prevResult.ips: 10.9.0.7 is of interface 3"},
	} {
		_, err := c.addWith(n.list("weir", tc.changes))
		wantCode(t, err, 7, tc.want)
	}
	n.mustLeaveNothing(c)
}

func TestBadArgs(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	for _, tc := range []struct {
		args [][2]string
		want string
	}{
		{nil, "K8S_POD_NAMESPACE is missing"},
		{[][2]string{{"K8S_POD_NAMESPACE", "shop"}}, "K8S_POD_NAME is missing"},
		{[][2]string{{"K8S_POD_NAMESPACE", "../etc"}, {"K8S_POD_NAME", "a"}}, "K8S_POD_NAMESPACE"},
		{[][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "a/b"}}, "K8S_POD_NAME"},
		{[][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "a"}, {"NEW", "1"}}, "NEW"},
	} {
		c := n.newContainer("a")
		c.rt.Args = tc.args
		_, err := c.add()
		wantCode(t, err, types.ErrInvalidEnvironmentVariables, "CNI_ARGS", tc.want)
		n.mustLeaveNothing(c)
	}
}

func TestBadContainerID(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	c := n.newContainer("a")
	c.rt.ContainerID = "../x"
	out, err := n.raw("true", n.stdin(), c.env("ADD")...)
	if err == nil || !strings.Contains(out, "containerID") || !strings.Contains(out, `"code": 4`) {
		t.Errorf("got %v, %s", err, out)
	}
}

func TestVersion(t *testing.T) {
	n := newNode(t)
	out, err := n.raw("true", "", "CNI_COMMAND=VERSION")
	var v struct{ SupportedVersions []string }
	if err != nil || json.Unmarshal([]byte(out), &v) != nil || strings.Join(v.SupportedVersions, " ") != "0.3.0 0.3.1 0.4.0 1.0.0 1.1.0" {
		t.Errorf("got %v, %s", err, out)
	}
}

// Old runtimes get the result in their version's shape.
func TestOldVersions(t *testing.T) {
	for _, v := range []string{"0.3.0", "0.4.0", "1.0.0"} {
		n := newNode(t, "10.9.0.0/24")
		c := n.newContainer("a")
		list := n.list("weir", nil)
		list.CNIVersion = v
		if r, err := c.addWith(list); err != nil || len(r.IPs) != 1 || len(r.Interfaces) != 2 {
			t.Errorf("%s: %v, %v", v, r, err)
		}
	}
}

func TestHostIfName(t *testing.T) {
	if got := cni.HostIfName("abc", "eth0"); got != "weir538f587a236" { // sha256 of abc/eth0
		t.Errorf("got %s", got)
	}
}
