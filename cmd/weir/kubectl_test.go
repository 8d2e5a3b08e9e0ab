package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeKubectl puts a kubectl into PATH: two nodes' agents and one pod that is not running.
// What it is called with is in the file it returns; an answer is a file POD.out, POD.err
// its complaint.
func fakeKubectl(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	pods := `{"items":[
{"metadata":{"name":"weir-b"},"spec":{"nodeName":"n2"},"status":{"phase":"Running"}},
{"metadata":{"name":"weir-a"},"spec":{"nodeName":"n1"},"status":{"phase":"Running"}},
{"metadata":{"name":"weir-c"},"spec":{"nodeName":"n3"},"status":{"phase":"Pending"}}]}`
	must(t, os.WriteFile(filepath.Join(dir, "pods"), []byte(pods), 0o600))
	script := `#!/bin/sh
echo "$*" >>` + dir + `/calls
for a; do case $a in
	get) exec cat ` + dir + `/pods;;
	weir-?) pod=$a;;
esac; done
[ ! -e ` + dir + `/$pod.out ] || cat ` + dir + `/$pod.out
[ ! -e ` + dir + `/$pod.err ] || { cat ` + dir + `/$pod.err >&2; exit 1; }
`
	must(t, os.WriteFile(filepath.Join(dir, "kubectl"), []byte(script), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

// pending is what is said of the third node.
const pending = "n3: nothing of this node: its agent's pod weir-c is Pending\n"

func (r result) String() string {
	return fmt.Sprintf("status %d, out %q, err %q", r.status, r.out, r.err)
}

func plugged(t *testing.T, args string) result {
	t.Helper()
	var out, errs strings.Builder
	status := runPlugin(t.Context(), strings.Fields(args), streams{out: &out, err: &errs})
	return result{status: status, out: out.String(), err: errs.String()}
}

func calls(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "calls")))
	return string(text)
}

func TestPluginName(t *testing.T) {
	for name, want := range map[string]bool{"/usr/local/bin/kubectl-weir": true, "kubectl-weir": true, "weir": false, "/kubectl-weir/weir": false} {
		if isPlugin(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestPluginAsksEveryNode(t *testing.T) {
	dir := fakeKubectl(t)
	must(t, os.WriteFile(filepath.Join(dir, "weir-a.out"), []byte("one\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "weir-b.out"), []byte("two\n"), 0o600))
	if r := plugged(t, "policy list"); r.status != exitDone || r.err != pending || r.out != "=== n1\none\n\n=== n2\ntwo\n\n" {
		t.Error(r)
	}
	if got := calls(t, dir); !strings.Contains(got, "get pods --namespace=kube-system --selector=app.kubernetes.io/name=weir --output=json\n") ||
		!strings.Contains(got, "exec --namespace=kube-system weir-a --container=agent -- weir policy list\n") || strings.Contains(got, "weir-c") {
		t.Errorf("called:\n%s", got)
	}
	if r := plugged(t, "--context=there -n net --kubeconfig /k status --node n2"); r.status != exitDone || r.out != "two\n" {
		t.Error(r)
	}
	if got := calls(t, dir); !strings.Contains(got, "--context=there --kubeconfig=/k exec --namespace=net weir-b --container=agent -- weir status\n") || strings.Contains(got, "weir-a") {
		t.Errorf("called:\n%s", got)
	}
}

func TestPluginJoinsJSON(t *testing.T) {
	dir := fakeKubectl(t)
	must(t, os.WriteFile(filepath.Join(dir, "weir-a.out"), []byte(`{"epoch": 1}`), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "weir-b.out"), []byte(`{"epoch": 2}`), 0o600))
	r := plugged(t, "status -o json")
	var got map[string]struct{ Epoch int }
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.status != exitDone || got["n1"].Epoch != 1 || got["n2"].Epoch != 2 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestPluginMergesFlows(t *testing.T) {
	dir := fakeKubectl(t)
	at := func(node, second string) string {
		return strings.ReplaceAll(strings.ReplaceAll(record(t), "worker-1", node), "12:00:00.5Z", "12:00:"+second+"Z") + "\n"
	}
	must(t, os.WriteFile(filepath.Join(dir, "weir-a.out"), []byte(at("n1", "01")+at("n1", "04")), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "weir-b.out"), []byte(at("n2", "02")+at("n2", "03")), 0o600))
	for args, want := range map[string]string{
		"flows":                        "n1 n2 n2 n1",
		"flows --last 3":               "n2 n2 n1",
		"flows --since 5m":             "n1 n2 n2 n1",
		"flows --since=5m --last=1":    "n1",
		"flows --verdict dropped -o j": "",
		"flows --verdict":              "",
		"flows --since yesterday":      "",
		"flows --top everything":       "",
	} {
		r := plugged(t, args)
		var nodes []string
		for line := range strings.Lines(r.out) {
			nodes = append(nodes, strings.Fields(line)[0])
		}
		if got := strings.Join(nodes, " "); got != want || (r.status == exitDone) != (want != "") {
			t.Errorf("%s: %v", args, r)
		}
	}
	_ = calls(t, dir)
	r := plugged(t, "flows -f --pod shop/db -o json")
	if r.status != exitDone || strings.Count(r.out, "\n") != 4 || !json.Valid([]byte(strings.Split(r.out, "\n")[0])) {
		t.Error(r)
	}
	if got := calls(t, dir); !strings.Contains(got, "weir-a --container=agent -- weir flows -f --pod shop/db --output=json\n") {
		t.Errorf("called:\n%s", got)
	}
	if r := plugged(t, "flows -o wide"); r.status != exitDone || strings.Count(r.out, "\n") != 6 || !strings.HasPrefix(r.out, "NODE ") || !strings.Contains(r.out, "\nn2 ") {
		t.Error(r)
	}
	_ = calls(t, dir)
	if r := plugged(t, "flows --top dst --until 1h --not --port 80"); r.status != exitDone || strings.Join(strings.Fields(strings.Split(r.out, "\n")[1]), " ") != `shop/db-0\x1b[2J 4 4 4 0 B 100.0` {
		t.Error(r)
	}
	if got := calls(t, dir); !strings.Contains(got, "-- weir flows --not --port 80 --until=1h0m0s --since=876000h0m0s --output=json\n") {
		t.Errorf("called:\n%s", got)
	}
}

// Followed, records of several nodes come in the order of their times; a node that goes is
// named at once, and does not end the others.
func TestPluginFollowsSeveralNodes(t *testing.T) {
	dir := fakeKubectl(t)
	at := func(node, second string) string {
		return strings.ReplaceAll(strings.ReplaceAll(record(t), "worker-1", node), "12:00:00.5Z", "12:00:"+second+"Z") + "\n"
	}
	must(t, os.WriteFile(filepath.Join(dir, "weir-a.out"), []byte(at("n1", "01")+at("n1", "04")), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "weir-b.out"), []byte(at("n2", "02")+at("n2", "03")), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "weir-b.err"), []byte("error: unable to upgrade connection: \x1b[2J\n"), 0o600))
	r := plugged(t, "flows -f")
	var nodes []string
	for line := range strings.Lines(r.out) {
		nodes = append(nodes, strings.Fields(line)[0])
	}
	if got := strings.Join(nodes, " "); got != "n1 n2 n2 n1" || r.status != exitFailed ||
		r.err != pending+`n2: error: unable to upgrade connection: \x1b[2J`+"\nkubectl weir: flows of node n2 are missing: exit status 1\n" {
		t.Error(r)
	}
}

// A node that does not answer is named, and does not hide the others.
func TestPluginNamesTheNodeThatFails(t *testing.T) {
	dir := fakeKubectl(t)
	must(t, os.WriteFile(filepath.Join(dir, "weir-a.out"), []byte("one\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "weir-b.err"), []byte("weir status: no agent\ncommand terminated with exit code 1\n"), 0o600))
	if r := plugged(t, "status"); r.status != exitFailed || r.out != "=== n1\none\n\n" || r.err != pending+"n2: weir status: no agent\n" {
		t.Error(r)
	}
	for args, want := range map[string]string{
		"status --node n3":   `no pod of Weir runs on node "n3"`,
		"status --node":      "--node: missing value",
		"flows -o yaml":      `--output: "yaml" is not one of compact, wide, json, dict`,
		"status --node=none": `no pod of Weir runs on node "none"`,
	} {
		if r := plugged(t, args); r.status == exitDone || r.out != "" || !strings.Contains(r.err, "kubectl weir: "+want) {
			t.Errorf("%s: %v", args, r)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "pods"), []byte(`{"items":[]}`), 0o600))
	if r := plugged(t, "status"); r.status != exitFailed || !strings.Contains(r.err, "no pod of Weir runs in namespace kube-system") {
		t.Error(r)
	}
	t.Setenv("PATH", t.TempDir())
	if r := plugged(t, "status"); r.status != exitFailed || !strings.Contains(r.err, "kubectl") {
		t.Error(r)
	}
	if r := plugged(t, ""); r.status != exitDone || !strings.Contains(r.out, "--node NODE") {
		t.Error(r)
	}
}
