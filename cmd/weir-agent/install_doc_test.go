package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the table of settings into docs/install.md")

const (
	tableBegin = "<!-- the agent's flags: go test ./cmd/weir-agent -run Settings -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

func TestSettingsAreDocumented(t *testing.T) {
	const page = "../../docs/install.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), tableBegin)
	_, tail, end := strings.Cut(rest, tableEnd)
	if !ok || !end {
		t.Fatalf("%s has no place for the table", page)
	}
	want := head + tableBegin + settingsTable() + tableEnd + tail
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("the table in %s is not what the flags are: run this test with -update", page)
	}
}

func settingsTable() string {
	o := &options{}
	c := &cobra.Command{}
	o.flags(c)
	out := "| setting | default | what |\n|---|---|---|\n"
	c.Flags().VisitAll(func(f *pflag.Flag) {
		value := "`" + f.DefValue + "`"
		switch {
		case f.Name == configFlag:
			return
		case f.Name == "node-name":
			value = "the host's name"
		case f.DefValue == "" || f.DefValue == "[]":
			value = ""
		}
		out += fmt.Sprintf("| `%s` | %s | %s |\n", f.Name, value, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
	return out
}

// What the chart makes is what the agent takes: with the defaults, and with all set.
func TestChartsConfigFits(t *testing.T) {
	for file, check := range map[string]func(*options) bool{
		"../../deploy/weir.yaml": func(o *options) bool {
			return o.routing == "native" && o.masquerade && o.cniConf == "/etc/cni/net.d/05-weir.conflist" && o.cgroupRoot == "/host/cgroup2" && o.announceIn == "kube-system" && o.hostPorts == "nftables"
		},
		"../../deploy/tools/manifests/testdata/everything.yaml": func(o *options) bool {
			return o.routing == "vxlan" && o.tunnelPort == 4789 && !o.masquerade && len(o.cidrs) == 2 && o.nodeEgress == "allow" && o.sizes["flows"] == 65536 &&
				slices.Equal(o.uplinks, []string{"eth0", "eth1.100"}) && o.stateDir == "/var/run/weir" && o.logFormat == "json" && o.cgroupRoot == "" && o.announceIn == "" && o.hostPorts == "iptables"
		},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		settings := ""
		for _, doc := range strings.Split(string(text), "\n---\n") {
			var object struct {
				Kind string
				Data map[string]string
			}
			if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if object.Kind == "ConfigMap" {
				settings = object.Data["weir.yaml"]
			}
		}
		if o, err := settled(t, settings, "--node-name", "n1"); err != nil || settings == "" || !check(o) {
			t.Errorf("%s: %v\n%s", file, err, settings)
		}
		commandsFit(t, file, string(text))
	}
}

// commandsFit looks up every flag that a container is started with.
func commandsFit(t *testing.T, file, text string) {
	t.Helper()
	lines := regexp.MustCompile(`command: \[weir-agent, (.*)\]`).FindAllStringSubmatch(text, -1)
	if len(lines) < 2 {
		t.Errorf("%s starts %d containers", file, len(lines))
	}
	for _, m := range lines {
		args := strings.Split(strings.ReplaceAll(m[1], `"`, ""), ", ")
		c, rest, err := command().Find(args)
		if err == nil {
			err = c.ParseFlags(rest)
		}
		if err != nil || len(c.Flags().Args()) > 0 {
			t.Errorf("%s: weir-agent %s: %v", file, m[1], err)
		}
	}
}
