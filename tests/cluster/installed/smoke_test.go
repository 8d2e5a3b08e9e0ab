package installed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/control"
	"github.com/weirnet/weir/tests/lab"
)

const agnhost = "localhost/agnhost:2.63.0"

// server is a pod that answers on TCP port 8080 and UDP port 8081.
func server(namespace, name, node string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s, labels: {app: server, name: %s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: %s
    args: [netexec, --http-port=8080, --udp-port=8081]
    readinessProbe: {httpGet: {port: 8080, path: /hostname}, periodSeconds: 1}
---`, namespace, name, name, node, agnhost)
}

// namespace makes one that goes with the step, with pods on nodes, and waits for those. A pod
// is NAME@NODE.
func (w *world) namespace(name string, pods ...string) {
	w.Helper()
	text := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n---", name)
	for _, p := range pods {
		pod, node, _ := strings.Cut(p, "@")
		text += server(name, pod, node)
	}
	w.Cleanup(func() {
		if _, err := w.Kubectl(context.Background(), "delete", "namespace", name, "--ignore-not-found"); err != nil {
			w.Error(err)
		}
	})
	w.until("the namespace's service account", func() error {
		_, err := w.KubectlWith(w.ctx, text, "apply", "-f", "-")
		return err
	})
	w.kubectl("-n", name, "wait", "--for=condition=Ready", "pod", "--all", "--timeout="+patience.String())
}

func (w *world) until(what string, done func() error) {
	w.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(end) || w.ctx.Err() != nil {
			w.Fatalf("not within %s: %s: %v", patience, what, errors.Join(err, w.ctx.Err()))
		}
	}
}

// addresses of a pod, one of each family.
func (w *world) addresses(namespace, name string) []string {
	w.Helper()
	p, err := w.Admin.CoreV1().Pods(namespace).Get(w.ctx, name, metav1.GetOptions{})
	w.must(err)
	return ips(p)
}

func ips(p *corev1.Pod) (out []string) {
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// reach tries what a pod can reach: PROTOCOL/ADDRESS:PORT each. It returns what it could not.
func (w *world) reach(namespace, from string, targets ...string) (failed []string) {
	w.Helper()
	script := ""
	for _, t := range targets {
		protocol, at, _ := strings.Cut(t, "/")
		script += fmt.Sprintf("/agnhost connect --protocol=%s --timeout=2s '%s' >/dev/null 2>&1 || echo %s\n", protocol, at, t)
	}
	out := w.kubectl("-n", namespace, "exec", from, "--", "sh", "-c", script)
	return strings.Fields(out)
}

// at is where a server answers.
func at(addrs []string, tcp, udp int) (out []string) {
	for _, a := range addrs {
		if strings.Contains(a, ":") {
			a = "[" + a + "]"
		}
		out = append(out, fmt.Sprintf("tcp/%s:%d", a, tcp), fmt.Sprintf("udp/%s:%d", a, udp))
	}
	return out
}

const dualStack = `
apiVersion: v1
kind: Service
metadata: {namespace: smoke, name: server}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 81, targetPort: 8081}]
`

// smoke: pods of both nodes reach each other, a Service and the outside, on both families;
// nodes reach all pods; kubelet's probes reach those that are isolated; the plugin of kubectl
// asks all nodes.
func (w *world) smoke() {
	pods := []string{"a", "b", "c"}
	w.namespace("smoke", "a@node1", "b@node1", "c@node2")
	w.apply(dualStack)
	service, err := w.Admin.CoreV1().Services("smoke").Get(w.ctx, "server", metav1.GetOptions{})
	w.must(err)
	api, err := w.Admin.CoreV1().Services("default").Get(w.ctx, "kubernetes", metav1.GetOptions{})
	w.must(err)
	targets := at(service.Spec.ClusterIPs, 80, 81)
	targets = append(targets, "tcp/"+api.Spec.ClusterIP+":443")
	w.until("the Service has all its backends everywhere", func() error {
		for _, p := range pods {
			for range 5 { // a backend is chosen at random
				if failed := w.reach("smoke", p, targets...); len(failed) > 0 {
					return fmt.Errorf("%s does not reach %v", p, failed)
				}
			}
		}
		return nil
	})
	for _, p := range pods {
		addrs := w.addresses("smoke", p)
		if len(addrs) != 2 {
			w.Errorf("pod %s has addresses %v", p, addrs)
		}
		targets = append(targets, at(addrs, 8080, 8081)...)
	}
	// The control plane's network knows no way to pods: it answers nodes.
	outside, stop := context.WithCancel(w.ctx)
	defer stop()
	w.must(w.Host.Serve(outside, 9999))
	targets = append(targets, at([]string{w.Host.Addr4, w.Host.Addr6}, 9999, 9999)...)
	for _, p := range pods {
		if failed := w.reach("smoke", p, targets...); len(failed) > 0 {
			w.Errorf("%s does not reach %v", p, failed)
		}
	}
	for _, n := range w.Nodes {
		for _, p := range pods {
			for _, addr := range w.addresses("smoke", p) {
				if got, err := n.Probe("tcp", addr, 8080); got != lab.Answered || err != nil {
					w.Errorf("%s to pod %s at %s: %v %v", n.Name, p, addr, got, err)
				}
			}
		}
	}
	w.past()
	w.isolated()
	w.plugin()
}

// past: what the pods of two nodes said to each other went past both nodes' stacks.
func (w *world) past() {
	w.Helper()
	for _, n := range w.Nodes {
		out := w.kubectl("-n", "kube-system", "exec", w.agent(n), "--", "weir", "status")
		if !strings.Contains(out, "by BPF to pods of 1 other node\n") {
			w.Errorf("weir status of %s:\n%s", n.Name, out)
		}
		flows := w.kubectl("-n", "kube-system", "exec", w.agent(n), "--", "weir", "flows", "-o", "json", "--from-pod", "smoke/a", "--to-pod", "smoke/c")
		if all, past := strings.Count(flows, "\n"), strings.Count(flows, `\"path\":\"bpf\"`); past == 0 || past < all/2 {
			w.Errorf("%s: of %d records of pod a to pod c %d say that it was by BPF:\n%s", n.Name, all, past, flows)
		}
	}
}

// isolated: a pod that nobody may reach, and may reach nobody, becomes ready all the same.
func (w *world) isolated() {
	w.Helper()
	w.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: smoke, name: isolated}
spec: {podSelector: {matchLabels: {name: d}}, policyTypes: [Ingress, Egress]}
---` + strings.Replace(server("smoke", "d", "node2"), "app: server", "app: isolated", 1)) // no backend of the Service
	w.kubectl("-n", "smoke", "wait", "--for=condition=Ready", "pod", "d", "--timeout="+patience.String())
	addrs := w.addresses("smoke", "d")
	if failed := w.reach("smoke", "a", at(addrs, 8080, 8081)...); len(failed) != 4 {
		w.Errorf("an isolated pod can be reached: of %v only %v fail", at(addrs, 8080, 8081), failed)
	}
	if failed := w.reach("smoke", "d", at(w.addresses("smoke", "a"), 8080, 8081)...); len(failed) != 4 {
		w.Errorf("an isolated pod reaches another: only %v fail", failed)
	}
}

// plugin of kubectl, as a user has it.
func (w *world) plugin() {
	w.Helper()
	weir, err := filepath.Abs(root + "/bin/weir")
	w.must(err)
	bin := w.TempDir()
	w.must(os.Symlink(weir, bin+"/kubectl-weir"))
	for args, want := range map[string][]string{
		"status": {"node1", "node2"},
		"policy explain --from smoke/a --to smoke/d --port 8080/tcp": {"isolated"},
		"flows --verdict dropped":                                    {"smoke/d"},
	} {
		cmd := control.In(w.Host.Netns, filepath.Join(os.Getenv("WEIR_CLUSTER_BIN"), "kubectl"), append([]string{"weir"}, strings.Fields(args)...)...)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("WEIR_CLUSTER_BIN")+":"+os.Getenv("PATH"), "KUBECONFIG="+w.Kubeconfig(w.Addr(), ""))
		out, err := cmd.CombinedOutput()
		for _, word := range want {
			if !strings.Contains(string(out), word) {
				err = errors.Join(err, fmt.Errorf("no %q", word))
			}
		}
		if err != nil {
			w.Errorf("kubectl weir %s: %v\n%s", args, err, out)
		}
	}
}
