package installed

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weirnet/weir/tests/cluster/control"
)

// helm is the program itself, on the chart, as docs/install.md says.
func (w *world) helm() {
	dir := w.TempDir()
	program := filepath.Join(dir, "helm")
	build := exec.CommandContext(w.ctx, "go", "build", "-trimpath", "-o", program, "helm.sh/helm/v3/cmd/helm")
	build.Dir, build.Env = root+"/tests/helm", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		w.Fatalf("build helm: %v\n%s", err, out)
	}
	config := w.Kubeconfig(w.Addr(), "")
	chart, err := filepath.Abs(root + "/deploy/chart")
	w.must(err)
	helm := func(args ...string) (string, error) {
		cmd := control.In(w.Host.Netns, program, append(args, "-n", "kube-system")...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "HOME="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) string {
		w.Helper()
		out, err := helm(args...)
		if err != nil {
			w.Fatalf("helm %v: %v\n%s", args, err, out)
		}
		if slices.Contains([]string{"install", "upgrade", "rollback"}, args[0]) {
			w.rolledOut() // helm's --wait is content with all but maxUnavailable
		}
		return out
	}
	values := []string{"--set", "k8sServiceHost=" + w.Host.Addr4, "--set", "image.repository=localhost/weir"}
	if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
		values = append(values, "--set", "cgroupRoot=/sys/fs/cgroup/unified")
	}
	wait := []string{"--wait", "--timeout", patience.String()}
	routing := func() string {
		return w.kubectl("-n", "kube-system", "get", "configmap", "weir-agent", "-o", "jsonpath={.data.weir\\.yaml}")
	}

	w.takeOff("")
	for set, want := range map[string][]string{
		"routing=vxlam":        {"routing", "native", "vxlan", "none"},
		"loglevel=debug":       {"loglevel"},
		"tunnelPort=0":         {"tunnelPort", "1"},
		"clusterCIDRs={10.0}":  {"clusterCIDRs"},
		"mapSizes.flows=many":  {"mapSizes", "flows", "integer"},
		"hostPorts=ipvs":       {"hostPorts", "nftables"},
		"image.repo=elsewhere": {"image", "repo"},
	} {
		out, err := helm("install", "weir", chart, "--set", set)
		for _, word := range want {
			if err == nil || !strings.Contains(out, word) {
				w.Errorf("helm install --set %s: %v, want %q in\n%s", set, err, word, out)
			}
		}
	}
	if out := must("list", "--short", "--all"); strings.TrimSpace(out) != "" {
		w.Errorf("refused values left the release %s", out)
	}
	must(append(append([]string{"install", "weir", chart}, values...), wait...)...)
	w.must(w.Ready(w.ctx))
	w.step("smoke", (*world).smoke)

	friend, stranger, served := w.scene()
	thief := w.intruder(stranger, served)
	must(append([]string{"upgrade", "weir", chart, "--reuse-values", "--set", "routing=vxlan"}, wait...)...)
	if text := routing(); !strings.Contains(text, "routing: vxlan") {
		w.Errorf("after the upgrade the settings are\n%s", text)
	}
	must(append([]string{"rollback", "weir", "1"}, wait...)...)
	if text := routing(); !strings.Contains(text, "routing: native") {
		w.Errorf("after the rollback the settings are\n%s", text)
	}
	w.foiled(thief)
	flow := w.flow(friend, served, 4)
	must(append([]string{"upgrade", "weir", chart, "--reuse-values", "--set", "logLevel=debug"}, wait...)...)
	w.newcomer(friend, stranger, func() {})
	w.end("IPv4 over an upgrade by helm", flow, time.Second)
	w.kubectl("delete", "namespace", "life", "--timeout="+patience.String())

	must("upgrade", "weir", chart, "--reuse-values", "--set", "uninstall=true")
	must("uninstall", "weir", "--wait")
	w.isOff()
	w.install()
}
