package installed

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weirnet/weir/tests/cluster/bare"
	"github.com/weirnet/weir/tests/lab"
)

// mistakes of those who run the cluster: each is said where they look, and changes no verdict.
func (w *world) mistakes() {
	friend, stranger, served := w.scene()
	node := w.Nodes[0]
	holds := func(when string) {
		w.Helper()
		for from, want := range map[*lab.Host]lab.Answer{friend: lab.Answered, stranger: lab.Silent} {
			if got, err := from.Probe("tcp", served.Addr4, 8080); got != want || err != nil {
				w.Errorf("%s, %s to the server: %v %v", when, from.Name, got, err)
			}
		}
	}
	// A ConfigMap with a typo, which an agent meets when it starts.
	settings := w.kubectl("-n", "kube-system", "get", "configmap", "weir-agent", "-o", "jsonpath={.data.weir\\.yaml}")
	w.kubectl("-n", "kube-system", "patch", "configmap", "weir-agent", "--type=merge", "-p", `{"data": {"weir.yaml": "rooting: native\n"}}`)
	w.said(node, `weir.yaml:1: unknown key "rooting"`)
	holds("with a typo in the ConfigMap")
	w.apply(w.manifest())
	if again := w.kubectl("-n", "kube-system", "get", "configmap", "weir-agent", "-o", "jsonpath={.data.weir\\.yaml}"); again != settings {
		w.Fatalf("the settings became\n%s", again)
	}
	w.anew(node)

	// A right that is missing.
	w.kubectl("patch", "clusterrole", "weir-agent", "--type=json", "-p", `[{"op": "remove", "path": "/rules/2"}]`)
	w.said(node, `"networkpolicies" in API group "networking.k8s.io"`, "apply deploy/rbac.yaml")
	holds("without a right")
	w.apply(w.manifest())
	w.agentsReady()
	w.rolledOut()

	// Pods that are deleted while they are made leave nothing.
	w.churn(node)
	holds("after pods that came and went")
}

// anew starts a node's agent.
func (w *world) anew(n *bare.Node) {
	w.Helper()
	w.kubectl("-n", "kube-system", "delete", "pod", w.agent(n), "--wait")
	w.rolledOut()
}

// said by an agent that starts, in `kubectl describe`.
func (w *world) said(n *bare.Node, words ...string) {
	w.Helper()
	w.kubectl("-n", "kube-system", "delete", "pod", w.agent(n), "--wait")
	var text string
	w.until(fmt.Sprintf("kubectl describe says %q", words), func() error {
		pod, err := w.Kubectl(w.ctx, "-n", "kube-system", "get", "pod", "-l", "app.kubernetes.io/name=weir", "--field-selector=spec.nodeName="+n.Name, "-o", "name")
		if err != nil || strings.TrimSpace(pod) == "" {
			return errors.Join(err, errors.New("no pod yet"))
		}
		text, err = w.Kubectl(w.ctx, "-n", "kube-system", "describe", strings.TrimSpace(pod))
		for _, word := range words {
			if err == nil && !strings.Contains(text, word) {
				err = fmt.Errorf("no %q in\n%s", word, text[max(0, len(text)-1500):])
			}
		}
		return err
	})
}

func (w *world) churn(n *bare.Node) {
	w.Helper()
	for i := range 12 {
		name := fmt.Sprint("brief", i)
		w.apply(server("life", name, n.Name))
		time.Sleep(time.Duration(i) * 80 * time.Millisecond) // from before its ADD to after
		w.kubectl("-n", "life", "delete", "pod", name, "--grace-period=0", "--force")
	}
	w.until("the agent has the pods that are left", func() error {
		out, err := w.Kubectl(w.ctx, "-n", "kube-system", "exec", w.agent(n), "--", "weir", "endpoints")
		if strings.Contains(out, "life/brief") {
			err = errors.Join(err, errors.New(out))
		}
		return err
	})
	w.leases(n)
	links, err := n.Inside(w.ctx, "ip", "-o", "link", "show", "type", "veth")
	w.must(err)
	pods := len(slices.DeleteFunc(strings.Split(links, "\n"), func(l string) bool { return !strings.Contains(l, ": weir") }))
	if pods != 2 { // friend and stranger
		w.Errorf("%s has %d interfaces of pods:\n%s", n.Name, pods, links)
	}
}
