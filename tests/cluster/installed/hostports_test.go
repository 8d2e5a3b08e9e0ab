package installed

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/weirnet/weir/tests/cluster/bare"
	"github.com/weirnet/weir/tests/lab"
)

const hostPorts = `
apiVersion: v1
kind: Pod
metadata: {namespace: ports, name: web, labels: {app: server, name: web}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: ` + agnhost + `
    args: [netexec, --http-port=8080, --udp-port=8081]
    ports: [{containerPort: 8080, hostPort: 18080}, {containerPort: 8081, hostPort: 18081, protocol: UDP}]
    readinessProbe: {httpGet: {port: 8080, path: /hostname}, periodSeconds: 1}
`

// hostPortPolicy lets in one address of each family, and who is called friend.
func hostPortPolicy(addrs ...string) string {
	var blocks []string
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		blocks = append(blocks, fmt.Sprintf(`{ipBlock: {cidr: "%s"}}`, netip.PrefixFrom(addr, addr.BitLen())))
	}
	return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: ports, name: web}
spec:
  podSelector: {matchLabels: {name: web}}
  ingress: [{from: [{podSelector: {matchLabels: {name: friend}}}, %s]}]
`, strings.Join(blocks, ", "))
}

// hostports: a pod's hostPorts are reached by way of its node, by whom policy lets in at the
// pod, and the pod sees who it is; a node that has the configuration of an older version gets
// this one's.
func (w *world) hostports() {
	w.olderConfiguration(w.Nodes[0])
	w.namespace("ports", "friend@node2", "stranger@node2", "friend-here@node1", "stranger-here@node1")
	w.kubectl("-n", "ports", "label", "pod", "friend-here", "name=friend", "--overwrite")
	w.apply(hostPorts)
	w.kubectl("-n", "ports", "wait", "--for=condition=Ready", "pod", "web", "--timeout="+patience.String())
	node1, node2 := w.Nodes[0], w.Nodes[1]
	pods := map[string]*lab.Host{}
	for _, name := range []string{"friend", "stranger", "friend-here", "stranger-here"} {
		pods[name] = w.pod("ports", name)
	}
	for _, family := range []int{4, 6} {
		to := node1.Addr(family)
		w.askAll([]asking{{&w.Host, "web's hostPort", to, lab.Answered, w.Host.Addr(family)}}, 18080, 18081)
	}
	w.apply(hostPortPolicy(w.Host.Addr4, w.Host.Addr6))
	w.until("the policy is enforced", func() error {
		_, got, err := ask(pods["stranger"], "tcp", w.addresses("ports", "web")[0], 8080)
		if err == nil && got != lab.Silent {
			err = fmt.Errorf("a stranger is let in")
		}
		return err
	})
	for _, family := range []int{4, 6} {
		to := node1.Addr(family)
		w.askAll([]asking{
			{&w.Host, "web's hostPort", to, lab.Answered, w.Host.Addr(family)},
			{&node1.Host, "web's hostPort", to, lab.Answered, ""},
			{&node2.Host, "web's hostPort", to, lab.Silent, ""},
			{pods["friend"], "web's hostPort", to, lab.Answered, pods["friend"].Addr(family)},
			{pods["stranger"], "web's hostPort", to, lab.Silent, ""},
			{pods["friend-here"], "web's hostPort", to, lab.Answered, pods["friend-here"].Addr(family)},
			{pods["stranger-here"], "web's hostPort", to, lab.Silent, ""},
		}, 18080, 18081)
	}
	// Another address than the client's own.
	w.apply(hostPortPolicy(node2.Addr4, node2.Addr6))
	for _, family := range []int{4, 6} {
		w.until(fmt.Sprintf("who is let in no more is not, IPv%d", family), func() error {
			_, got, err := ask(&w.Host, "tcp", node1.Addr(family), 18080)
			if err == nil && got != lab.Silent {
				err = fmt.Errorf("the outside is %s", got)
			}
			return err
		})
		w.askAll([]asking{{&node2.Host, "web's hostPort", node1.Addr(family), lab.Answered, node2.Addr(family)}}, 18080, 18081)
	}
	w.kubectl("-n", "ports", "delete", "pod", "web", "--wait")
	w.until("nothing is left of its ports", func() error {
		out, err := node1.Inside(w.ctx, "nft", "list", "ruleset")
		if left := matching(out, regexp.MustCompile("dport 1808")); err == nil && left != "" {
			err = fmt.Errorf("nftables has\n%s", left)
		}
		return err
	})
}

// olderConfiguration puts on a node what a version without portmap wrote.
func (w *world) olderConfiguration(n *bare.Node) {
	w.Helper()
	const file = "/etc/cni/net.d/05-weir.conflist"
	now, err := n.Inside(w.ctx, "cat", file)
	w.must(err)
	var list map[string]any
	w.must(json.Unmarshal([]byte(now), &list))
	plugins := list["plugins"].([]any)
	if len(plugins) != 2 {
		w.Fatalf("the configuration is not weir-cni and portmap:\n%s", now)
	}
	list["plugins"] = plugins[:1]
	without, err := json.Marshal(list)
	w.must(err)
	_, err = n.Inside(w.ctx, "sh", "-c", "cat >"+file+" <<'E'\n"+string(without)+"\nE")
	w.must(err)
	w.kubectl("-n", "kube-system", "rollout", "restart", "daemonset/weir-agent")
	w.rolledOut()
	if got, err := n.Inside(w.ctx, "cat", file); err != nil || got != now {
		w.Errorf("an older version's configuration became (%v)\n%s", err, got)
	}
}
