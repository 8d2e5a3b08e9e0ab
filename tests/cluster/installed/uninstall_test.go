package installed

import (
	"errors"
	"regexp"
	"strings"

	"github.com/weirnet/weir/tests/cluster/bare"
	"github.com/weirnet/weir/tests/lab"
)

// uninstall does what docs/install.md says, finds nothing of Weir on the nodes, and installs
// it again.
func (w *world) uninstall() {
	friend, stranger, _ := w.scene()
	w.takeOff("life/server")
	if got, err := stranger.Probe("tcp", friend.Addr4, 8080); got != lab.Answered || err != nil {
		w.Errorf("two pods of a node, after: %v %v", got, err)
	}
	// Pods of before end only with a network that takes them back.
	w.install()
	w.kubectl("delete", "namespace", "life", "--timeout="+patience.String())
	w.scene()
}

// takeOff Weir from all nodes, where this pod runs, and look for what is left of it.
func (w *world) takeOff(pod string) {
	w.Helper()
	w.apply(w.manifest("uninstall=true"))
	w.rolledOut()
	said := w.kubectl("-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=weir", "-c", "uninstall", "--prefix", "--tail=-1")
	if n := strings.Count(said, "Weir is off this node"); n != len(w.Nodes) {
		w.Errorf("%d nodes say that Weir is off:\n%s", n, said)
	}
	if !strings.Contains(said, pod) {
		w.Errorf("the pods without policy are not named:\n%s", said)
	}
	_, err := w.KubectlWith(w.ctx, w.manifest("uninstall=true"), "delete", "-f", "-", "--wait")
	w.must(err)
	w.kubectl("-n", "kube-system", "delete", "configmap", "weir-agent")
	w.isOff()
}

// isOff wants nothing of Weir to be left, but for its leases, which this removes.
func (w *world) isOff() {
	w.Helper()
	w.kubectl("-n", "kube-system", "delete", "lease", "-l", "app.kubernetes.io/name=weir")
	for _, n := range w.Nodes {
		w.nothingOn(n)
	}
	w.nothingInTheAPI()
}

// nothingOn a node is Weir's. What docs/install.md says stays may.
func (w *world) nothingOn(n *bare.Node) {
	w.Helper()
	any, ours := regexp.MustCompile(`\S`), regexp.MustCompile(`(?i)weir`)
	for _, look := range []struct {
		what, command string
		ours          *regexp.Regexp
	}{
		{"CNI configuration", "ls -A /etc/cni/net.d", ours},
		{"plugin", "ls /opt/cni/bin", ours},
		{"state", "find /run -mindepth 1 -path /run/weir/*", any},
		{"pins", "ls --ignore=*.debug /sys/fs/bpf", any}, // those are the kernel's own
		{"routes", "ip route show table all proto 119", any},
		{"IPv6 routes", "ip -6 route show table all proto 119", any},
		{"rules", "nft list ruleset", ours},
		{"programs", "bpftool net show", regexp.MustCompile(`weir|from_|to_|tcx|shield`)},
	} {
		out, err := n.Inside(w.ctx, strings.Fields(look.command)...)
		if err != nil { // of a look that failed nothing is known
			w.Errorf("%s: %s: %v", n.Name, look.what, err)
		}
		if left := matching(out, look.ours); left != "" {
			w.Errorf("%s has %s:\n%s", n.Name, look.what, left)
		}
	}
}

// nothingInTheAPI is Weir's.
func (w *world) nothingInTheAPI() {
	w.Helper()
	w.until("nothing of Weir in the API", func() error {
		out, err := w.Kubectl(w.ctx, "get", "all,configmap,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,lease,validatingadmissionpolicy,validatingadmissionpolicybinding", "-A", "-o", "name")
		if left := matching(out, regexp.MustCompile("weir")); err == nil && left != "" {
			err = errors.New(left)
		}
		return err
	})
}

// matching lines of a text.
func matching(text string, what *regexp.Regexp) (out string) {
	for line := range strings.Lines(text) {
		if what.MatchString(line) {
			out += line
		}
	}
	return out
}
