package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/control"
	"github.com/weirnet/weir/tests/lab"
)

// pair is two nodes of namespaces that are neighbours, with agents on one API server. The
// way to the outside is each node's own, and knows nothing of pods.
//
//	pods --- node-a ---join--- node-b --- pods
//	           |                  |
//	        outside            outside
type pair struct {
	*scene
	ctx   context.Context
	nodes [2]*lab.Node
	confs [2]string // the runtime's configuration, as the agents write it
	pods  map[string]*lab.Pod

	addresses [2][]string // as their Nodes have them
	strictly  bool        // they drop what conntrack calls invalid
}

const (
	port  = 8080
	quiet = 600 * time.Millisecond // silence for so long is a drop
)

func newPair(t *testing.T, flags ...string) *pair {
	p := &pair{scene: &scene{T: t, Server: control.Start(t, bin)}, pods: map[string]*lab.Pod{}, addresses: [2][]string{
		{"198.51.100.1", "2001:db8:1::1"}, {"198.51.100.2", "2001:db8:1::2"},
	}}
	p.up(flags)
	return p
}

// up builds the nodes and starts their agents.
func (p *pair) up(flags []string) {
	p.Helper()
	t := p.T
	p.makeNamespace("shop")
	var cancel context.CancelFunc
	p.ctx, cancel = context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	programs, err := filepath.Abs("../../bin")
	p.must(err)
	run := fmt.Sprintf("weirt-%x", time.Now().UnixNano()&0xffffff)
	rights := p.rights()
	for i, name := range []string{"node-a", "node-b"} {
		letter := name[len(name)-1:]
		o := lab.Options{
			Prefix: run + letter + "-", Run: "/run/" + run + letter, Bin: programs, Name: name,
			Pool4: fmt.Sprintf("10.244.%d.0/24", i+1), Pool6: fmt.Sprintf("fd44:%d::/112", i+1),
		}
		p.confs[i] = filepath.Join(t.TempDir(), "05-weir.conflist")
		o.Agent = append([]string{"--cni-conf", p.confs[i], "--uplink", "up0", "--uplink", "join"}, flags...)
		n, err := lab.Up(o)
		p.must(err)
		p.nodes[i] = n
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the agent of %s logged\n%s", name, n.LogTail())
			}
			if err := n.Down(); err != nil {
				t.Error(err)
			}
		})
		p.must(n.Do(func() error {
			p.proxy = control.NewProxy(t, p.Addr())
			return nil
		}))
		if i == 0 {
			n.Source("--kubeconfig", p.grant(rights))
		} else {
			n.Source("--kubeconfig", p.Kubeconfig(p.proxy.Addr(), p.Token(rights.account.Namespace, rights.account.Name)))
		}
	}
	p.join()
	for i, n := range p.nodes {
		p.register(i)
		p.must(n.StartAgent(p.ctx))
		p.must(n.Wait(p.ctx))
	}
}

// join makes the nodes neighbours.
func (p *pair) join() {
	p.Helper()
	a, b := &p.nodes[0].Host, &p.nodes[1].Host
	p.must(lab.Join(a, b, "join"))
	for i, h := range []*lab.Host{a, b} {
		p.must(h.Address("join", fmt.Sprintf("198.51.100.%d/24", i+1), fmt.Sprintf("2001:db8:1::%d/64", i+1)))
	}
}

// register makes the Node, as kubelet and the controller manager would.
func (p *pair) register(i int) {
	p.Helper()
	n := p.makeNode([]string{"node-a", "node-b"}[i], fmt.Sprintf("10.244.%d.0/24", i+1), fmt.Sprintf("fd44:%d::/112", i+1))
	p.report(n, p.addresses[i]...)
}

// report gives a Node its addresses.
func (p *pair) report(n *corev1.Node, addrs ...string) {
	p.Helper()
	n.Status.Addresses = nil
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	_, err := p.Admin.CoreV1().Nodes().UpdateStatus(p.ctx, n, metav1.UpdateOptions{})
	p.must(err)
}

// add starts a pod on a node, and tells the API its addresses, as kubelet would.
func (p *pair) add(i int, name, app string) *lab.Pod {
	p.Helper()
	object := pod(name, app)
	object.Spec.NodeName = []string{"node-a", "node-b"}[i]
	object, err := p.Admin.CoreV1().Pods("shop").Create(p.ctx, object, create)
	p.must(err)
	made, err := p.nodes[i].AddPod(p.ctx, "shop", name)
	p.must(err)
	p.must(made.Serve(p.ctx, port))
	object.Status.Phase = corev1.PodRunning
	object.Status.PodIP, object.Status.PodIPs = made.Addr4, []corev1.PodIP{{IP: made.Addr4}, {IP: made.Addr6}}
	_, err = p.Admin.CoreV1().Pods("shop").UpdateStatus(p.ctx, object, metav1.UpdateOptions{})
	p.must(err)
	p.pods[name] = made
	return made
}

// enforced waits for both nodes.
func (p *pair) enforced() {
	p.Helper()
	for _, n := range p.nodes {
		p.must(n.Wait(p.ctx))
	}
}

// routed waits for the way between two pods, which the agents make beside their commits.
func (p *pair) routed(from, to *lab.Host) {
	p.Helper()
	p.until("a way from "+from.Name+" to "+to.Name, func() bool {
		for _, family := range []int{4, 6} {
			if got, err := from.Probe("tcp", to.Addr(family), port); err != nil || got != lab.Answered {
				return false
			}
		}
		return true
	})
}

func (p *pair) probe(from *lab.Host, to *lab.Host, want lab.Answer) {
	p.Helper()
	for _, family := range []int{4, 6} {
		for _, protocol := range []string{"tcp", "udp"} {
			got, err := from.Probe(protocol, to.Addr(family), port)
			p.must(err)
			if got != want {
				p.Errorf("%s -> %s IPv%d %s: %v, want %v", from.Name, to.Name, family, protocol, got, want)
			}
		}
	}
}

func isolate(app string, from ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
	spec := networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}
	if len(from) > 0 {
		spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: from}}
	}
	return spec
}

func apps(name string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}}
}

func (p *pair) deletePolicy(name string) {
	p.Helper()
	p.must(p.Admin.NetworkingV1().NetworkPolicies("shop").Delete(p.ctx, name, metav1.DeleteOptions{}))
}

// modes of routing that two neighbours may be in.
var modes = []string{"native", "vxlan"}

// TestTwoNodes: pods of two nodes reach one another by the routes the agents made, under
// one policy, known by their labels; the outside sees the nodes' addresses alone.
func TestTwoNodes(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { twoNodes(t, newPair(t, "--routing", mode)) })
	}
}

func twoNodes(t *testing.T, p *pair) {
	web, client, db := p.add(0, "web", "web"), p.add(0, "client", "client"), p.add(1, "db", "db")
	p.enforced()
	p.routed(&web.Host, &db.Host)
	p.probe(&web.Host, &db.Host, lab.Answered)
	p.probe(&db.Host, &web.Host, lab.Answered)
	for i, conf := range p.confs {
		if text := read(t, conf); !strings.Contains(text, fmt.Sprintf("10.244.%d.0/24", i+1)) || !strings.Contains(text, fmt.Sprintf("fd44:%d::/112", i+1)) {
			t.Errorf("%s: %s", conf, text)
		}
	}

	p.makePolicy("db", isolate("db", apps("web")))
	p.enforced()
	p.probe(&web.Host, &db.Host, lab.Answered)
	p.probe(&client.Host, &db.Host, lab.Silent)
	p.probe(&p.nodes[1].Host, &db.Host, lab.Answered) // its own node
	p.probe(&p.nodes[0].Host, &db.Host, lab.Silent)   // another node is no pod
	p.probe(&db.Host, &client.Host, lab.Answered)

	p.revoked(web, db)
	p.masqueraded(web)

	// What a pod says of itself over there counts for nothing: its node's routes decide.
	p.makePolicy("db", isolate("db", networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "198.51.100.1/32"}},
		networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "2001:db8:1::1/128"}}))
	p.enforced()
	p.probe(&p.nodes[0].Host, &db.Host, lab.Answered)
	p.probe(&web.Host, &db.Host, lab.Silent)
}

// revoked deletes what allowed an open connection between the nodes: it stops both ways.
func (p *pair) revoked(from, to *lab.Pod) {
	p.Helper()
	for _, family := range []int{4, 6} {
		conn, err := from.Connect(to.Addr(family), port)
		p.must(err)
		defer conn.Close()
		p.must(echo(conn, 5*time.Second))
		p.Cleanup(func() { conn.Close() })
		p.deletePolicy("db")
		p.makePolicy("db", isolate("db"))
		p.enforced()
		if err := echo(conn, quiet); err == nil {
			p.Errorf("IPv%d: a revoked connection goes on", family)
		}
		p.deletePolicy("db")
		p.makePolicy("db", isolate("db", apps("web")))
		p.enforced()
		if err := echo(conn, 20*time.Second); err != nil {
			p.Errorf("IPv%d: the connection does not go on when it is allowed again: %v", family, err)
		}
	}
	p.deletePolicy("db")
	p.enforced()
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// echo sends some bytes and wants all that is outstanding back, one of which at least.
func echo(conn net.Conn, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 64))
	return err
}

// masqueraded: the outside has no way back to pods, and answers all the same.
func (p *pair) masqueraded(from *lab.Pod) {
	p.Helper()
	outside := p.nodes[0].Outside
	p.must(outside.Serve(p.ctx, port))
	for _, pool := range []string{"10.244.1.0/24", "fd44:1::/112"} {
		family := "-4"
		if netip.MustParsePrefix(pool).Addr().Is6() {
			family = "-6"
		}
		_, err := outside.Run(p.ctx, "ip", family, "route", "del", pool)
		p.must(err)
	}
	p.probe(&from.Host, outside, lab.Answered)
}
