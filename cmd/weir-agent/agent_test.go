package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/sandbox"
)

// runner is one node: a network namespace, a bpffs, a directory of manifests.
//
//	up0 --- up1      the uplink, with the default route
//	weir... --- pod0 a pod's interface, both ends here: no traffic is sent
type runner struct {
	*testing.T
	binary, bpffs, state, manifests string
	client                          *api.Client
}

func newRunner(t *testing.T) *runner {
	bpffs := sandbox.BPFFS(t)
	binary := filepath.Join(t.TempDir(), "weir-agent")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	sandbox.Netns(t) // children of this thread live in it
	r := &runner{T: t, binary: binary, bpffs: filepath.Join(bpffs, "weir"), state: filepath.Join(t.TempDir(), "s"), manifests: t.TempDir()}
	r.client = api.Dial(r.state)
	r.veth("up0", "up1")
	link, err := netlink.LinkByName("up0")
	r.must(err)
	addr, _ := netlink.ParseAddr("192.0.2.1/24")
	r.must(netlink.AddrAdd(link, addr))
	r.must(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP("192.0.2.10")}))
	return r
}

func (r *runner) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// veth makes a pair that is up and returns the index of its first end.
func (r *runner) veth(name, peer string) int {
	r.Helper()
	r.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	for _, n := range []string{peer, name} {
		l, err := netlink.LinkByName(n)
		r.must(err)
		r.must(netlink.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE)) // one that comes a second later is a commit
		r.must(netlink.LinkSetUp(l))
	}
	l, err := netlink.LinkByName(name)
	r.must(err)
	return l.Attrs().Index
}

func (r *runner) command(extra ...string) (*exec.Cmd, *bytes.Buffer) {
	var stderr bytes.Buffer
	cmd := exec.Command(r.binary, append([]string{"--standalone", r.manifests, "--state-dir", r.state, "--bpffs-dir", r.bpffs,
		"--cluster-cidr", "10.77.0.0/24", "--node-name", "node"}, extra...)...)
	cmd.Stderr = &stderr
	return cmd, &stderr
}

// process is a running agent.
type process struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	ended  chan struct{}
}

func (r *runner) start(extra ...string) *process { return r.startWith(func(*exec.Cmd) {}, extra...) }

// startWith starts an agent whose command was changed by change.
func (r *runner) startWith(change func(*exec.Cmd), extra ...string) *process {
	r.Helper()
	cmd, stderr := r.command(extra...)
	change(cmd)
	cmd.Stderr = stderr
	r.must(cmd.Start())
	p := &process{cmd, stderr, make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.ended) }()
	r.Cleanup(func() { _ = cmd.Process.Kill(); <-p.ended })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if ping, err := r.client.Ping(r.Context()); err == nil && ping.NodeName == "node" {
			return p
		}
		select {
		case <-p.ended:
			r.Fatalf("agent ended: %v\n%s", cmd.ProcessState, stderr)
		default:
		}
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			<-p.ended
			r.Fatalf("agent does not answer after 20 s\n%s", stderr)
		}
	}
}

func (r *runner) end(p *process, s os.Signal) {
	r.Helper()
	r.must(p.cmd.Process.Signal(s))
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		r.Fatalf("agent still runs 10 s after %v", s)
	}
}

func (r *runner) status() api.Status {
	r.Helper()
	s, err := r.client.Status(r.Context(), 10*time.Second)
	r.must(err)
	return s
}

func (r *runner) hooks(name string) string {
	r.Helper()
	attached, err := loader.Attached(r.bpffs)
	r.must(err)
	var out []string
	for _, a := range attached {
		if a.Name == name && a.Ifindex != 0 {
			out = append(out, a.Hook)
		}
	}
	return strings.Join(out, " ")
}

const manifest = `apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}}
`

func TestAgentIsKilledAndAdopts(t *testing.T) {
	r := newRunner(t)
	r.must(os.WriteFile(filepath.Join(r.manifests, "shop.yaml"), []byte(manifest), 0o644))
	p := r.start()
	first := r.status()
	if first.Revision.Applied == 0 || len(first.Errors) != 0 {
		t.Fatalf("%+v", first)
	}
	hooks := func() bool {
		return r.hooks("up0") == "from_network to_network" && r.hooks("up1") == "to_network"
	}
	r.eventually("hooks of the node's devices", hooks)

	const name = "weir0000000000a"
	index := r.veth(name, "pod0")
	r.must(loader.AttachPod(r.bpffs, index, name, loader.XDPOff))
	add := api.AddRequest{
		ContainerID: "c1", IfName: "eth0", HostIfName: name, HostIfindex: uint32(index), MAC: "02:00:00:00:00:01",
		Addresses: []string{"10.77.0.2", "fd77::2"}, PodNamespace: "shop", PodName: "web",
	}
	e, err := r.client.AddEndpoint(t.Context(), add)
	if err != nil || !e.Ready || !e.Ingress.Isolated {
		t.Fatalf("%+v, %v", e, err)
	}
	before := r.status()

	cmd, stderr := r.command()
	if err := cmd.Run(); exitStatus(err) != 1 || !strings.Contains(stderr.String(), fmt.Sprintf("pid %d)", p.cmd.Process.Pid)) || lines(stderr) != 1 {
		t.Fatalf("second agent: %v, %s", err, stderr)
	}

	r.end(p, unix.SIGKILL)
	p = r.start()
	after := r.status()
	if after.Epoch != before.Epoch || after.Endpoints != 1 || after.Revision != before.Revision {
		t.Fatalf("after kill -9: %+v\nbefore: %+v\n%s", after, before, p.stderr)
	}
	if again, err := r.client.AddEndpoint(t.Context(), add); err != nil || again.Number != e.Number {
		t.Fatalf("the same ADD: %+v, %v", again, err)
	}

	// A link that was taken away comes back with the next start.
	r.end(p, unix.SIGTERM)
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Fatalf("SIGTERM: exit status %d\n%s", status, p.stderr)
	}
	if _, err := os.Stat(filepath.Join(r.state, api.SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket is still there: %v", err)
	}
	if r.hooks(name) != "from_pod to_pod" {
		t.Fatalf("hooks after SIGTERM: %q", r.hooks(name))
	}
	r.must(loader.DetachPod(r.bpffs, name))
	p = r.start()
	if r.hooks(name) != "from_pod to_pod" {
		t.Fatalf("hooks were not attached again: %q\n%s", r.hooks(name), p.stderr)
	}

	// An interface that went while no agent ran is collected.
	r.end(p, unix.SIGKILL)
	link, err := netlink.LinkByName(name)
	r.must(err)
	r.must(netlink.LinkDel(link))
	p = r.start()
	s := r.status()
	if s.Endpoints != 0 || s.Epoch <= after.Epoch {
		t.Fatalf("%+v\n%s", s, p.stderr)
	}
	if _, err := os.Stat(filepath.Join(r.bpffs, "links", name)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("pins of an interface that is gone: %v", err)
	}

	// A device that appears gets its hook.
	r.veth("new0", "new1")
	r.eventually("hook of a new device", func() bool { return r.hooks("new0") == "to_network" })
}

func (r *runner) eventually(what string, done func() bool) {
	r.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestBadStarts(t *testing.T) {
	r := newRunner(t)
	plain := t.TempDir()
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--bpffs-dir", plain}, 1, "mount -t bpf bpf " + plain},
		{[]string{"--standalone", filepath.Join(plain, "none")}, 1, "none"},
		{[]string{"--standalone", ""}, 2, "--standalone"},
		{[]string{"--frobnicate"}, 2, "frobnicate"},
		{[]string{"extra"}, 2, "extra"},
		{[]string{"--cluster-cidr", "10.0.0.0"}, 2, "10.0.0.0"},
		{[]string{"--node-egress", "maybe"}, 2, "maybe"},
		{[]string{"--add-wait", "0s"}, 2, "--add-wait"},
		{[]string{"--map-size", "facts=none"}, 2, "facts=none"},
		{[]string{"--config", filepath.Join(plain, "none.yaml")}, 2, "none.yaml"},
		{[]string{"--flow-export-file", "flows.json"}, 2, `--flow-export-file "flows.json" must be an absolute path`},
		{[]string{"--flow-export-file-filter", "dropped"}, 2, `--flow-export-file-filter: "dropped" is not NAME=VALUE`},
		{[]string{"--flow-export-file-filter", "verdict=maybe"}, 2, `--flow-export-file-filter: verdict: "maybe" is not one of`},
		{[]string{"--flow-export-file-filter", "colour=red"}, 2, "--flow-export-file-filter: colour: no such parameter"},
		{[]string{"--flow-export-file-filter", "label=a in ("}, 2, "--flow-export-file-filter: label: "},
		{[]string{"--flow-export-file-filter", "since=5m"}, 2, "--flow-export-file-filter: since has no meaning here"},
		{[]string{"--flow-export-file-fields", "verdict,pod"}, 2, `--flow-export-file-fields: "pod": Flow has no field "pod"`},
		{[]string{"--otlp-endpoint", "collector:4317"}, 2, `--otlp-endpoint: write http://HOST:PORT, or https://HOST:PORT for TLS`},
		{[]string{"--otlp-endpoint", "https://collector"}, 2, "it has no port"},
		{[]string{"--otlp-endpoint", "https://u:secret@collector:4317"}, 2, "it must not hold a password"},
		{[]string{"--otlp-endpoint", "https://collector:4317/v1/logs"}, 2, "with gRPC it has no path"},
		{[]string{"--otlp-endpoint", "http://collector:4317", "--otlp-tls-ca", "ca.pem"}, 2, "is without TLS: certificates need https"},
		{[]string{"--otlp-tls-cert", "a.pem"}, 2, "--otlp-tls-cert and --otlp-tls-key need each other"},
		{[]string{"--otlp-protocol", "udp"}, 2, `--otlp-protocol "udp" is neither grpc nor http`},
		{[]string{"--otlp-flow-filter", "verdict"}, 2, `--otlp-flow-filter: "verdict" is not NAME=VALUE`},
		{[]string{"--otlp-flow-fields", "weir.verdict,sourc"}, 2, `--otlp-flow-fields: "sourc": flows have no such attribute`},
		{[]string{"--otlp-metrics-interval", "1ms"}, 2, "--otlp-metrics-interval 1ms must be a second or more"},
		{[]string{"--flow-export-queue", "0"}, 2, "--flow-export-queue 0 must be above 0"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd, stderr := r.command(c.args...)
		err := runUntil(ctx, cmd)
		cancel()
		last := stderr.String()[strings.LastIndex(strings.TrimRight(stderr.String(), "\n"), "\n")+1:]
		if exitStatus(err) != c.status || !strings.HasPrefix(last, "weir-agent: ") || !strings.Contains(last, c.want) {
			t.Errorf("%v: %v, want status %d and %q\n%s", c.args, err, c.status, c.want, stderr)
		}
	}
	out, err := exec.Command(r.binary, "--version").Output()
	if err != nil || !strings.HasPrefix(string(out), "weir-agent version ") {
		t.Errorf("--version: %q, %v", out, err)
	}
}

// runUntil runs a command that ought to end by itself.
func runUntil(ctx context.Context, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	return cmd.Wait()
}

func exitStatus(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

func lines(b *bytes.Buffer) int { return strings.Count(b.String(), "\n") }
