// Package node tests a whole node through its binaries: manifests go in by the directory,
// pods by the CNI plugin, packets from within the namespaces; verdicts, flows and exit
// statuses come out. Topology: see package lab.
package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// Ports that every pod of these tests serves, TCP and UDP.
const (
	portHTTP  = 8080 // named http
	portOther = 9000
	portLow   = 7000 // of a range
	portHigh  = 7010
	portPast  = 7011
)

// env is a node with its agent, for one test.
type env struct {
	*lab.Node
	t     *testing.T
	ctx   context.Context
	pods  map[string]*lab.Pod // by namespace/name
	ports int                 // of talks
}

// newEnv builds a node, puts the manifests in files into its directory (name, text, ...),
// and starts the agent. All goes with the test.
func newEnv(t *testing.T, files ...string) *env {
	t.Helper()
	return newEnvWith(t, lab.Options{}, files...)
}

func newEnvWith(t *testing.T, o lab.Options, files ...string) *env {
	t.Helper()
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
	run := fmt.Sprintf("weirt-%x", time.Now().UnixNano()&0xffffff)
	o.Prefix, o.Run, o.Bin = run+"-", "/run/"+run, bin
	n, err := lab.Up(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	e := &env{Node: n, t: t, ctx: ctx, pods: map[string]*lab.Pod{}}
	t.Cleanup(func() { e.close(cancel) })
	for i := 0; i < len(files); i += 2 {
		e.write(files[i], files[i+1])
	}
	if err := n.StartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *env) close(cancel func()) {
	if e.t.Failed() {
		e.t.Logf("the agent's log ends:\n%s", e.LogTail())
		e.t.Logf("weir status:\n%s", e.Weir(e.ctx, "status").Stdout)
		e.t.Logf("weir flows:\n%s", e.Weir(e.ctx, "flows", "--last", "30").Stdout)
	}
	cancel()
	if err := e.Down(); err != nil {
		e.t.Error(err)
	}
}

func (e *env) must(what string, err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatalf("%s: %v", what, err)
	}
}

func (e *env) write(file, text string) {
	e.t.Helper()
	e.must("write "+file, e.Write(file, text))
}

// apply writes a file and waits until it is enforced.
func (e *env) apply(file, text string) {
	e.t.Helper()
	e.must("apply "+file, e.Apply(e.ctx, file, text))
}

// add attaches pods (namespace/name) whose manifests are there; they serve their ports.
func (e *env) add(names ...string) {
	e.t.Helper()
	for _, name := range names {
		namespace, pod, _ := strings.Cut(name, "/")
		p, err := e.AddPod(e.ctx, namespace, pod)
		e.must("add", err)
		e.must("serve", p.Serve(e.ctx, portHTTP, portOther, portLow, portHigh, portPast))
		e.pods[name] = p
	}
}

// host finds a pod by namespace/name, or "node" or "outside".
func (e *env) host(name string) *lab.Host {
	e.t.Helper()
	switch name {
	case "node":
		return &e.Host
	case "outside":
		return e.Outside
	}
	p := e.pods[name]
	if p == nil {
		e.t.Fatalf("no pod %s", name)
	}
	return &p.Host
}

// probe is one try and what has to come of it.
type probe struct {
	from, to string
	protocol string
	port     int
	want     lab.Answer
}

func (p probe) String() string {
	return fmt.Sprintf("%s -> %s %d/%s", p.from, p.to, p.port, p.protocol)
}

const (
	yes = lab.Answered
	no  = lab.Silent
)

var families = []int{4, 6}

// check tries each probe in both families at the same time.
func (e *env) check(probes ...probe) {
	e.t.Helper()
	type outcome struct {
		what string
		got  lab.Answer
		want lab.Answer
		err  error
	}
	outcomes := make(chan outcome)
	for _, p := range probes {
		from, to := e.host(p.from), e.host(p.to)
		for _, family := range families {
			go func() {
				got, err := from.Probe(p.protocol, to.Addr(family), p.port)
				outcomes <- outcome{fmt.Sprintf("IPv%d %s", family, p), got, p.want, err}
			}()
		}
	}
	for range len(probes) * len(families) {
		o := <-outcomes
		if o.err != nil {
			e.t.Errorf("%s: %v", o.what, o.err)
		} else if o.got != o.want {
			e.t.Errorf("%s: %v, want %v", o.what, o.got, o.want)
		}
	}
}

// eventually waits for a condition that the datapath or the agent brings about by itself.
func (e *env) eventually(what string, limit time.Duration, ok func() bool) {
	e.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	e.t.Fatalf("not within %v: %s", limit, what)
}

func (e *env) status() api.Status {
	e.t.Helper()
	r := e.Weir(e.ctx, "status", "-o", "json")
	var s api.Status
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil || r.Status != 0 {
		e.t.Fatalf("weir status -o json: exit status %d, %v: %s%s", r.Status, err, r.Stdout, r.Stderr)
	}
	return s
}
