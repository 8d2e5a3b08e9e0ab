package installed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/bare"
	"github.com/weirnet/weir/tests/lab"
)

// other is a network of another CNI plugin, called cbr0.
type other struct {
	plugin  string // of bin/
	file    string // its configuration on the nodes
	text    string // with %[1]s and %[2]s for the node's ranges
	cleanup string // of a node: what the plugin leaves when its pods are gone
	specs   string // of upstream's, the part that runs there
}

var others = []other{
	{"bridge", "10-cbr0.conflist", `{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "%[1]s"}], [{"subnet": "%[2]s"}]]}},
  {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}]}
`, "ip link del cni0", "1/16"},
	{"ptp", "10-cbr0.conf", `{"cniVersion": "1.0.0", "name": "cbr0", "type": "ptp", "ipam": {"type": "host-local",
  "ranges": [[{"subnet": "%[1]s"}], [{"subnet": "%[2]s"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}
`, "true", "9/16"},
}

// chained: behind another plugin's network, in a list and in a file of its own, which is as
// before when Weir is gone.
func (w *world) chained() {
	w.takeOff("")
	for _, o := range others {
		w.step(o.plugin, func(w *world) { w.behind(o) })
	}
	w.install()
	w.smoke()
}

func (w *world) behind(o other) {
	w.ways("add")
	for _, n := range w.Nodes {
		w.put(n, o)
	}
	w.must(w.Ready(w.ctx))
	w.namespace("before", "a@node1", "b@node2")
	w.installWith("cniChain=cbr0", "routing=none", "masquerade=false")
	w.step("smoke", (*world).smoke)
	if o.plugin == "bridge" { // ptp's pods are ready before their IPv6 addresses are (DAD)
		w.step("restart", (*world).restart)
	}
	w.step("e2e", func(w *world) { w.suite(policySpecs, o.specs) })
	w.step("uninstall", func(w *world) {
		friend, stranger, served := w.scene()
		if out := w.kubectl("-n", "kube-system", "exec", "ds/weir-agent", "--", "weir", "status"); !strings.Contains(out, "of them chained") {
			w.Errorf("weir status:\n%s", out)
		}
		w.takeOff("life/server")
		for _, n := range w.Nodes {
			if out, err := n.Inside(w.ctx, "ls", "-A", "/etc/cni/net.d"); err != nil || strings.TrimSpace(out) != o.file {
				w.Errorf("%s has the configurations (%v)\n%s", n.Name, err, out)
			}
			if out, err := n.Inside(w.ctx, "cat", "/etc/cni/net.d/"+o.file); err != nil || out != w.configuration(n, o) {
				w.Errorf("%s: the other's configuration became (%v)\n%s", n.Name, err, out)
			}
		}
		w.must(w.Ready(w.ctx))
		// What ran goes on, without policy, and new pods start.
		w.apply(server("life", "late", "node1"))
		w.kubectl("-n", "life", "wait", "--for=condition=Ready", "pod", "late", "--timeout="+patience.String())
		for _, from := range []*lab.Host{friend, stranger, w.pod("life", "late")} {
			for _, family := range []int{4, 6} {
				w.until(fmt.Sprintf("%s reaches %s without Weir, IPv%d", from.Name, served.Name, family), func() error {
					got, err := from.Probe("tcp", served.Addr(family), 8080)
					if err == nil && got != lab.Answered {
						err = errors.New(got.String())
					}
					return err
				})
			}
		}
	})
	w.kubectl("delete", "namespace", "before", "--timeout="+patience.String())
	for _, n := range w.Nodes {
		_, err := n.Inside(w.ctx, "sh", "-c", "rm /etc/cni/net.d/"+o.file+" /opt/cni/bin/"+o.plugin+" && "+o.cleanup)
		w.must(err)
	}
	w.ways("del")
}

// ranges of a node's pods.
func (w *world) ranges(n *bare.Node) []string {
	w.Helper()
	node, err := w.Admin.CoreV1().Nodes().Get(w.ctx, n.Name, metav1.GetOptions{})
	w.must(err)
	return node.Spec.PodCIDRs
}

func (w *world) configuration(n *bare.Node, o other) string {
	w.Helper()
	ranges := w.ranges(n)
	return fmt.Sprintf(o.text, ranges[0], ranges[1])
}

// put another plugin's network on a node.
func (w *world) put(n *bare.Node, o other) {
	w.Helper()
	program, err := os.ReadFile(root + "/bin/" + o.plugin)
	w.must(err)
	w.must(os.WriteFile(filepath.Join(n.Path("/opt/cni/bin"), o.plugin), program, 0o755))
	w.must(os.WriteFile(filepath.Join(n.Path("/etc/cni/net.d"), o.file), []byte(w.configuration(n, o)), 0o644))
}

// ways to pods that are not Weir's: from node to node, and from the outside.
func (w *world) ways(verb string) {
	w.Helper()
	for _, to := range w.Nodes {
		for _, at := range append([]*lab.Host{&w.Host}, &w.Nodes[0].Host, &w.Nodes[1].Host) {
			if at.Netns == to.Netns {
				continue
			}
			for i, r := range w.ranges(to) {
				_, err := at.Run(w.ctx, "ip", "route", verb, r, "via", []string{to.Addr4, to.Addr6}[i])
				w.must(err)
			}
		}
	}
}
