package installed

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/lab"
)

// nodePort is a Service with ports of nodes for the pods of a name.
const nodePort = `
apiVersion: v1
kind: Service
metadata: {namespace: proxy, name: %[1]s}
spec:
  type: NodePort
  externalTrafficPolicy: %[3]s
  ipFamilyPolicy: RequireDualStack
  selector: {name: %[2]s}
  ports:
  - {name: tcp, port: 80, targetPort: 8080, nodePort: %[4]d}
  - {name: udp, protocol: UDP, port: 81, targetPort: 8081, nodePort: %[5]d}
---`

// letIn is a policy of the servers: friends, and these addresses alone.
func letIn(addrs ...string) string {
	text := `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: proxy, name: servers}
spec:
  podSelector: {matchExpressions: [{key: name, operator: In, values: [one, two]}]}
  ingress:
  - from:
    - podSelector: {matchLabels: {name: friend}}
`
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		text += fmt.Sprintf("    - ipBlock: {cidr: \"%s\"}\n", netip.PrefixFrom(addr, addr.BitLen()))
	}
	return text
}

// proxied are the parts of the scene with kube-proxy: server one on node1, two on node2.
type proxied struct {
	*world
	friend, stranger, farFriend, farStranger *lab.Host
	ip                                       map[string][]string // of Services
}

// proxy: real kube-proxy on both nodes beside Weir. Services' connections from outside the
// sockets of pods are its, and policy judges whom it leads where.
func (w *world) proxy() {
	w.proxies("nftables", func() {
		w.step("sockets", (*world).besideProxy)
		w.step("suite", func(w *world) { w.suite(policySpecs, "3/24") })
		// Without translation at sockets all Services are kube-proxy's.
		w.apply(w.manifest("cgroupRoot="))
		w.rolledOut()
		w.step("nat", (*world).besideProxy)
		w.step("suite-nat", func(w *world) { w.suite(policySpecs, "11/24") })
	})
	w.proxies("iptables", func() { w.step("nat-iptables", (*world).besideProxy) })
	w.apply(w.manifest())
	w.rolledOut()
}

// proxies of all nodes, in a mode, while this runs.
func (w *world) proxies(mode string, run func()) {
	w.Helper()
	for _, n := range w.Nodes {
		defer n.StartProxy(mode)()
	}
	run()
}

func (w *world) besideProxy() {
	w.namespace("proxy", "one@node1", "two@node2", "friend@node1", "stranger@node1", "far-friend@node2", "far-stranger@node2")
	w.kubectl("-n", "proxy", "label", "pod", "far-friend", "name=friend", "--overwrite")
	w.apply(fmt.Sprintf(nodePort, "one", "one", "Cluster", 31080, 31081) + fmt.Sprintf(nodePort, "two", "two", "Cluster", 32080, 32081) +
		fmt.Sprintf(nodePort, "local", "one", "Local", 30080, 30081))
	p := &proxied{world: w, ip: map[string][]string{},
		friend: w.pod("proxy", "friend"), stranger: w.pod("proxy", "stranger"), farFriend: w.pod("proxy", "far-friend"), farStranger: w.pod("proxy", "far-stranger")}
	for _, name := range []string{"one", "two"} {
		service, err := w.Admin.CoreV1().Services("proxy").Get(w.ctx, name, metav1.GetOptions{})
		w.must(err)
		p.ip[name] = service.Spec.ClusterIPs
	}
	p.open()
	node1, node2 := &w.Nodes[0].Host, &w.Nodes[1].Host
	p.enforce(w.Host.Addr4, w.Host.Addr6)
	for i, family := range []int{4, 6} {
		// By externalTrafficPolicy Cluster the outside comes as the node that it came to; Local
		// leaves its address, and where there is no server it ends.
		p.ports("the outside is let in", family, []asking{
			{&w.Host, "node1, Local", node1.Addr(family), lab.Answered, w.Host.Addr(family)},
			{&w.Host, "node2, Local", node2.Addr(family), lab.Silent, ""},
		}, 30080)
		p.ports("the outside is let in, the nodes are not", family, []asking{
			{&w.Host, "node1", node1.Addr(family), lab.Silent, ""},
			{&w.Host, "node2", node2.Addr(family), lab.Silent, ""},
		}, 31080, 32080)
		// A pod is itself at a port of its own node whose server is there. To a server elsewhere
		// kube-proxy has it come as a node: the one whose port it is.
		p.ports("friends are let in", family, []asking{
			{p.friend, "its node", node1.Addr(family), lab.Answered, ""},
			{p.stranger, "its node", node1.Addr(family), lab.Silent, ""},
			{p.farFriend, "its node", node2.Addr(family), lab.Silent, ""},
			{p.farStranger, "the other node", node1.Addr(family), lab.Silent, ""},
		}, 31080)
		p.ports("friends are let in", family, []asking{
			{p.farFriend, "its node", node2.Addr(family), lab.Answered, ""},
			{p.farStranger, "its node", node2.Addr(family), lab.Silent, ""},
			{p.friend, "its node", node1.Addr(family), lab.Silent, ""},
			{p.stranger, "the other node", node2.Addr(family), lab.Silent, ""},
		}, 32080)
		for _, s := range []string{"one", "two"} {
			var all []asking
			for _, f := range []*lab.Host{p.friend, p.farFriend} {
				all = append(all, asking{f, "ClusterIP of " + s, p.ip[s][i], lab.Answered, f.Addr(family)})
			}
			for _, f := range []*lab.Host{p.stranger, p.farStranger} {
				all = append(all, asking{f, "ClusterIP of " + s, p.ip[s][i], lab.Silent, ""})
			}
			w.askAll(all, 80, 81)
		}
		// The node's own processes, as those of hostNetwork pods: its own pods always, others' by policy.
		w.askAll([]asking{
			{node1, "ClusterIP of one", p.ip["one"][i], lab.Answered, ""},
			{node2, "ClusterIP of two", p.ip["two"][i], lab.Answered, ""},
			{node1, "ClusterIP of two", p.ip["two"][i], lab.Silent, ""},
			{node2, "ClusterIP of one", p.ip["one"][i], lab.Silent, ""},
		}, 80, 81)
	}
	// By pods' own processes, whose sockets are translated if that is on: this test's are not.
	for _, s := range []string{"one", "two"} {
		targets := at(p.ip[s], 80, 81)
		for from, want := range map[string]int{"friend": 0, "far-friend": 0, "stranger": len(targets), "far-stranger": len(targets)} {
			if failed := w.reach("proxy", from, targets...); len(failed) != want {
				w.Errorf("%s does not reach %v of ClusterIP of %s: %v", from, failed, s, targets)
			}
		}
	}
	p.enforce(node1.Addr4, node1.Addr6, node2.Addr4, node2.Addr6)
	for i, family := range []int{4, 6} {
		p.ports("the outside is let in no more", family, []asking{{&w.Host, "node1, Local", node1.Addr(family), lab.Silent, ""}}, 30080)
		p.ports("nodes are let in", family, []asking{
			{&w.Host, "node1", node1.Addr(family), lab.Answered, node1.Addr(family)},
			{&w.Host, "node2", node2.Addr(family), lab.Answered, node2.Addr(family)},
		}, 31080, 32080)
		p.ports("nodes are let in", family, []asking{
			{p.stranger, "its node", node1.Addr(family), lab.Silent, ""},
			{p.farStranger, "its node", node2.Addr(family), lab.Answered, node2.Addr(family)},
		}, 31080)
		p.ports("nodes are let in", family, []asking{
			{p.farStranger, "its node", node2.Addr(family), lab.Silent, ""},
			{p.stranger, "its node", node1.Addr(family), lab.Answered, node1.Addr(family)},
		}, 32080)
		w.askAll([]asking{
			{node1, "ClusterIP of two", p.ip["two"][i], lab.Answered, node1.Addr(family)},
			{node2, "ClusterIP of one", p.ip["one"][i], lab.Answered, node2.Addr(family)},
		}, 80, 81)
	}
}

// ports of nodes: TCP's are these, UDP's one above.
func (p *proxied) ports(when string, family int, all []asking, ports ...int) {
	p.Helper()
	for _, port := range ports {
		some := slices.Clone(all)
		for i := range some {
			some[i].what += fmt.Sprintf(", when %s, IPv%d,", when, family)
		}
		p.askAll(some, port, port+1)
	}
}

// open: without policy everything is reached, once kube-proxy has the Services.
func (p *proxied) open() {
	p.Helper()
	for _, n := range p.Nodes {
		for _, port := range []int{31080, 32080} {
			for _, family := range []int{4, 6} {
				p.until(fmt.Sprintf("%s serves port %d, IPv%d", n.Name, port, family), func() error {
					_, got, err := ask(&p.Host, "tcp", n.Addr(family), port)
					if err == nil && got != lab.Answered {
						err = errors.New(got.String())
					}
					return err
				})
			}
		}
	}
}

// enforce a policy, and wait for it on both nodes.
func (p *proxied) enforce(addrs ...string) {
	p.Helper()
	p.apply(letIn(addrs...))
	for _, n := range p.Nodes {
		p.kubectl("-n", "kube-system", "exec", p.agent(n), "--", "weir", "status", "--wait")
	}
	for _, s := range []string{"one", "two"} {
		for _, addr := range p.addresses("proxy", s) {
			if _, got, err := ask(p.stranger, "tcp", addr, 8080); got != lab.Silent || err != nil {
				p.Errorf("a stranger to %s at %s: %v %v", s, addr, got, err)
			}
		}
	}
}
