// Package installed tests Weir as its users meet it: installed by its manifest on a real
// Kubernetes of two nodes that has no network for pods yet (tests/cluster/bare), and judged
// by Kubernetes' own tests.
package installed

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/cluster/bare"
)

var (
	only = flag.String("only", "", "steps to run after the installation, separated by commas; all by default")
	with = flag.String("values", "", "of the chart, as routing=vxlan,logLevel=debug, for the installation")
	keep = flag.Bool("keep", false, "leave the cluster up until interrupted")
)

const (
	root     = "../../.."
	patience = 3 * time.Minute // for what takes seconds on an idle machine
)

// world is a cluster with Weir on it.
type world struct {
	*testing.T
	*bare.Cluster
	ctx context.Context
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// step is a part of the test that others can do without.
type step struct {
	name string
	run  func(*world)
	long bool // not where upstream's tests are cut, too (-shard), unless -only names it
}

// TestCluster is one cluster's life. Every step begins and ends with Weir installed and
// nothing else on it.
func TestCluster(t *testing.T) {
	bin := os.Getenv("WEIR_CLUSTER_BIN")
	if bin == "" {
		t.Fatal("WEIR_CLUSTER_BIN is not set: run `make test-cluster`")
	}
	image, err := filepath.Abs(root + "/bin/image")
	if err != nil {
		t.Fatal(err)
	}
	archives, err := filepath.Glob(image + "/weir-" + runtime.GOARCH + ".tar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no image in %s: run `make image`", image)
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt) // and clean up
	defer stop()
	w := &world{T: t, ctx: ctx}
	before := machine(t)
	t.Cleanup(func() {
		if after := machine(t); after != before {
			t.Errorf("the machine's own network or sysctls changed, from\n%s\nto\n%s", before, after)
		}
	})
	began := time.Now()
	w.Cluster = bare.Up(t, bare.Options{Bin: bin, Nodes: 2, Images: archives})
	t.Logf("the bare cluster is up after %s", time.Since(began).Round(time.Millisecond))
	if *keep {
		defer w.stay()
	}
	if !w.step("install", (*world).install) {
		return
	}
	for _, s := range steps {
		if *only == "" && !(s.long && *shard != "") || strings.Contains(","+*only+",", ","+s.name+",") {
			w.step(s.name, s.run)
		}
	}
}

// machine is what of it must stay as it is.
func machine(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `ip -o link show type bridge; ip addr show eth0 2>/dev/null | grep -v valid_lft; ip route; ip -6 route show default; nft list tables
		sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys net.ipv4.ip_forward net.ipv6.conf.all.forwarding
		ls /etc/cni /opt/cni 2>&1`).CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	return string(out)
}

var steps = []step{
	{name: "smoke", run: (*world).smoke},
	{name: "hostports", run: (*world).hostports},
	{name: "restart", run: (*world).restart},
	{name: "kill", run: (*world).kill},
	{name: "reboot", run: (*world).reboot},
	{name: "upgrade", run: (*world).upgrade},
	{name: "mistakes", run: (*world).mistakes, long: true},
	{name: "services", run: (*world).services, long: true},
	{name: "helm", run: (*world).helm, long: true},
	{name: "latency", run: (*world).latency},
	{name: "starts", run: (*world).starts},
	{name: "e2e", run: (*world).e2e},
	{name: "vxlan", run: (*world).vxlan},
	{name: "proxy", run: (*world).proxy, long: true},
	{name: "chained", run: (*world).chained, long: true},
	{name: "uninstall", run: (*world).uninstall},
}

func (w *world) step(name string, f func(*world)) bool {
	w.Helper()
	if w.ctx.Err() != nil {
		w.Errorf("%s: interrupted", name)
		return false
	}
	return w.Run(name, func(t *testing.T) {
		f(&world{T: t, Cluster: w.Cluster, ctx: w.ctx})
		if t.Failed() {
			w.logs(t)
		}
	})
}

// logs of the agents, for a step that failed.
func (w *world) logs(t *testing.T) {
	out, err := w.Kubectl(context.Background(), "-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=weir", "--all-containers", "--prefix", "--tail=40")
	t.Logf("Weir logged (%v)\n%s", err, out)
}

// stay lets people look around.
func (w *world) stay() {
	fmt.Fprintf(os.Stderr, "the cluster stays up until you interrupt this. Kubectl, and commands on its nodes:\n  %s/k get pods -A\n  %s/on-node1 ip addr\n", w.Dir, w.Dir)
	<-w.ctx.Done()
}

// manifest is what installs Weir here.
func (w *world) manifest(more ...string) string {
	w.Helper()
	set := []string{"k8sServiceHost=" + w.Host.Addr4}
	if *with != "" {
		set = append(set, *with)
	}
	if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
		set = append(set, "cgroupRoot=/sys/fs/cgroup/unified")
	}
	set = append(set, more...)
	cmd := exec.CommandContext(w.ctx, "go", "run", "./manifests", "-set", strings.Join(set, ","), "..")
	cmd.Dir = root + "/deploy/tools"
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	w.must(err)
	return string(out)
}

func (w *world) kubectl(args ...string) string {
	w.Helper()
	out, err := w.Kubectl(w.ctx, args...)
	w.must(err)
	return out
}

func (w *world) apply(text string) {
	w.Helper()
	_, err := w.KubectlWith(w.ctx, text, "apply", "-f", "-")
	w.must(err)
}

// rolledOut waits for the DaemonSet.
func (w *world) rolledOut() {
	w.Helper()
	w.kubectl("-n", "kube-system", "rollout", "status", "daemonset/weir-agent", "--timeout="+patience.String())
}

// vxlan: the same, with a tunnel between the nodes.
func (w *world) vxlan() {
	w.apply(w.manifest("routing=vxlan"))
	w.rolledOut()
	w.smoke()
	w.suite(policySpecs, "1/8")
	if *shard == "" {
		w.step("restart", (*world).restart)
		w.step("kill", (*world).kill)
		w.step("reboot", (*world).reboot)
	}
	w.apply(w.manifest())
	w.rolledOut()
	w.smoke()
}

// install does what docs/install.md says.
func (w *world) install() { w.installWith() }

// installWith has values besides.
func (w *world) installWith(values ...string) {
	w.Helper()
	began := time.Now()
	w.apply(w.manifest(values...))
	w.rolledOut()
	w.must(w.Ready(w.ctx))
	w.Logf("installed, and the nodes ready, in %s", time.Since(began).Round(time.Millisecond))
	for _, verb := range []string{"status", "version"} { // both say which version, of which sources
		out := w.kubectl("-n", "kube-system", "exec", "ds/weir-agent", "--", "weir", verb)
		if !regexp.MustCompile(`(?i)weir \d+\.\d+\.\d+ \([0-9a-f]{12}`).MatchString(out) {
			w.Errorf("weir %s:\n%s", verb, out)
		}
	}
}
