// Package conformance runs cyclonus' test cases on a node of ours: each step's objects go in
// as files of the agent's directory, its pods by the CNI plugin, its questions as packets of
// the pods, by TCP, UDP and SCTP over both families. It is a module of its own: cyclonus
// needs much that the product does not.
package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// failures is how many cases may fail before the rest is left out: failing takes its time.
const failures = 8

func TestCyclonus(t *testing.T) {
	r, ctx := startRig(t)
	z := r.pods[types.NamespacedName{Namespace: "z", Name: "c"}]
	cases := casesAround(netip.MustParseAddr(z.Addr4))
	six := sixFold(casesAround(netip.MustParseAddr(z.Addr6)))
	steps := 0
	for _, c := range cases {
		steps += len(c.steps)
	}
	if len(cases) != cyclonusCases || steps != cyclonusSteps || len(six) == 0 {
		t.Fatalf("cyclonus generates %d cases of %d steps, %d with blocks: want %d of %d, and some", len(cases), steps, len(six), cyclonusCases, cyclonusSteps)
	}
	log := follow(r.agent)
	failed := 0
	for _, c := range append(cases, six...) {
		if failed == failures {
			t.Fatalf("%d cases failed: the rest is left out", failed)
		}
		if !t.Run(c.name, func(t *testing.T) { runCase(ctx, t, r, log, c) }) {
			failed++
		}
	}
	if err := log.end(); err != nil {
		t.Error(err)
	}
	reportRecords(t, log)
	if failed == 0 && (r.denied == 0 || r.denied == r.asked || log.checked == 0) {
		t.Errorf("%d of %d questions denied, %d flow records of it: too much alike to tell anything", r.denied, r.asked, log.checked)
	}
	t.Attr("cases", fmt.Sprintf("%d of cyclonus (%d steps), %d again with blocks of IPv6", len(cases), steps, len(six)))
	t.Attr("questions", fmt.Sprintf("%d, %d denied; %d flow records name the policies that denied; %d waves repeated", r.asked, r.denied, log.checked, r.repeated))
}

// startRig starts a node with the pods that every case has.
func startRig(t *testing.T) (*rig, context.Context) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes network namespaces and loads BPF programs")
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "weir-agent")); err != nil {
		t.Fatalf("run `make build` first: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	r, err := newRig(ctx, "weirt-"+strconv.FormatInt(time.Now().UnixNano()&0xffffff, 16), bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log ends:\n%s", r.node.LogTail())
		}
		cancel()
		if err := r.down(); err != nil {
			t.Error(err)
		}
	})
	c := newCluster()
	if err := r.enforce(ctx, c); err != nil {
		t.Fatalf("make the first pods: %v", err)
	}
	requireSplit(t, c)
	return r, ctx
}

// requireSplit makes sure that cyclonus' block and its exception tell pods apart.
func requireSplit(t *testing.T, c *cluster) {
	t.Helper()
	for family, bits := range []int{28, 124} {
		excepted := netip.PrefixFrom(c.address(types.NamespacedName{Namespace: "z", Name: "c"}, family), bits).Masked()
		in := 0
		for _, name := range c.podNames() {
			if excepted.Contains(c.address(name, family)) {
				in++
			}
		}
		if in == len(c.Pods) {
			t.Fatalf("all %d pods are in %s", in, excepted)
		}
	}
}

// runCase goes from whatever the last case left to each of the steps in turn.
func runCase(ctx context.Context, t *testing.T, r *rig, log *records, tc testCase) {
	c := newCluster()
	for i, step := range tc.steps {
		for _, a := range step.Actions {
			if err := c.apply(a); err != nil {
				t.Fatalf("step %d: %v", i+1, err)
			}
		}
		if err := r.enforce(ctx, c); err != nil {
			t.Fatalf("step %d: not enforced: %v\n%s", i+1, err, c.manifests())
		}
		expected := c.expectations()
		log.expect(r.status.Epoch, expected)
		w, err := r.probe(ctx, expected)
		if w == nil {
			t.Fatalf("step %d: %v", i+1, err)
		}
		text := w.disagreements()
		if err != nil {
			text = err.Error() + "\n" + text
		}
		if text != "" {
			t.Errorf("step %d: %s\n%s", i+1, text, c.manifests())
		}
	}
}

func reportRecords(t *testing.T, log *records) {
	problems := log.found()
	if n := len(problems); n > 0 {
		t.Errorf("%d flow records are wrong:\n%s", n, strings.Join(problems[:min(n, 10)], "\n"))
	}
}
