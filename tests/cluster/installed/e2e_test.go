package installed

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/cluster/control"
)

var (
	focus    = flag.String("focus", "", "of Kubernetes' own tests, those whose names match this")
	shard    = flag.String("shard", "", "N/M: of them the Nth of M parts")
	together = flag.Int("together", 3, "how many of them run at the same time: they mostly wait")
)

// upstream's specs of NetworkPolicy, but for those that open SCTP sockets: CI's kernel has none.
const (
	policySpecs = `\[Feature:NetworkPolicy\]|\bNetpol\b|NetworkPolicy`
	sctpSpecs   = `Feature:SCTPConnectivity`
)

// spec is what a report says of one.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
}

// suite is a run of upstream's tests.
type suite struct {
	*world
	dir string
}

func (s suite) start(name, focus string, more ...string) *control.Process {
	s.Helper()
	bin := os.Getenv("WEIR_CLUSTER_BIN")
	args := append([]string{
		"--kubeconfig=" + s.Kubeconfig(s.Addr(), ""), "--provider=skeleton", fmt.Sprintf("--num-nodes=%d", len(s.Nodes)),
		"--kubectl-path=" + filepath.Join(bin, "kubectl"), "--allowed-not-ready-nodes=0", "--system-pods-startup-timeout=1m",
		"--dump-logs-on-failure=false", "--ginkgo.no-color", "--ginkgo.timeout=90m", "--ginkgo.v",
		"--ginkgo.focus=" + focus, "--ginkgo.skip=" + sctpSpecs, "--ginkgo.json-report=" + s.path(name+".json"),
	}, more...)
	cmd := control.In(s.Host.Netns, filepath.Join(bin, "e2e.test"), args...)
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "KUBE_TEST_REPO_LIST="+s.path("registries.yaml"))
	p, err := control.Spawn(s.path(name+".log"), cmd)
	s.must(err)
	return p
}

func (s suite) path(name string) string { return filepath.Join(s.dir, name) }

// specs of a report that were not left out.
func (s suite) specs(name string) (out []spec) {
	s.Helper()
	text, err := os.ReadFile(s.path(name + ".json"))
	if err != nil {
		s.Fatalf("the suite left no report: %v\n%s", err, control.Tail(s.path(name+".log")))
	}
	var reports []struct{ SpecReports []spec }
	s.must(json.Unmarshal(text, &reports))
	for _, r := range reports {
		for _, sp := range r.SpecReports {
			if sp.LeafNodeType == "It" && sp.State != "skipped" && sp.State != "pending" || sp.State == "failed" {
				out = append(out, sp)
			}
		}
	}
	return out
}

// e2e: Kubernetes' own tests of NetworkPolicy.
func (w *world) e2e() {
	which := policySpecs
	if *focus != "" {
		which = *focus
	}
	w.suite(which, *shard)
}

// suite runs a part of those that match.
func (w *world) suite(which, shard string) {
	w.Helper()
	s := suite{w, w.TempDir()}
	// The test image is the node's own; nothing is pulled.
	s.must(os.WriteFile(s.path("registries.yaml"), []byte("promoterE2eRegistry: localhost\ngcRegistry: localhost\ndockerLibraryRegistry: localhost\n"), 0o600))
	s.start("list", which, "--ginkgo.dry-run").Wait()
	specs := s.specs("list")
	if which == policySpecs && len(specs) < 47 {
		w.Errorf("the suite has %d specs, want 47 at least", len(specs))
	}
	specs = part(w, specs, shard)
	shares := make([][]string, *together)
	for i, sp := range specs {
		shares[i%*together] = append(shares[i%*together], regexp.QuoteMeta(sp.name())+"$")
	}
	var wg sync.WaitGroup
	for i, share := range shares {
		if len(share) == 0 {
			continue
		}
		name := fmt.Sprint("suite", i)
		p := s.start(name, strings.Join(share, "|"))
		stop := func() { p.Stop(unix.SIGKILL) }
		w.Cleanup(stop)
		context.AfterFunc(w.ctx, stop)
		wg.Go(p.Wait)
	}
	wg.Wait()
	ran := map[string]bool{}
	for i := range shares {
		if len(shares[i]) == 0 {
			continue
		}
		name := fmt.Sprint("suite", i)
		for _, sp := range s.specs(name) {
			ran[sp.name()] = true
			w.step(sp.name(), func(w *world) {
				if sp.State != "passed" {
					w.Errorf("%s after %s: %s", sp.State, sp.RunTime.Round(time.Second), sp.Failure.Message)
				}
			})
		}
		if w.Failed() {
			w.keepLog(s.path(name + ".log"))
		}
	}
	for _, sp := range specs {
		if !ran[sp.name()] {
			w.Errorf("did not run: %s", sp.name())
		}
	}
}

// part of the specs, the same in every run.
func part(w *world, specs []spec, shard string) (out []spec) {
	w.Helper()
	if shard == "" {
		return specs
	}
	var n, m int
	if _, err := fmt.Sscanf(shard, "%d/%d", &n, &m); err != nil || n < 1 || n > m {
		w.Fatalf("-shard %q is no N/M", shard)
	}
	slices.SortFunc(specs, func(a, b spec) int { return strings.Compare(a.name(), b.name()) })
	for i := n - 1; i < len(specs); i += m {
		out = append(out, specs[i])
	}
	return out
}

// keepLog saves a log where it outlives the test.
func (w *world) keepLog(path string) {
	w.Helper()
	text, err := os.ReadFile(path)
	w.must(err)
	to, err := os.CreateTemp("", "weir-e2e-*.log")
	w.must(err)
	_, err = to.Write(text)
	w.must(err)
	w.must(to.Close())
	w.Logf("what the suite printed is in %s", to.Name())
}
