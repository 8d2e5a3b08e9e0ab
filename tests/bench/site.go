package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/tests/bench/apiserver"
	"github.com/weirnet/weir/tests/bench/traffic"
	"github.com/weirnet/weir/tests/lab"
)

// site is two pods, on one node or on two, and what lies between them:
//
//	pod a           node-a      join      node-b        pod b
//	eth0 --- veth ---+-------------------+---- veth --- eth0
//
// On one node it is node-a that has both.
type site struct {
	nodes []*lab.Node
	a, b  *lab.Host
	api   *apiserver.Server
	ends  []*exec.Cmd
	// judges are processes that packets wait for.
	judges []int
	run    string

	failedAdds int
}

// Ports of pod b.
const (
	portEcho = 7000
	portSink = 7001 // UDP, ends in a program at its door (yard.bpf.c)
	portTake = 7002
	portFrom = 7003 // of pod a, UDP
)

const gateway = "169.254.1.1"

func nodeName(node int) string     { return "node-" + string(rune('a'+node)) }
func podCIDR(node int) string      { return fmt.Sprintf("10.244.%d.0/24", node+1) }
func nodeAddress(node int) string  { return fmt.Sprintf("198.51.100.%d", node+1) }
func podAddress(n, pod int) string { return fmt.Sprintf("10.244.%d.%d", n+1, 10+pod) }

// newSite makes the nodes; pods come by addPods or by Weir.
func newSite(m *measurement, name string, nodes int, o lab.Options) (*site, error) {
	if m.Err() != nil {
		return &site{}, m.Err()
	}
	s := &site{run: fmt.Sprintf("/run/weirt-bench-%s", name)}
	for i := range nodes {
		o.Name = nodeName(i)
		o.Prefix, o.Run = fmt.Sprintf("weirt-bench-%s%s-", name, o.Name[5:]), s.run+o.Name[5:]
		o.Bin, o.Pool4, o.Pool6 = m.bin, podCIDR(i), fmt.Sprintf("fd44:%d::/112", i+1)
		n, err := lab.Up(o)
		if err != nil {
			return s, err
		}
		s.nodes = append(s.nodes, n)
		if err := forward(&n.Host); err != nil {
			return s, err
		}
	}
	if nodes == 2 {
		if err := lab.Join(&s.nodes[0].Host, &s.nodes[1].Host, "join"); err != nil {
			return s, err
		}
		for i, n := range s.nodes {
			if err := n.Address("join", nodeAddress(i)+"/24"); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// forward has a namespace route, and many connections a second.
func forward(h *lab.Host) error {
	return h.Do(func() error {
		for name, value := range map[string]string{"ip_forward": "1", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0", "ip_local_port_range": "1024 65000", "tcp_tw_reuse": "1"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *site) close() error {
	for _, e := range s.ends {
		_ = e.Process.Kill()
		_ = e.Wait()
	}
	if s.api != nil {
		s.api.Close()
	}
	errs := make([]error, len(s.nodes))
	var all sync.WaitGroup
	for i, n := range s.nodes {
		all.Go(func() { errs[i] = n.Down() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// closeAll closes sites, all at once: who interrupts does not wait for one after the other.
func closeAll(sites ...*site) error {
	errs := make([]error, len(sites))
	var all sync.WaitGroup
	for i, s := range sites {
		all.Go(func() { errs[i] = s.close() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// last is the node that pod b is on.
func (s *site) last() *lab.Node { return s.nodes[len(s.nodes)-1] }

// shell runs lines in a namespace, and stops at the first that fails.
func shell(ctx context.Context, h *lab.Host, script string) error {
	out, err := h.Run(ctx, "sh", "-ec", script)
	if err != nil {
		return fmt.Errorf("in %s: %w: %s", h.Netns, err, end300(out))
	}
	return nil
}

// end300 is the end of what a command said.
func end300(out string) string {
	out = strings.Join(strings.Fields(out), " ")
	return out[max(0, len(out)-300):]
}

// addPods makes the pods as any plugin would that routes: a veth each, an address, a route.
func (s *site) addPods(ctx context.Context) error {
	for i, n := range []*lab.Node{s.nodes[0], s.last()} {
		at := 0
		if n != s.nodes[0] {
			at = 1
		}
		pod := &lab.Host{Name: "ab"[i : i+1], Netns: n.Netns + "-" + "ab"[i:i+1], Addr4: podAddress(at, i)}
		script := fmt.Sprintf(`ip netns add %[1]s
ip link add v%[2]s type veth peer name eth0 netns %[1]s
ip addr add %[3]s/32 dev v%[2]s
ip link set v%[2]s up
ip -n %[1]s link set lo up
ip -n %[1]s addr add %[4]s/32 dev eth0
ip -n %[1]s link set eth0 up
ip -n %[1]s route add %[3]s dev eth0
ip -n %[1]s route add default via %[3]s
ip route add %[4]s/32 dev v%[2]s`, pod.Netns, pod.Name, gateway, pod.Addr4)
		if err := shell(ctx, &n.Host, script); err != nil {
			return err
		}
		if err := forward(pod); err != nil {
			return err
		}
		if i == 0 {
			s.a = pod
		} else {
			s.b = pod
		}
	}
	return nil
}

// routes lead to the other node's pods, by the network as it is or in VXLAN.
func (s *site) routes(ctx context.Context, vxlan bool) error {
	for i, n := range s.nodes {
		other := 1 - i
		script := fmt.Sprintf("ip route add %s via %s dev join", podCIDR(other), nodeAddress(other))
		if vxlan {
			script = fmt.Sprintf(`ip link add vx type vxlan id 7 dstport 4789 local %[1]s remote %[2]s dev join
ip addr add 198.18.0.%[3]d/24 dev vx
ip link set vx mtu 1450 up
ip route add %[4]s via 198.18.0.%[5]d dev vx`, nodeAddress(i), nodeAddress(other), i+1, podCIDR(other), other+1)
		}
		if err := shell(ctx, &n.Host, script); err != nil {
			return err
		}
	}
	if vxlan {
		for _, pod := range []*lab.Host{s.a, s.b} {
			if err := shell(ctx, pod, "ip link set eth0 mtu 1450"); err != nil {
				return err
			}
		}
	}
	return nil
}

// startAPI has the objects at each node's own 127.0.0.1.
func (s *site) startAPI(objects map[string][]runtime.Object) error {
	s.api = apiserver.New()
	for i := range s.nodes {
		if err := s.api.Put("nodes", apiserver.Node(nodeName(i), nodeAddress(i), podCIDR(i), fmt.Sprintf("fd44:%d::/112", i+1))); err != nil {
			return err
		}
	}
	for resource, list := range objects {
		if err := s.api.Put(resource, list...); err != nil {
			return err
		}
	}
	for _, n := range s.nodes {
		err := n.Do(func() error {
			l, err := net.Listen("tcp", "127.0.0.1:8001")
			if err == nil {
				s.api.Serve(l)
			}
			return err
		})
		if err != nil {
			return err
		}
		file := filepath.Join(n.RunDir(), "kubeconfig")
		if err := apiserver.Kubeconfig(file, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8001}); err != nil {
			return err
		}
		n.Source("--kubeconfig", file)
	}
	return nil
}

// weir starts agents and has them make the pods.
func (s *site) weir(ctx context.Context, policies int) error {
	if err := s.startAPI(cluster(policies)); err != nil {
		return err
	}
	last := nodeName(len(s.nodes) - 1)
	pods := []runtime.Object{apiserver.Pod("bench", "a", "node-a", app("a")), apiserver.Pod("bench", "b", last, app("b"))}
	if err := s.api.Put("pods", pods...); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
	}
	for i, n := range []*lab.Node{s.nodes[0], s.last()} {
		name := "ab"[i : i+1]
		p, err := n.AddPod(ctx, "bench", name)
		if err != nil {
			return err
		}
		if err := forward(&p.Host); err != nil {
			return err
		}
		if i == 0 {
			s.a = &p.Host
		} else {
			s.b = &p.Host
		}
		at := "node-a"
		if i == 1 {
			at = last
		}
		if err := s.api.Put("pods", apiserver.Pod("bench", name, at, app(name), p.Addr4, p.Addr6)); err != nil {
			return err
		}
	}
	for _, n := range s.nodes {
		if err := n.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

func app(name string) map[string]string { return map[string]string{"app": name} }

// cluster is a hundred pods elsewhere and policies of pod b, each of which lets one of them
// in by one port; the last lets pod a in.
func cluster(policies int) map[string][]runtime.Object {
	objects := map[string][]runtime.Object{"namespaces": {apiserver.Namespace("bench")}}
	for i := range 100 {
		objects["pods"] = append(objects["pods"], apiserver.Pod("bench", peerName(i), "node-z", app(peerName(i)), peerAddress(i)))
	}
	for i := range policies {
		objects["networkpolicies"] = append(objects["networkpolicies"], benchPolicy(i, policies, 80))
	}
	return objects
}

// benchPolicy is number i of them; the port is that of all but the last.
func benchPolicy(i, policies, port int) *networkingv1.NetworkPolicy {
	rule := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: app(peerName(i))}}}}
	if i == policies-1 {
		rule.From[0].PodSelector.MatchLabels = app("a")
	} else {
		rule.Ports = []networkingv1.NetworkPolicyPort{portOf("TCP", port)}
	}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: fmt.Sprintf("policy-%d", i)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: app("b")}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{rule},
		},
	}
}

func peerName(i int) string    { return fmt.Sprintf("peer-%d", i%100) }
func peerAddress(i int) string { return fmt.Sprintf("10.64.0.%d", i%100+1) }

// serve starts pod b's ends.
func (s *site) serve() error {
	for kind, at := range map[string]int{"echo": portEcho, "take": portTake} {
		cmd, err := end(kind, at)
		if err != nil {
			return err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := s.b.Start(cmd); err != nil {
			return err
		}
		s.ends = append(s.ends, cmd)
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return fmt.Errorf("%s on port %d: %q: %w", kind, at, line, err)
		}
	}
	return nil
}

// end is a process of package traffic.
func end(kind string, args ...any) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	words := []string{traffic.Command, kind}
	for _, a := range args {
		words = append(words, fmt.Sprint(a))
	}
	cmd := exec.Command(self, words...)
	cmd.Env = append(os.Environ(), traffic.Environment)
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// send runs a sender in a namespace to its end and returns its rate.
func send(h *lab.Host, kind string, args ...any) (float64, error) {
	cmd, err := end(kind, args...)
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := h.Start(cmd); err != nil {
		return 0, err
	}
	stop := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	text, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%s from %s: %w: %s", kind, h.Netns, err, strings.TrimSpace(said.String()))
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
}

// portOf is a rule's.
func portOf(protocol corev1.Protocol, number int) networkingv1.NetworkPolicyPort {
	n := intstr.FromInt32(int32(number))
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &n}
}

// podObject is pod a or b as the API server has it.
func podObject(s *site, name string) runtime.Object {
	if name == "a" {
		return apiserver.Pod("bench", "a", "node-a", app("a"), s.a.Addr4)
	}
	return apiserver.Pod("bench", "b", nodeName(len(s.nodes)-1), app("b"), s.b.Addr4)
}

// device is an interface's index in the calling thread's namespace.
func device(name string) (int, error) {
	d, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	return d.Index, nil
}
