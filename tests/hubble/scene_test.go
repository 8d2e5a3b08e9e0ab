package hubble

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

const (
	portHTTP   = 8080
	portOther  = 9000
	portClosed = 9999 // nobody listens there
)

// manifests are a shop whose db lets in web, by one port, and a namespace of strangers.
const manifests = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: store}}
---
apiVersion: v1
kind: Pod
metadata:
  {name: web-5d9f-x1, namespace: shop, labels: {app: web, tier: front, pod-template-hash: 5d9f}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d9f, uid: u1, controller: true}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, uid: u2, controller: true}]}
---
apiVersion: v1
kind: Pod
metadata: {name: probe, namespace: other, labels: {app: probe}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}]
`

// scene is one node with traffic, for all tests.
type scene struct {
	*lab.Node
	t      *testing.T
	ctx    context.Context
	hubble string // the stock client
	run    string
	pods   map[string]*lab.Pod
}

func newScene(t *testing.T, flags ...string) *scene {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes network namespaces and loads BPF programs")
	}
	bin, err := filepath.Abs("../../bin")
	must(t, "bin", err)
	if _, err := os.Stat(filepath.Join(bin, "weir-agent")); err != nil {
		t.Fatalf("run `make build` first: %v", err)
	}
	run := fmt.Sprintf("weirt-hb%x", time.Now().UnixNano()&0xffff)
	n, err := lab.Up(lab.Options{Prefix: run + "-", Run: "/run/" + run, Bin: bin, Name: "worker-1", Agent: flags})
	must(t, "build the node", err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	s := &scene{Node: n, t: t, ctx: ctx, hubble: client(t, bin), run: "/run/" + run, pods: map[string]*lab.Pod{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log ends:\n%s", n.LogTail())
		}
		cancel()
		must(t, "take the node down", n.Down())
	})
	must(t, "write", n.Write("all.yaml", manifests))
	must(t, "start", n.StartAgent(ctx))
	for _, name := range []string{"shop/web-5d9f-x1", "shop/db-0", "other/probe"} {
		namespace, pod, _ := strings.Cut(name, "/")
		p, err := n.AddPod(ctx, namespace, pod)
		must(t, "add", err)
		must(t, "serve", p.Serve(ctx, portHTTP, portOther))
		s.pods[name] = p
	}
	return s
}

// client builds Hubble's command-line client.
func client(t *testing.T, bin string) string {
	t.Helper()
	path := filepath.Join(bin, "hubble")
	build(t, path, "github.com/cilium/cilium/hubble")
	return path
}

// build one of Cilium's commands; Go keeps what it built.
func build(t *testing.T, path, command string) {
	t.Helper()
	out, err := exec.Command("go", "build", "-o", path, command).CombinedOutput()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", command, err, out)
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// talk makes the flows that tests look for; those of web to db are by both families.
func (s *scene) talk() {
	s.t.Helper()
	web, db, probe := s.pods["shop/web-5d9f-x1"], s.pods["shop/db-0"], s.pods["other/probe"]
	for _, x := range []struct {
		from     *lab.Pod
		protocol string
		to       string
		port     int
		want     lab.Answer
	}{
		{web, "tcp", db.Addr4, portHTTP, lab.Answered},
		{web, "tcp", db.Addr6, portHTTP, lab.Answered},
		{web, "tcp", db.Addr4, portOther, lab.Silent},
		{probe, "tcp", db.Addr4, portHTTP, lab.Silent},
		{probe, "udp", web.Addr4, portHTTP, lab.Answered},
		{web, "icmp", s.Outside.Addr4, 0, lab.Answered},
	} {
		got, err := x.from.Probe(x.protocol, x.to, x.port)
		must(s.t, "probe", err)
		if got != x.want {
			s.t.Fatalf("%s %s %s:%d: %v, want %v", x.from.Name, x.protocol, x.to, x.port, got, x.want)
		}
	}
	s.eventually("a record of the last", func() bool { return len(s.observe("--protocol", "icmp", "--all")) > 0 })
}

func (s *scene) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (s *scene) socket() string { return "unix://" + s.StateDir() + "/hubble.sock" }

// client runs hubble on the socket.
func (s *scene) client(args ...string) (stdout, stderr string, err error) {
	return output(exec.CommandContext(s.ctx, s.hubble, append([]string{"--config", "", "--server", s.socket()}, args...)...))
}

func output(cmd *exec.Cmd) (stdout, stderr string, err error) {
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	err = cmd.Run()
	return out.String(), failed.String(), err
}

// says is client's standard output; it must do without errors.
func (s *scene) says(args ...string) string {
	s.t.Helper()
	out, failed, err := s.client(args...)
	if err != nil || failed != "" {
		s.t.Errorf("hubble %s: %v\n%s", strings.Join(args, " "), err, failed)
	}
	return out
}

// observe are the different flows of `hubble observe -o jsonpb`, as words.
func (s *scene) observe(args ...string) []string {
	s.t.Helper()
	return s.words(s.says(append([]string{"observe", "-o", "jsonpb"}, args...)...))
}

func (s *scene) words(out string) (flows []string) {
	s.t.Helper()
	for line := range strings.Lines(out) {
		var m struct {
			Flow struct {
				Verdict string
				IP      struct{ Source, Destination string }
				L4      map[string]struct {
					DestinationPort int `json:"destination_port"`
				} `json:"l4"`
				Source, Destination struct {
					PodName string `json:"pod_name"`
				}
			}
		}
		must(s.t, "parse "+line, json.Unmarshal([]byte(line), &m))
		f := m.Flow
		name := func(pod, addr string) string {
			if pod == "" {
				return addr
			}
			return strings.TrimSuffix(pod, "-5d9f-x1")
		}
		text := name(f.Source.PodName, f.IP.Source) + " " + name(f.Destination.PodName, f.IP.Destination)
		for protocol, l4 := range f.L4 {
			text += " " + strings.ToLower(protocol)
			if l4.DestinationPort != 0 {
				text += fmt.Sprint(" ", l4.DestinationPort)
			}
		}
		if strings.Contains(f.IP.Source, ":") {
			text += " v6"
		}
		if f.Verdict == "DROPPED" {
			text += " dropped"
		}
		flows = append(flows, text)
	}
	slices.Sort(flows)
	return slices.Compact(flows)
}
