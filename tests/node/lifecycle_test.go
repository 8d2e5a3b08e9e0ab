package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// TestAddWaitsForItsPod: the runtime may be faster than the source.
func TestAddWaitsForItsPod(t *testing.T) {
	e := newEnv(t, "deny.yaml", policy("ns", "deny", denyAll))
	type result struct {
		p   *lab.Pod
		err error
	}
	added := make(chan result)
	go func() {
		p, err := e.AddPod(e.ctx, "ns", "late")
		added <- result{p, err}
	}()
	select {
	case r := <-added:
		t.Fatalf("ADD came back before its pod was there: %v", r.err)
	case <-time.After(700 * time.Millisecond):
	}
	e.write("late.yaml", pod("ns", "late"))
	r := <-added
	e.must("add", r.err)
	// It never was open: its policy is enforced when ADD returns.
	e.must("serve", r.p.Serve(e.ctx, portHTTP))
	for _, family := range families {
		got, err := e.Outside.Probe("tcp", r.p.Addr(family), portHTTP)
		e.must("probe", err)
		if got != no {
			t.Errorf("IPv%d: outside reaches the new pod: %v", family, got)
		}
	}
}

// TestNewPodCanSendAtOnce: when ADD returns, both ends of the veth have their carrier; a
// first packet must not be lost to an interface that is still coming up.
func TestNewPodCanSendAtOnce(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	// The kernel tells a carrier by a worker, behind whoever else configures interfaces.
	busy, stop := context.WithCancel(e.ctx)
	defer stop()
	for i := range 2 {
		go func() {
			for busy.Err() == nil {
				_, _ = e.Outside.Run(e.ctx, "ip", "link", "add", fmt.Sprintf("x%d", i), "type", "veth", "peer", fmt.Sprintf("y%d", i))
				_, _ = e.Outside.Run(e.ctx, "ip", "link", "del", fmt.Sprintf("x%d", i))
			}
		}()
	}
	for range 10 {
		p, err := e.AddPod(e.ctx, "ns", "a")
		e.must("add", err)
		var eth0 *net.Interface
		e.must("eth0", p.Do(func() (err error) {
			eth0, err = net.InterfaceByName("eth0")
			return err
		}))
		if eth0.Flags&net.FlagRunning == 0 {
			t.Errorf("eth0 is not running when ADD returns: %v", eth0.Flags)
		}
		e.must("del", e.DelPod(e.ctx, p))
	}
}

// TestAddOfUnknownPodFails: with CNI's "try again later", and nothing left behind.
func TestAddOfUnknownPodFails(t *testing.T) {
	e := newEnv(t)
	began := time.Now()
	_, err := e.AddPod(e.ctx, "ns", "nobody")
	if lab.CNICode(err) != api.CodeTryLater {
		t.Errorf("ADD of a pod that nobody declares: %v, want CNI code %d", err, api.CodeTryLater)
	}
	if took := time.Since(began); took < 8*time.Second || took > 20*time.Second {
		t.Errorf("ADD waited %v, want about %v", took, api.AddWaitMax)
	}
	e.nothingLeft()
	e.must("kill", e.KillAgent())
	began = time.Now()
	if _, err := e.AddPod(e.ctx, "ns", "nobody"); lab.CNICode(err) != api.CodeTryLater {
		t.Errorf("ADD without an agent: %v, want CNI code %d", err, api.CodeTryLater)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("ADD without an agent took %v, want an answer at once", took)
	}
	e.nothingLeft()
}

// nothingLeft checks that the node has no interface, link or address of a pod.
func (e *env) nothingLeft() {
	e.t.Helper()
	out, err := e.Run(e.ctx, "ip", "-o", "link")
	e.must("ip link", err)
	for line := range strings.Lines(out) {
		if strings.Contains(line, ": weir") {
			e.t.Errorf("left on the node: %s", strings.TrimSpace(line))
		}
	}
	leases, _ := filepath.Glob(filepath.Join(e.RunDir(), "addresses", "weir", "*.*.*.*"))
	if len(leases) > 0 {
		e.t.Errorf("addresses still held: %v", leases)
	}
	pins, _ := filepath.Glob(filepath.Join(e.BPFFSDir(), "links", "*weir*"))
	if len(pins) > 0 {
		e.t.Errorf("links still pinned: %v", pins)
	}
}

// TestDelAndAddressReuse: who gets a dead pod's address gets nothing else of it.
func TestDelAndAddressReuse(t *testing.T) {
	// A pool of two: .2 and .3.
	e := newEnvWith(t, lab.Options{Pool4: "10.78.0.0/24", Pool6: "fd78::/112", RangeLast: 3},
		"pods.yaml", abc+pod("ns", "a2", "app: a2"), "policy.yaml", policy("ns", "deny", denyIngress)+policy("ns", "allow", fromA))
	e.add("ns/a", "ns/b")
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes})
	a := e.pods["ns/a"]
	if _, err := e.AddPod(e.ctx, "ns", "c"); err == nil || !strings.Contains(err.Error(), "exhausted") {
		t.Errorf("ADD with an empty pool: %v, want an error that says so", err)
	}
	e.must("del", e.DelPod(e.ctx, a))
	e.add("ns/a2")
	if a2 := e.pods["ns/a2"]; a2.Addr4 != a.Addr4 || a2.Addr6 != a.Addr6 {
		t.Fatalf("a2 has %s %s, not the addresses that a left (%s %s)", a2.Addr4, a2.Addr6, a.Addr4, a.Addr6)
	}
	e.check(probe{"ns/a2", "ns/b", "tcp", portHTTP, no}, probe{"ns/b", "ns/a2", "tcp", portHTTP, no})
	e.must("del", e.DelPod(e.ctx, e.pods["ns/a2"]))
	e.must("del again", e.DetachPod(e.ctx, e.pods["ns/a2"]))
	e.must("del", e.DelPod(e.ctx, e.pods["ns/b"]))
	e.nothingLeft()
	if n := e.status().Endpoints; n != 0 {
		t.Errorf("%d endpoints after the last DEL", n)
	}
}

// TestDelWithoutAgent: it succeeds, and the agent collects what is left when it starts.
func TestDelWithoutAgent(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	e.must("kill", e.KillAgent())
	e.must("del", e.DelPod(e.ctx, e.pods["ns/a"]))
	e.must("start", e.StartAgent(e.ctx))
	e.must("wait", e.Wait(e.ctx))
	e.eventually("the agent forgets the pod that went", 5*time.Second, func() bool { return e.status().Endpoints == 1 })
	e.check(probe{"outside", "ns/b", "tcp", portHTTP, yes})
}

func TestCheck(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a")
	a := e.pods["ns/a"]
	e.must("check", e.CheckPod(e.ctx, a))
	out, err := a.Run(e.ctx, "ip", "addr", "flush", "dev", "eth0")
	e.must("ip addr flush "+out, err)
	if err := e.CheckPod(e.ctx, a); err == nil {
		t.Error("CHECK finds nothing wrong with a pod that lost its addresses")
	}
}

// TestBrokenFileKeepsItsLastGoodContent, across a restart too.
func TestBrokenFileKeepsItsLastGoodContent(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress))
	e.add("ns/a", "ns/b")
	for _, c := range []struct{ name, text, field string }{
		{"no YAML", "apiVersion: [", ""},
		{"unknown kind", "apiVersion: v1\nkind: Polciy\nmetadata: {name: x}\n", ""},
		{"bad CIDR", policy("ns", "deny", "  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]\n"), "spec.ingress[0].from[0].ipBlock.cidr"},
		{"bad range", policy("ns", "deny", "  podSelector: {}\n  ingress: [{ports: [{port: 10, endPort: 9}]}]\n"), "spec.ingress[0].ports[0].endPort"},
		{"bad operator", policy("ns", "deny", "  podSelector: {matchExpressions: [{key: a, operator: Is}]}\n"), "spec.podSelector.matchExpressions[0].operator"},
		{"good then bad", policy("ns", "all", "  podSelector: {}\n  ingress: [{}]\n") + "kind: nonsense\n", ""},
	} {
		e.write("policy.yaml", c.text)
		r := e.Weir(e.ctx, "status", "--wait", "--timeout", "10s")
		if r.Status != 1 || !strings.Contains(r.Stderr, "policy.yaml") || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%s: weir status --wait: exit status %d, stderr %q; want 1 and one line that names policy.yaml", c.name, r.Status, r.Stderr)
		}
		errs := e.status().Errors
		if len(errs) != 1 || !strings.Contains(errs[0].File, "policy.yaml") || errs[0].Message == "" {
			t.Errorf("%s: errors %+v, want one of policy.yaml", c.name, errs)
		} else if c.field != "" && errs[0].Field != c.field {
			t.Errorf("%s: field %q, want %q", c.name, errs[0].Field, c.field)
		}
		e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no})
	}
	e.must("kill", e.KillAgent())
	e.must("start", e.StartAgent(e.ctx))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no})
	if errs := e.status().Errors; len(errs) != 1 {
		t.Errorf("after the restart: errors %+v, want one", errs)
	}
	e.write("other.yaml.off", "not read: [") // another ending
	e.must("remove", e.Remove("policy.yaml"))
	e.must("wait", e.Wait(e.ctx))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes})
}

// TestOthersGoOnBesideABrokenFile: one tenant's mistake is that tenant's.
func TestOthersGoOnBesideABrokenFile(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "broken.yaml", "kind: [")
	e.add("ns/a", "ns/b")
	e.write("deny.yaml", policy("ns", "deny", denyIngress))
	e.eventually("the good file is enforced", 5*time.Second, func() bool {
		s := e.status()
		return s.Revision.Applied == s.Revision.Desired && strings.Contains(e.Weir(e.ctx, "policy", "list").Stdout, "deny")
	})
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no})
}

func TestExitStatuses(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"status"}, 0},
		{[]string{"status", "--wait", "--timeout", "5s"}, 0},
		{[]string{"endpoints"}, 0},
		{[]string{"identities", "-o", "json"}, 0},
		{[]string{"policy", "list", "-o", "json"}, 0},
		{[]string{"flows"}, 0},
		{[]string{"policy", "explain", "--from", "ns/a", "--to", "ns/b", "--port", "80/tcp"}, 0},
		{[]string{"policy", "explain", "--from", "ns/a", "--to", "ns/missing", "--port", "80/tcp"}, 1},
		{[]string{"policy", "explain", "--from", "ns/a"}, 2},
		{[]string{"flows", "--verdict", "maybe"}, 2},
		{[]string{"status", "--no-such-flag"}, 2},
		{[]string{"no-such-command"}, 2},
	} {
		r := e.Weir(e.ctx, c.args...)
		if r.Status != c.want {
			t.Errorf("weir %s: exit status %d, want %d (%s)", strings.Join(c.args, " "), r.Status, c.want, r.Stderr)
		}
		if c.want == 1 && strings.Count(strings.TrimSpace(r.Stderr), "\n") != 0 {
			t.Errorf("weir %s: more than one line on stderr: %q", strings.Join(c.args, " "), r.Stderr)
		}
	}
	e.must("kill", e.KillAgent())
	if r := e.Weir(e.ctx, "status", "--wait", "--timeout", "1s"); r.Status != 1 {
		t.Errorf("weir status without an agent: exit status %d, want 1", r.Status)
	}
}

// TestSecondAgentRefuses to share a state directory.
func TestSecondAgentRefuses(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	out, err := e.Run(e.ctx, e.Binary("weir-agent"), "--standalone", e.Manifests(), "--state-dir", e.StateDir(), "--bpffs-dir", e.BPFFSDir(), "--node-name", "node")
	if err == nil {
		t.Fatalf("a second agent ran: %s", out)
	}
	if r := e.Weir(e.ctx, "status"); r.Status != 0 {
		t.Errorf("the first agent no longer answers: %s", r.Stderr)
	}
}

// TestAgentWithoutBPFFS says what to mount.
func TestAgentWithoutBPFFS(t *testing.T) {
	e := newEnv(t)
	dir := filepath.Join(e.RunDir(), "plain")
	e.must("mkdir", os.MkdirAll(dir, 0o755))
	out, err := e.Run(e.ctx, e.Binary("weir-agent"), "--standalone", e.Manifests(), "--state-dir", filepath.Join(e.RunDir(), "state2"), "--bpffs-dir", dir, "--node-name", "node")
	if err == nil || !strings.Contains(out, "mount -t bpf bpf") {
		t.Errorf("agent on a directory that is no bpffs: %v, %q; want an error that says what to mount", err, out)
	}
}

// TestEndpointsAndIdentities are what was added.
func TestEndpointsAndIdentities(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "allow", fromA))
	e.add("ns/a", "ns/b")
	var endpoints []api.Endpoint
	e.must("decode", json.Unmarshal([]byte(e.Weir(e.ctx, "endpoints", "-o", "json").Stdout), &endpoints))
	if len(endpoints) != 2 {
		t.Fatalf("%d endpoints, want 2", len(endpoints))
	}
	for _, ep := range endpoints {
		p := e.pods[ep.PodNamespace+"/"+ep.PodName]
		if p == nil || !strings.Contains(strings.Join(ep.Addresses, " "), p.Addr4) || !ep.Ready {
			t.Errorf("endpoint %+v", ep)
		}
		if isolated := ep.PodName == "b"; ep.Ingress.Isolated != isolated || ep.Egress.Isolated {
			t.Errorf("%s: isolated ingress %v egress %v", ep.PodName, ep.Ingress.Isolated, ep.Egress.Isolated)
		}
	}
	var identities []api.Identity
	e.must("decode", json.Unmarshal([]byte(e.Weir(e.ctx, "identities", "-o", "json").Stdout), &identities))
	if len(identities) == 0 {
		t.Error("no identities")
	}
}
