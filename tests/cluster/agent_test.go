package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/cluster/control"
	"github.com/weirnet/weir/tests/sandbox"
)

// agent is a node's agent in a network namespace of its own, with one pod's interface.
// Only the proxy leads out of it.
//
//	weir... --- pod0   both ends here: no traffic is sent
//	lo: the proxy
type agent struct {
	*scene
	binary, bpffs, state, kubeconfig string
	client                           *api.Client
	index                            int // of the pod's interface
}

const hostIf = "weir0000000000a"

func newAgent(t *testing.T) *agent {
	a := &agent{bpffs: filepath.Join(sandbox.BPFFS(t), "weir"), state: filepath.Join(t.TempDir(), "s")}
	a.binary = filepath.Join(t.TempDir(), "weir-agent")
	build := exec.Command("go", "build", "-o", a.binary, "./cmd/weir-agent")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	a.scene = &scene{T: t, Server: control.Start(t, bin)}
	sandbox.Netns(t) // children of this thread, and what it listens on, are in it
	lo, err := netlink.LinkByName("lo")
	a.must(err)
	a.must(netlink.LinkSetUp(lo))
	a.proxy = control.NewProxy(t, a.Addr())
	a.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostIf}, PeerName: "pod0"}))
	for _, name := range []string{"pod0", hostIf} {
		l, err := netlink.LinkByName(name)
		a.must(err)
		a.must(netlink.LinkSetUp(l))
		a.index = l.Attrs().Index
	}
	a.client = api.Dial(a.state)
	return a
}

// process is a running agent.
type process struct {
	log   *lines
	cmd   *exec.Cmd
	ended chan struct{}
}

func (a *agent) start() *process {
	a.Helper()
	p := &process{log: &lines{}, ended: make(chan struct{})}
	p.cmd = exec.Command(a.binary, "--kubeconfig", a.kubeconfig, "--node-name", nodeName, "--state-dir", a.state, "--bpffs-dir", a.bpffs)
	p.cmd.Stderr = p.log
	a.must(p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	a.Cleanup(func() {
		a.kill(p, unix.SIGKILL)
		if a.Failed() {
			a.Logf("the agent logged\n%s", p.log)
		}
	})
	return p
}

func (a *agent) kill(p *process, s os.Signal) {
	a.Helper()
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.ended:
	case <-time.After(patience):
		a.Errorf("the agent still runs %s after %v", patience, s)
	}
}

func (a *agent) logs(p *process, text string) {
	a.Helper()
	a.until("the log has "+text, func() bool {
		select {
		case <-p.ended:
			a.Fatalf("the agent ended: %v\n%s", p.cmd.ProcessState, p.log)
		default:
		}
		return strings.Contains(p.log.String(), text)
	})
}

// status of an agent that has enforced all that is in the API now.
func (a *agent) status() api.Status {
	a.Helper()
	s, err := a.client.Status(a.Context(), patience)
	a.must(err)
	return s
}

func (a *agent) links() string {
	a.Helper()
	attached, err := loader.Attached(a.bpffs)
	a.must(err)
	var out []string
	for _, l := range attached {
		if l.Name == hostIf && l.Ifindex != 0 {
			out = append(out, l.Hook)
		}
	}
	return strings.Join(out, " ")
}

// manyRanges is a rule with more port ranges than can be enforced.
func manyRanges() networkingv1.NetworkPolicySpec {
	var ports []networkingv1.NetworkPolicyPort
	for i := range 300 {
		first, last := intstr.FromInt(1000+10*i), int32(1005+10*i)
		ports = append(ports, networkingv1.NetworkPolicyPort{Port: &first, EndPort: &last})
	}
	return networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: ports}}}
}

func (a *agent) events(reason string) (out []corev1.Event) {
	a.Helper()
	list, err := a.Admin.CoreV1().Events("shop").List(a.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason})
	a.must(err)
	return list.Items
}

// TestAgent is an agent's life on an API server that comes and goes.
func TestAgent(t *testing.T) {
	a := newAgent(t)
	a.makeNamespace("shop")
	a.makePod("web", "web")
	a.makePolicy("deny", networkingv1.NetworkPolicySpec{})
	a.kubeconfig = a.grant(a.rights())
	p := a.start()
	a.logs(p, "waits for the API server")
	a.logs(p, `a Node \"node-a\"`)
	a.makeNode(nodeName, "10.244.1.0/24")
	a.makeNode("node-b", "10.244.2.0/24")
	a.logs(p, "agent is ready")
	s := a.status()
	if len(s.Errors) > 0 || s.Revision.Applied == 0 || s.Revision.Applied != s.Revision.Desired {
		t.Fatalf("%+v", s)
	}

	a.must(loader.AttachPod(a.bpffs, a.index, hostIf, loader.XDPOff))
	e, err := a.client.AddEndpoint(t.Context(), api.AddRequest{
		ContainerID: "c1", IfName: "eth0", HostIfName: hostIf, HostIfindex: uint32(a.index), MAC: "02:00:00:00:00:01",
		Addresses: []string{"10.244.1.2"}, PodNamespace: "shop", PodName: "web",
	})
	if err != nil || !e.Ready || !e.Ingress.Isolated || !slices.Equal(e.Ingress.By, []string{"shop/deny"}) {
		t.Fatalf("%+v, %v", e, err)
	}

	// Each change is enforced when status says so.
	for i := range 10 {
		name := fmt.Sprint("more", i)
		a.makePolicy(name, networkingv1.NetworkPolicySpec{})
		a.status()
		if by := a.endpoint().Ingress.By; !slices.Contains(by, "shop/"+name) {
			t.Errorf("after %s: isolated by %v", name, by)
		}
		a.must(a.Admin.NetworkingV1().NetworkPolicies("shop").Delete(t.Context(), name, metav1.DeleteOptions{}))
	}

	// What the API takes and the kernel cannot hold.
	a.makePolicy("large", manyRanges())
	if _, err := a.client.Status(t.Context(), patience); err == nil || !strings.Contains(err.Error(), "NetworkPolicy shop/large: spec.ingress: ") {
		t.Errorf("status: %v", err)
	}
	a.until("an event", func() bool { return len(a.events("NotEnforced")) == 1 })
	if e := a.events("NotEnforced")[0]; e.Type != "Warning" || e.InvolvedObject.Name != "large" || !strings.Contains(e.Message, "port ranges") || e.Source.Host != nodeName {
		t.Errorf("%+v", e)
	}
	small := manyRanges()
	small.Ingress[0].Ports = small.Ingress[0].Ports[:3]
	np, err := a.Admin.NetworkingV1().NetworkPolicies("shop").Get(t.Context(), "large", metav1.GetOptions{})
	a.must(err)
	np.Spec = small
	_, err = a.Admin.NetworkingV1().NetworkPolicies("shop").Update(t.Context(), np, metav1.UpdateOptions{})
	a.must(err)
	before := a.status()
	a.until("an event that it is mended", func() bool { return len(a.events("Enforced")) == 1 })

	a.outage(p, before)
}

func (a *agent) endpoint() api.Endpoint {
	a.Helper()
	all, err := a.client.Endpoints(a.Context())
	a.must(err)
	if len(all) != 1 {
		a.Fatalf("%d endpoints", len(all))
	}
	return all[0]
}

// outage: the API server goes, the agent is killed and starts without it: what is enforced
// stays, pinned, and nothing changes when the server is back.
func (a *agent) outage(p *process, before api.Status) {
	a.Helper()
	was := a.endpoint()
	a.proxy.Cut()
	a.until("a warning in status", func() bool {
		s, err := a.client.Status(a.Context(), 0)
		a.must(err)
		return slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "does not answer") && strings.Contains(w, "since") })
	})
	if s, err := a.client.Status(a.Context(), 0); err != nil || s.Epoch != before.Epoch || s.Revision != before.Revision {
		a.Errorf("%+v, %v\nbefore %+v", s, err, before)
	}
	if _, err := a.client.Status(a.Context(), patience); err == nil || !strings.Contains(err.Error(), "API server") {
		a.Errorf("status --wait without an API server: %v", err)
	}
	a.kill(p, unix.SIGKILL)
	a.label("web", "other") // while nobody looks; no selector asks for it
	p = a.start()
	a.logs(p, "waits for the API server")
	a.logs(p, "does not answer")
	if links := a.links(); links != "from_pod to_pod" {
		a.Errorf("hooks %q", links)
	}
	ctx, cancel := context.WithTimeout(a.Context(), time.Second)
	defer cancel()
	if _, err := a.client.Status(ctx, 0); err == nil {
		a.Error("an agent that knows nothing answers")
	}
	begun := time.Now()
	a.kill(p, unix.SIGTERM)
	if took := time.Since(begun); took > 10*time.Second {
		a.Errorf("it took %s to end", took)
	}
	p = a.start()
	a.logs(p, "waits for the API server")
	a.proxy.Mend()
	a.logs(p, "agent is ready")
	after := a.status()
	if after.Epoch != before.Epoch || after.Revision.Applied < before.Revision.Applied || after.Endpoints != 1 {
		a.Errorf("%+v\nbefore %+v", after, before)
	}
	if is := a.endpoint(); is.Number != was.Number || is.Identity != was.Identity || is.Ingress.Ruleset != was.Ingress.Ruleset {
		a.Errorf("%+v\nbefore %+v", is, was)
	}
}
