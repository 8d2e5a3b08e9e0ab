package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if got != string(want) {
		t.Errorf("got\n%s\nwant (%s, -update rewrites it)\n%s", got, path, want)
	}
}

func healthy() api.Status {
	return api.Status{
		Node: "worker-1", Version: "0.1.0", Started: time.Now().Add(-3*time.Minute - 12*time.Second),
		Revision: api.Revision{Desired: 12, Applied: 12}, Epoch: 45, Endpoints: 5,
		Flows:  api.FlowStatus{Active: 3, Emitted: 1200},
		Errors: []api.ObjectError{}, Drops: map[string]uint64{"policy": 120, "spoofed source": 3, "vlan": 0},
		Hooks: []string{"to_network eth0 (tcx)"}, Warnings: []string{},
		HostRouting: &api.HostRoutingStatus{Path: api.PathBPF, Nodes: 2, Others: 2},
		Maps:        []api.MapUse{{Name: "flows", Used: 3, Most: 131072}, {Name: "facts", Used: 6000, Most: 65536}},
	}
}

func ill() api.Status {
	s := healthy()
	s.Degraded = true
	s.Revision.Desired, s.Flows.Lost, s.Flows.Suppressed = 13, 7, 4000
	s.Flows.LostBy = map[string]uint64{"flow_events": 5, "denial_events": 2}
	s.Flows.Log = &api.FlowLogStatus{Read: 1193, Records: 1195, Kept: 1195, Size: 65536, Spill: &api.FlowSpillStatus{Bytes: 123456, Lost: 5, Corrupt: 1, Missing: 8, Error: "no space left on device"}, Readers: []api.FlowReader{{Name: "flows", Open: 1, Taken: 90}, {Name: "hubble", Taken: 4, Lost: 3, Cut: 1}}}
	s.Errors = []api.ObjectError{
		{File: "web.yaml", Document: 2, Object: "NetworkPolicy shop/web", Field: "spec.ingress[0].from[1].ipBlock.cidr", Message: `"10.0.0.0/33" is no CIDR`},
		{Object: "NetworkPolicy shop/\x1b[2Jbig", Message: "312 port ranges, at most 256 fit: use fewer"},
	}
	s.HostRouting = &api.HostRoutingStatus{Path: api.PathStack, Others: 2, Why: []string{"ip rule 7 (from \x1b[2Jall)"}}
	s.Warnings = []string{"shop/db: a policy does not apply to a hostNetwork pod"}
	return s
}

func TestHostRoutingText(t *testing.T) {
	for want, s := range map[string]*api.HostRoutingStatus{
		"":                                nil,
		"by BPF to pods of 1 other node":  {Path: api.PathBPF, Nodes: 1, Others: 1},
		"by BPF to pods of 0 other nodes": {Path: api.PathBPF},
		"by BPF to all pods of 2 of 3 other nodes: see the warnings":             {Path: api.PathBPF, Nodes: 2, Others: 3, Why: []string{"a route"}},
		"by this node's stack to pods of other nodes (--bpf-host-routing=false)": {Path: api.PathStack, Others: 3, Why: []string{"--bpf-host-routing=false"}},
		"by this node's stack to pods of other nodes":                            {Path: api.PathStack, Others: 3},
	} {
		if got := hostRoutingText(s); got != want {
			t.Errorf("%+v: %q, want %q", s, got, want)
		}
	}
}

// answers of one node for all the listing verbs.
var answers = map[string]any{
	api.PathEndpoints: []api.Endpoint{
		{
			Number: 1, PodNamespace: "shop", PodName: "web-1", Identity: 73211, Labels: []string{"app=web"}, Addresses: []string{"10.0.0.2", "fd00::2"},
			HostIfName: "weir0123456789a", Ready: true, Egress: api.EndpointPolicy{Ruleset: 1}, Ingress: api.EndpointPolicy{Isolated: true, By: []string{"shop/web", "shop/deny"}, Ruleset: 2},
		},
		{Number: 12, PodNamespace: "shop", PodName: "db-0", Identity: 9, Addresses: []string{"10.0.0.3"}, HostIfName: "weirabcdef01234"},
	},
	api.PathIdentities: []api.Identity{
		{Number: 3, Kind: "reserved", Name: "world"},
		{Number: 73211, Kind: "labels", Name: "shop", Labels: []string{"app=web", "namespace:team=store"}, Pods: 2},
		{Number: 2147483649, Kind: "block", Name: "10.0.0.0/8"},
	},
	api.PathPolicies: []api.Policy{
		{Kind: "NetworkPolicy", Namespace: "shop", Name: "web", Types: []string{"Ingress"}, Selects: 1, Ingress: 2, Revision: 12, Enforced: api.AsWritten},
		{Kind: "NetworkPolicy", Namespace: "shop", Name: "deny", Types: []string{"Ingress", "Egress"}, Selects: 4, Revision: 3, Enforced: api.LastGood},
	},
	api.PathExplain: denied(),
}

func denied() api.Explanation {
	np := func(name string) api.Ref { return api.Ref{Kind: "NetworkPolicy", Namespace: "shop", Name: name} }
	return api.Explanation{
		Verdict: "DROPPED", Family: 4, Note: "IPv6 differs: FORWARDED", LastGood: []api.Ref{np("deny")},
		Egress: &api.Side{Verdict: "FORWARDED", Rules: []api.RuleRef{{Ref: np("web-out"), Index: 2}}, IsolatedBy: []api.Ref{np("web-out")}, NearMisses: []api.NearMiss{}},
		Ingress: &api.Side{Verdict: "DROPPED", Rules: []api.RuleRef{}, IsolatedBy: []api.Ref{np("db"), np("deny")}, NearMisses: []api.NearMiss{
			{RuleRef: api.RuleRef{Ref: np("db"), Index: 0}, Reason: "pod label app=web, not app=cart"},
		}},
	}
}

func TestTables(t *testing.T) {
	a := startAgent(t, answers)
	for name, args := range map[string]string{
		"endpoints": "endpoints", "identities": "identities", "policies": "policy list",
		"explain": "policy explain --from shop/web-1 --to shop/db-0 --port 6379/tcp",
	} {
		r := a.weir(t, strings.Fields(args)...)
		if r.status != exitDone || r.err != "" {
			t.Errorf("weir %s: status %d, err %q", args, r.status, r.err)
		}
		golden(t, name, r.out)
	}
}

// JSON is the agent's answer, nothing added or lost.
func TestJSON(t *testing.T) {
	all := map[string]any{api.PathStatus: ill()}
	for path, answer := range answers {
		all[path] = answer
	}
	a := startAgent(t, all)
	for path, args := range map[string]string{
		api.PathStatus: "status", api.PathEndpoints: "endpoints", api.PathIdentities: "identities", api.PathPolicies: "policy list",
		api.PathExplain: "policy explain --from shop/web-1 --to 10.0.0.3 --port 6379/tcp",
	} {
		r := a.weir(t, append(strings.Fields(args), "-o", "json")...)
		var got, want any
		must(t, json.Unmarshal([]byte(r.out), &got))
		text, err := json.Marshal(all[path])
		must(t, err)
		must(t, json.Unmarshal(text, &want))
		if r.status != exitDone || !reflect.DeepEqual(got, want) {
			t.Errorf("weir %s: status %d\n%s\nwant %s", args, r.status, r.out, text)
		}
	}
}

// Empty lists are said in words, and in JSON are lists.
func TestNothing(t *testing.T) {
	a := startAgent(t, map[string]any{api.PathEndpoints: nil, api.PathPolicies: []api.Policy{}})
	for args, want := range map[string]string{
		"endpoints": "No pod is attached on this node.\n", "endpoints -o json": "[]\n",
		"policy list": "No policy is enforced: every pod may talk to every other.\n", "policy list -o json": "[]\n",
	} {
		if r := a.weir(t, strings.Fields(args)...); r.status != exitDone || r.out != want {
			t.Errorf("weir %s: status %d, %q, want %q", args, r.status, r.out, want)
		}
	}
}

func TestExplainAllowed(t *testing.T) {
	a := startAgent(t, map[string]any{api.PathExplain: api.Explanation{
		Verdict: "FORWARDED", Family: 6,
		Ingress: &api.Side{Verdict: "FORWARDED", Rules: []api.RuleRef{{Ref: api.Ref{Kind: "node"}}}},
	}})
	r := a.weir(t, "policy", "explain", "--from", "fd00::1", "--to", "shop/db-0", "--port", "80/tcp", "--family", "6")
	golden(t, "explain-allowed", r.out)
	if want := "/v1/explain?family=6&from=fd00%3A%3A1&port=80%2Ftcp&to=shop%2Fdb-0"; a.asked()[0] != want {
		t.Errorf("asked %s, want %s", a.asked()[0], want)
	}
}

func TestStatus(t *testing.T) {
	for name, s := range map[string]api.Status{"status": healthy(), "status-ill": ill()} {
		r := startAgent(t, map[string]any{api.PathStatus: s}).weir(t, "status")
		if r.status != exitDone || r.err != "" {
			t.Errorf("%s: status %d, err %q", name, r.status, r.err)
		}
		golden(t, name, r.out)
	}
}

// A node whose runtime does not hand it pods is not ready: its probe fails, and says why.
func TestStatusUnready(t *testing.T) {
	s := healthy()
	s.Unready = []string{"no network configuration: the Node has no spec.podCIDRs"}
	for _, args := range [][]string{{"status"}, {"status", "-o", "json"}} {
		r := startAgent(t, map[string]any{api.PathStatus: s}).weir(t, args...)
		want := "weir status: not ready: no network configuration: the Node has no spec.podCIDRs\n"
		if r.status != exitFailed || r.err != want || !strings.Contains(r.out, "worker-1") {
			t.Errorf("weir %v: status %d, err %q, want %q, out %q", args, r.status, r.err, want, r.out)
		}
	}
}

func TestStatusWait(t *testing.T) {
	a := startAgent(t, map[string]any{api.PathStatus: healthy()})
	if r := a.weir(t, "status", "--wait", "--timeout", "3s"); r.status != exitDone || a.asked()[0] != api.PathStatus+"?wait=3s" {
		t.Errorf("status %d, err %q, asked %q", r.status, r.err, a.asked())
	}
	a = startAgent(t, map[string]any{api.PathStatus: ill()})
	r := a.weir(t, "status", "--wait", "-o", "json")
	want := `weir status: web.yaml document 2: NetworkPolicy shop/web: spec.ingress[0].from[1].ipBlock.cidr: "10.0.0.0/33" is no CIDR` + "\n"
	if r.status != exitFailed || r.err != want || !json.Valid([]byte(r.out)) {
		t.Errorf("status %d, err %q, want %q, out %s", r.status, r.err, want, r.out)
	}
	a = startAgent(t, map[string]any{api.PathStatus: &api.Error{Message: "not enforced within 1s"}})
	if r := a.weir(t, "status", "--wait", "--timeout", "1s"); r.status != exitFailed || !strings.HasPrefix(r.err, "weir status: not enforced within 1s") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("status %d, err %q", r.status, r.err)
	}
}

// On a terminal: colours, and rows that fit.
func TestOnATerminal(t *testing.T) {
	var out bytes.Buffer
	a := &app{streams: streams{out: &out}, style: format.Style{Colour: true}, width: 60, output: outputTable}
	must(t, a.endpointTable(answers[api.PathEndpoints].([]api.Endpoint)))
	for _, line := range strings.Split(out.String(), "\n")[1:] {
		if n := len([]rune(line)); n > 80 {
			t.Errorf("%d characters: %s", n, line)
		}
	}
	if !strings.HasPrefix(out.String(), "\x1b[1m") || !strings.Contains(out.String(), "…") {
		t.Errorf("no colour or nothing cut:\n%s", out.String())
	}
	out.Reset()
	must(t, a.writeStatus(ill()))
	if !strings.Contains(out.String(), "\x1b[31mweb.yaml document 2") {
		t.Errorf("errors are not red:\n%q", out.String())
	}
}

func TestNotAllIsEnforcedOnUnprotectedPods(t *testing.T) {
	s := healthy()
	if got := next(s); !strings.HasPrefix(got, "All is enforced.") {
		t.Error(got)
	}
	s.Warnings = []string{"API server x does not answer"}
	if got := next(s); !strings.HasPrefix(got, "All that this agent knows is enforced") {
		t.Error(got)
	}
	s.Unprotected = 1
	if got := next(s); !strings.HasPrefix(got, "Restart the pods that the warning names") {
		t.Error(got)
	}
}
