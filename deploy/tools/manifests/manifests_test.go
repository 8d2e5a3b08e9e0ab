package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the manifests and testdata instead of comparing them")

const deploy = "../.."

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestManifestsAreUpToDate(t *testing.T) {
	for _, m := range manifests {
		want, err := m.text(filepath.Join(deploy, "chart"))
		must(t, err)
		golden(t, filepath.Join(deploy, m.file), want, "run `make manifests`")
	}
}

// What `make manifest` prints for those who set values without helm.
func TestShow(t *testing.T) {
	var b bytes.Buffer
	must(t, show(&b, deploy, "k8sServiceHost=192.0.2.7,uninstall=true"))
	if text := b.String(); !strings.Contains(text, "[weir-agent, uninstall]") || strings.Contains(text, "kind: ConfigMap") {
		t.Error(text)
	}
	b.Reset()
	must(t, show(&b, deploy, "k8sServiceHost=192.0.2.7"))
	if text := b.String(); !strings.Contains(text, `{name: KUBERNETES_SERVICE_HOST, value: "192.0.2.7"}`) || !strings.Contains(text, "kind: ConfigMap") {
		t.Error(text)
	}
	b.Reset()
	must(t, show(&b, deploy, "cniChain=cbr0,routing=none"))
	if text := b.String(); !strings.Contains(text, "cni-chain: \"cbr0\"") {
		t.Error(text)
	}
	for set, want := range map[string]string{"routing=vxlam": "routing", "nonsense=1": "nonsense", "a": "-set"} {
		if err := show(&b, deploy, set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", set, err)
		}
	}
}

func golden(t *testing.T, path, want, remedy string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(path, []byte(want), 0o644))
	}
	have, err := os.ReadFile(path)
	must(t, err)
	if string(have) != want {
		t.Errorf("%s is not what the chart says: %s", path, remedy)
	}
}

// everything sets all there is to set.
var everything = map[string]any{
	"image":   map[string]any{"repository": "example.test/weir", "tag": "1.2.3", "pullPolicy": "Always"},
	"routing": "vxlan", "tunnelPort": 4789, "masquerade": false, "bpfHostRouting": false, "announce": false, "clusterCIDRs": []any{"10.0.0.0/8", "fd00::/48"}, "nodeEgress": "allow",
	"uplinks": []any{"eth0", "eth1.100"}, "uplinkXDP": "native", "shieldDeny": []any{"198.51.100.7", "2001:db8:bad::/48"}, "mapSizes": map[string]any{"flows": 65536, "facts": float64(1048576)},
	"logLevel": "debug", "logFormat": "json", "k8sServiceHost": "192.0.2.1", "k8sServicePort": 16443,
	"stateDir": "/var/run/weir", "cniConfDir": "/etc/cni/other", "cniBinDir": "/usr/libexec/cni", "hostPorts": "iptables", "cgroupRoot": "",
	"prepareNode": false, "nodeSelector": map[string]any{"kubernetes.io/os": "linux"}, "tolerations": []any{},
	"resources": map[string]any{"limits": map[string]any{"memory": "512Mi"}}, "maxUnavailable": "10%",
	"imagePullSecrets": []any{map[string]any{"name": "pull"}},
	"flowSpill":        map[string]any{"enabled": true, "sizeMiB": 7, "age": "90m"},
	"metrics":          map[string]any{"listen": ":19945", "podMonitor": true},
	"hubble":           map[string]any{"listen": ":14244", "tlsSecret": "flows"},
	"flowFile": map[string]any{"path": "/var/log/weir/flows.json", "sizeMiB": 7, "keep": 2, "age": "48h",
		"filters": []any{"verdict=dropped"}, "fields": []any{"verdict", "source.pod_name"}},
	"otlp": map[string]any{"endpoint": "https://collector.example.test:4318/in", "protocol": "http", "secret": "collector", "secretHas": []any{"ca.crt", "tls.crt", "headers"},
		"flows": true, "filters": []any{"namespace=shop"}, "fields": []any{"weir.verdict", "source.k8s"}, "metrics": true, "metricsInterval": "30s"},
}

// The agent's own tests read its settings from here (cmd/weir-agent).
func TestEverySettingReachesTheAgent(t *testing.T) {
	files, err := render(filepath.Join(deploy, "chart"), everything)
	must(t, err)
	golden(t, "testdata/everything.yaml", files["config.yaml"]+"---\n"+files["daemonset.yaml"]+"---\n"+files["podmonitor.yaml"], "look at the difference, then -update")
	for name, text := range files {
		for _, doc := range bytes.Split([]byte(text), []byte("\n---\n")) {
			var object map[string]any
			if err := yaml.UnmarshalStrict(doc, &object); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	for _, c := range []struct {
		values map[string]any
		want   string
	}{
		{map[string]any{"loglevel": "debug"}, "loglevel"},
		{map[string]any{"logLevel": "verbose"}, "logLevel"},
		{map[string]any{"routing": "vxlam"}, "routing"},
		{map[string]any{"tunnelPort": 0}, "tunnelPort"},
		{map[string]any{"masquerade": "yes"}, "masquerade"},
		{map[string]any{"clusterCIDRs": "10.0.0.0/8"}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"10.0.0.0"}}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"10.0.0.0/33"}}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"10.0.0.256/32"}}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"10.0.0/8"}}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"fd00::/129"}}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"fd00/48"}}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"fd00:1::2::/48"}}, "clusterCIDRs"},
		{map[string]any{"clusterCIDRs": []any{"fd00::/48", "10.244.0.1/16"}}, "clusterCIDRs: 10.244.0.1/16 has bits set behind its length"},
		{map[string]any{"clusterCIDRs": []any{"128.0.0.0/0"}}, "clusterCIDRs: 128.0.0.0/0 has bits set"},
		{map[string]any{"cniChain": "cbr0"}, "cniChain cbr0: packets' ways are the other plugin's: set routing to none"},
		{map[string]any{"cniChain": "cbr0", "routing": "vxlan"}, "set routing to none"},
		{map[string]any{"flowUpdate": "a minute"}, "flowUpdate"},
		{map[string]any{"flowUpdate": "60"}, "flowUpdate"},
		{map[string]any{"flowUpdate": 60}, "flowUpdate"},
		{map[string]any{"mapSizes": map[string]any{"flowz": 65536}}, "flowz"},
		{map[string]any{"mapSizes": map[string]any{"flows": 1}}, "flows"},
		{map[string]any{"mapSizes": map[string]any{"flows": "many"}}, "flows"},
		{map[string]any{"uplinks": []any{"a/b"}}, "uplinks"},
		{map[string]any{"uplinkXDP": "on"}, "uplinkXDP"},
		{map[string]any{"shieldDeny": []any{"198.51.100.7", "scanner.example"}}, "shieldDeny"},
		{map[string]any{"shieldDeny": []any{"198.51.100.7\n0.0.0.0"}}, "shieldDeny"},
		{map[string]any{"k8sServicePort": 70000}, "k8sServicePort"},
		{map[string]any{"stateDir": "run/weir"}, "stateDir"},
		{map[string]any{"hostPorts": "ipvs"}, "hostPorts"},
		{map[string]any{"image": map[string]any{"repo": "x"}}, "image"},
		{map[string]any{"maxUnavailable": 0}, "maxUnavailable"},
		{map[string]any{"metrics": map[string]any{"listen": "9945"}}, "listen"},
		{map[string]any{"flowSpill": map[string]any{"sizeMiB": 0}}, "sizeMiB"},
		{map[string]any{"flowSpill": map[string]any{"age": "a day"}}, "age"},
		{map[string]any{"hubble": map[string]any{"listen": "4244"}}, "listen"},
		{map[string]any{"flowFile": map[string]any{"path": "flows.json"}}, "path"},
		{map[string]any{"flowFile": map[string]any{"path": "/flows.json"}}, "path"}, // the node's root would be mounted
		{map[string]any{"otlp": map[string]any{"endpoint": "collector:4317"}}, "endpoint"},
		{map[string]any{"otlp": map[string]any{"endpoint": "http://collector:4317", "secretHas": []any{"headers"}}}, "name it in otlp.secret"},
		{map[string]any{"otlp": map[string]any{"secretHas": []any{"password"}}}, "secretHas"},
		{map[string]any{"otlp": map[string]any{"fields": []any{"weir.verdict,source"}}}, "fields"},
		{map[string]any{"hubble": map[string]any{"listen": "localhost:4244"}}, "listen"},
		{map[string]any{"hubble": map[string]any{"listen": ":4244"}}, "name a Secret in hubble.tlsSecret"},
		{map[string]any{"metrics": map[string]any{"podMonitor": true}}, "nobody else reaches metrics.listen 127.0.0.1:9945"},
		{map[string]any{"metrics": map[string]any{"podMonitor": true, "listen": ""}}, "nothing to scrape"},
	} {
		_, err := render(filepath.Join(deploy, "chart"), c.values)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.values, err)
		}
	}
}

// What the agent takes is not refused.
func TestRightValuesAreTaken(t *testing.T) {
	for _, values := range []map[string]any{
		{"clusterCIDRs": []any{"10.244.0.0/16", "0.0.0.0/0", "255.255.255.255/32", "172.16.0.0/12", "192.168.1.128/25"}},
		{"clusterCIDRs": []any{"::/0", "fd00::/48", "2001:db8:0:1::/64", "2001:db8:1:2:3:4:5:6/128", "::1/128", "FD00:1::/112"}},
		{"cniChain": "cbr0", "routing": "none"}, {"cniChain": ""},
		{"uplinkXDP": "off"}, {"uplinkXDP": false}, {"shieldDeny": []any{}}, {"shieldDeny": []any{"198.51.100.0/24", "2001:DB8::/32"}},
		{"flowUpdate": "0"}, {"flowUpdate": 0}, {"flowUpdate": "0s"}, {"flowUpdate": "1m30s"},
		{"mapSizes": map[string]any{"shield_deny": 16, "flow_events": 1 << 30}},
	} {
		if _, err := render(filepath.Join(deploy, "chart"), values); err != nil {
			t.Errorf("%v: %v", values, err)
		}
	}
}

// Only the container that mounts is privileged, and none is when the node is prepared.
func TestPrivilegedContainers(t *testing.T) {
	for _, c := range []struct {
		values map[string]any
		want   []string
	}{
		{nil, []string{"prepare-node"}},
		{map[string]any{"prepareNode": false}, nil},
		{map[string]any{"uninstall": true}, nil},
	} {
		files, err := render(filepath.Join(deploy, "chart"), c.values)
		must(t, err)
		if got := privileged(t, files["daemonset.yaml"]); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v", c.values, got)
		}
	}
}

func privileged(t *testing.T, text string) (names []string) {
	t.Helper()
	type container struct {
		Name            string
		SecurityContext struct{ Privileged, AllowPrivilegeEscalation *bool }
	}
	var set struct {
		Spec struct {
			Template struct {
				Spec struct{ InitContainers, Containers []container }
			}
		}
	}
	must(t, yaml.Unmarshal([]byte(text), &set))
	all := slices.Concat(set.Spec.Template.Spec.InitContainers, set.Spec.Template.Spec.Containers)
	if len(all) < 2 {
		t.Fatalf("%d containers", len(all))
	}
	for _, c := range all {
		if p := c.SecurityContext.Privileged; p != nil && *p {
			names = append(names, c.Name)
		} else if e := c.SecurityContext.AllowPrivilegeEscalation; e == nil || *e {
			t.Errorf("%s may gain privileges", c.Name)
		}
	}
	return names
}
