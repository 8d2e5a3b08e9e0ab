package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// settled is what the agent would run with.
func settled(t *testing.T, config string, args ...string) (*options, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weir.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &options{}
	c := &cobra.Command{Use: "weir-agent"}
	o.flags(c)
	if err := c.ParseFlags(append(args, "--config", path)); err != nil {
		t.Fatal(err)
	}
	err := o.settle(c)
	if err != nil {
		var u *usageError
		if !errors.As(err, &u) {
			t.Errorf("%v is no wrong usage: the exit status would not be 2", err)
		}
		err = errors.New(strings.ReplaceAll(err.Error(), path, "FILE"))
	}
	return o, err
}

func TestConfigFile(t *testing.T) {
	o, err := settled(t, `# the cluster's
cluster-cidr: [10.0.0.0/8, fd00::/48]
uplink:
  - eth0
routing: none
masquerade: false
map-size: {flows: 65536, facts: 1024}
add-wait: 12s
pick-up: 0s
flow-log: 1000
log-format: json
log-level: debug
node-name: from-file
`, "--node-name", "from-argument", "--log-level", "warn")
	if err != nil {
		t.Fatal(err)
	}
	if len(o.cidrs) != 2 || o.uplinks[0] != "eth0" || o.routing != "none" || o.masquerade || o.addWait != 12*time.Second || o.programs().Pickup >= 0 || o.flowLog != 1000 || o.logFormat != "json" {
		t.Errorf("%+v", o)
	}
	if slog.Default() != o.log {
		t.Error("parts that are handed no log write in another format")
	}
	if len(o.mapSizes) != 2 || o.sizes["flows"] != 65536 {
		t.Errorf("map sizes %v", o.sizes)
	}
	if o.nodeName != "from-argument" || o.logLevel != "warn" {
		t.Errorf("arguments do not go before the file: %s, %s", o.nodeName, o.logLevel)
	}
	for _, empty := range []string{"", "# nothing\n", "{}\n"} {
		if _, err := settled(t, empty); err != nil {
			t.Errorf("%q: %v", empty, err)
		}
	}
}

func TestConfigFileIsStrict(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{"routing: native\nlog-levle: debug\n", `FILE:2: unknown key "log-levle" (known: add-wait, announce-in, bpf-host-routing, bpffs-dir, `},
		{"config: /etc/other.yaml\n", `FILE:1: unknown key "config"`},
		{"help: true\n", `FILE:1: unknown key "help"`},
		{"tunnel-port: 0\n", `FILE:1: tunnel-port 0 must be 1 to 65535`},
		{"tunnel-port: 65536\n", `FILE:1: tunnel-port 65536 must be 1 to 65535`},
		{"tunnel-port: -1\n", `FILE:1: tunnel-port -1 must be 1 to 65535`},
		{"tunnel-port: vxlan\n", `FILE:1: tunnel-port: "vxlan" is no whole number`},
		{"routing: none\ncni-chain: cbr0\n", `FILE:2: cni-chain "cbr0" needs --cni-conf`},
		{"cni-conf: /x/05-weir.conflist\ncni-chain: cbr0\n", `FILE:2: cni-chain "cbr0" needs --cni-conf`},
		{"\nrouting: vxlam\n", `FILE:2: routing "vxlam" is none of native, vxlan, none`},
		{"log-level: 5\n", `FILE:1: log-level "5" is none of debug, info, warn, error`},
		{"log-format: xml\n", `FILE:1: log-format "xml" is neither text nor json`},
		{"node-egress: [policy]\n", `FILE:1: node-egress: must be a string`},
		{"masquerade: \"yes\"\n", `FILE:1: masquerade: must be true or false, not "yes"`},
		{"masquerade:\n", `FILE:1: masquerade: must be a bool`},
		{"flow-log: many\n", `FILE:1: flow-log: "many" is no whole number`},
		{"mark-shift: -1\n", `FILE:1: mark-shift: "-1" is no whole number`},
		{"add-wait: 5\n", `FILE:1: add-wait: "5" is no duration such as 5s`},
		{"routing: native\nadd-wait: 0s\n", `FILE:2: add-wait 0s must be above 0 and at most 12s`},
		{"add-wait: 12001ms\n", `FILE:1: add-wait 12.001s must be above 0 and at most 12s, for which the plugin waits`},
		{"announce-in: Kube_System\n", `FILE:1: announce-in "Kube_System" is no namespace: a lowercase RFC 1123 label`},
		{"announce-in: kube-system.x\n", `FILE:1: announce-in "kube-system.x" is no namespace: `},
		{"cluster-cidr: [fd00::/48, 10.244.0.1/16]\n", `FILE:1: cluster-cidr "10.244.0.1/16" has bits set behind its length: write 10.244.0.0/16 if that is meant`},
		{"cluster-cidr: [fd00::1/48]\n", `FILE:1: cluster-cidr "fd00::1/48" has bits set behind its length: write fd00::/48 if that is meant`},
		{"cluster-cidr: [10.0.0.0/33]\n", `FILE:1: cluster-cidr "10.0.0.0/33" is no CIDR`},
		{"cluster-cidr: 10.0.0.0/8\n", `FILE:1: cluster-cidr: must be a list`},
		{"cluster-cidr:\n- 10.0.0.0/8\n- [x]\n", `FILE:2: cluster-cidr: its items must be plain values`},
		{"cluster-cidr: [10.0.0.0]\n", `FILE:1: cluster-cidr "10.0.0.0" is no CIDR: write ADDRESS/LENGTH`},
		{"map-size: {flows: lots}\n", `FILE:1: map-size: `},
		{"map-size: {flowz: 1000}\n", `FILE:1: map-size: `},
		{"routing: none\nrouting: native\n", `FILE:2: routing is given in line 1 already`},
		{"- routing\n", `FILE:1: settings are lines of KEY: VALUE`},
		{"routing: [\n", `FILE: yaml: line `},
	} {
		if _, err := settled(t, c.config); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q:\ngot  %v\nwant %s", c.config, err, c.want)
		}
	}
	o := &options{}
	c := &cobra.Command{}
	o.flags(c)
	if err := c.ParseFlags([]string{"--config", "/none/weir.yaml"}); err != nil {
		t.Fatal(err)
	}
	if err := o.settle(c); err == nil || !strings.Contains(err.Error(), "--config: open /none/weir.yaml") {
		t.Errorf("no file: %v", err)
	}
}

// An argument that is wrong is not the file's.
func TestWrongArgumentBesideAFile(t *testing.T) {
	if _, err := settled(t, "routing: native\n", "--routing", "vxlam"); err == nil || err.Error() != `--routing "vxlam" is none of native, vxlan, none` {
		t.Error(err)
	}
}
