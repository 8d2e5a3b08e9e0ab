package installed

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/bare"
	"github.com/weirnet/weir/tests/cluster/latency"
	"github.com/weirnet/weir/tests/lab"
)

// starter is a pod whose first deed is to talk to a server; then it says how long that took.
const starter = `
apiVersion: v1
kind: Pod
metadata: {namespace: latency, name: %s, labels: {app: starter}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: ` + agnhost + `
    command: [/bin/sh, -c]
    args:
    - |
      read a b </proc/uptime; /agnhost connect %s:8080 --timeout=20s; s=$?; read c d </proc/uptime
      echo $s $a $c
      exec /agnhost pause
`

// starts of pods: how long the plugin's ADD takes; how long a new pod's first connection, to
// a pod of the other node that lets it in by its label; and how soon a pod of the other node
// that may talk to such pods alone reaches it, once its address is in the API.
func (w *world) starts() {
	w.namespace("latency", "server@node2", "client@node2")
	_, err := w.Admin.NetworkingV1().NetworkPolicies("latency").Create(w.ctx, ingress("starters", "app", "starter"), metav1.CreateOptions{})
	w.must(err)
	_, err = w.Admin.NetworkingV1().NetworkPolicies("latency").Create(w.ctx, &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "latency", Name: "client"},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: byName("client"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "starter"}}}}}}},
	}, metav1.CreateOptions{})
	w.must(err)
	client, server := w.pod("latency", "client"), w.addresses("latency", "server")[0]
	adds := w.clockADD(w.Nodes[0])
	var shown, out, in latency.Figures
	lost := 0
	for i := range *rounds {
		name := fmt.Sprint("starter", i)
		began := time.Now()
		w.apply(fmt.Sprintf(starter, name, server))
		pod := w.addressOf("latency", name)
		seen := time.Now()
		shown = append(shown, seen.Sub(began))
		w.reachable(client, pod)
		in = append(in, time.Since(seen))
		took := w.firstDeed(name)
		if out = append(out, took); took >= time.Second { // TCP sends a lost SYN again after one
			lost++
		}
		w.kubectl("-n", "latency", "delete", "pod", name, "--wait=false")
	}
	w.report("CNI ADD", adds())
	w.report("pod applied to its address in the API", shown)
	w.report("a new pod's first connection", out)
	w.report("a new pod's address in the API to reachable", in)
	w.Logf("of %d first connections, %d lost their first packet", len(out), lost)
	if 3*lost > len(out) { // a slow machine may lose one, and half are lost without announcements
		w.Errorf("first connections lose packets: is a pod announced?")
	}
}

// addressOf a pod, as soon as the API has it.
func (w *world) addressOf(namespace, name string) string {
	w.Helper()
	watch, err := w.Admin.CoreV1().Pods(namespace).Watch(w.ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: "0"})
	w.must(err)
	defer watch.Stop()
	for e := range watch.ResultChan() {
		if p, ok := e.Object.(*corev1.Pod); ok && p.Status.PodIP != "" {
			return p.Status.PodIP
		}
	}
	w.Fatalf("pod %s/%s has no address", namespace, name)
	return ""
}

// reachable waits for any answer of a pod: a refusal is one.
func (w *world) reachable(from *lab.Host, addr string) {
	w.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		conn, err := from.ConnectWithin(addr, 1, 5*time.Millisecond)
		if err == nil {
			conn.Close()
		}
		if answer, err := lab.Judge(err); err == nil && answer != lab.Silent {
			return
		}
	}
	w.Fatalf("%s does not reach %s", from.Name, addr)
}

// firstDeed is how long a starter's took.
func (w *world) firstDeed(name string) (took time.Duration) {
	w.Helper()
	w.until(name+" said how long it took", func() error {
		said, err := w.Kubectl(w.ctx, "-n", "latency", "logs", name)
		if err != nil {
			return err
		}
		line, _, whole := strings.Cut(said, "\n")
		f := strings.Fields(line)
		if !whole || len(f) != 3 {
			return fmt.Errorf("said %q", said)
		}
		if f[0] != "0" {
			w.Fatalf("%s did not reach the server: %s", name, said)
		}
		from, err := strconv.ParseFloat(f[1], 64)
		w.must(err)
		to, err := strconv.ParseFloat(f[2], 64)
		w.must(err)
		took = time.Duration((to - from) * float64(time.Second))
		return nil
	})
	return took
}

// clockADD has the plugin's ADDs on a node timed until the function is called.
func (w *world) clockADD(n *bare.Node) func() latency.Figures {
	w.Helper()
	_, err := n.Inside(w.ctx, "bash", "-c", `cd /opt/cni/bin && mv weir-cni weir-cni.real && cat >.clock <<'E' && chmod 755 .clock && mv .clock weir-cni
#!/bin/bash
began=${EPOCHREALTIME/./}
/opt/cni/bin/weir-cni.real
status=$?
[ "$CNI_COMMAND" != ADD ] || echo $((${EPOCHREALTIME/./} - began)) >>/run/weirt-adds
exit $status
E`)
	w.must(err)
	return func() (f latency.Figures) {
		w.Helper()
		out, err := n.Inside(w.ctx, "bash", "-c", "cd /opt/cni/bin && mv weir-cni.real weir-cni && cat /run/weirt-adds && rm /run/weirt-adds")
		w.must(err)
		for _, us := range strings.Fields(out) {
			d, err := strconv.Atoi(us)
			w.must(err)
			f = append(f, time.Duration(d)*time.Microsecond)
		}
		return f
	}
}
