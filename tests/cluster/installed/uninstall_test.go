package installed

import (
	"errors"
	"fmt"
	"strings"

	"github.com/weirnet/weir/tests/cluster/bare"
	"github.com/weirnet/weir/tests/lab"
)

// uninstall does what docs/install.md says, finds nothing of Weir on the nodes, and installs
// it again.
func (w *world) uninstall() {
	friend, stranger, _ := w.scene()
	w.apply(w.manifest("uninstall=true"))
	w.rolledOut()
	said := w.kubectl("-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=weir", "-c", "uninstall", "--prefix", "--tail=-1")
	if n := strings.Count(said, "Weir is off this node"); n != len(w.Nodes) {
		w.Errorf("%d nodes say that Weir is off:\n%s", n, said)
	}
	if !strings.Contains(said, "life/server") {
		w.Errorf("the pods without policy are not named:\n%s", said)
	}
	_, err := w.KubectlWith(w.ctx, w.manifest("uninstall=true"), "delete", "-f", "-", "--wait")
	w.must(err)
	w.kubectl("-n", "kube-system", "delete", "configmap", "weir-agent")
	w.kubectl("-n", "kube-system", "delete", "lease", "-l", "app.kubernetes.io/name=weir")
	for _, n := range w.Nodes {
		w.nothingOn(n)
	}
	w.nothingInTheAPI()
	if got, err := stranger.Probe("tcp", friend.Addr4, 8080); got != lab.Answered || err != nil {
		w.Errorf("two pods of a node, after: %v %v", got, err)
	}
	// Pods of before end only with a network that takes them back.
	w.install()
	w.kubectl("delete", "namespace", "life", "--timeout="+patience.String())
	w.scene()
}

// nothingOn a node is Weir's. What docs/install.md says stays may.
func (w *world) nothingOn(n *bare.Node) {
	w.Helper()
	for what, script := range map[string]string{
		"CNI configuration": "ls /etc/cni/net.d",
		"plugin":            "ls /opt/cni/bin | grep weir || true",
		"state":             "ls -A /run/weir 2>/dev/null || true",
		"pins":              "ls -A /sys/fs/bpf | grep -v '[.]debug$' || true", // the kernel's own
		"routes":            "ip route show proto 119; ip -6 route show proto 119",
		"rules":             "nft list ruleset | grep -i weir || true",
		"programs":          "bpftool net show | grep -E 'weir|from_|to_|tcx' || true",
	} {
		out, err := n.Inside(w.ctx, "sh", "-c", script)
		if err != nil || strings.TrimSpace(out) != "" {
			w.Errorf("%s has %s: %v\n%s", n.Name, what, err, out)
		}
	}
}

// nothingInTheAPI is Weir's.
func (w *world) nothingInTheAPI() {
	w.Helper()
	w.until("nothing of Weir in the API", func() error {
		out, err := w.Kubectl(w.ctx, "get", "all,configmap,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,lease,validatingadmissionpolicy,validatingadmissionpolicybinding", "-A", "-o", "name")
		if left := grep(out, "weir"); err == nil && left != "" {
			err = errors.New(left)
		}
		return err
	})
}

func grep(text, word string) (out string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			out += fmt.Sprint(line)
		}
	}
	return out
}
