package installed

import (
	"fmt"
	"slices"
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

// starter is a pod whose first deed is to talk to a server at two addresses; then it says how
// that went, how long the first took, and what its kernel counted.
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
      read a b </proc/uptime; /agnhost connect '%s' --timeout=20s; s=$?; read c d </proc/uptime
      /agnhost connect '%s' --timeout=20s
      echo $s $? $a $c; grep ^TcpExt: /proc/net/netstat; echo end
      exec /agnhost pause
`

// starts of pods: how long the plugin's ADD takes; how long a new pod's first connection, to
// a pod of the other node that lets it in by its label; and how soon a pod of the other node
// that may talk to such pods alone reaches it, once its addresses are in the API. No first
// packet is lost, in either direction and family.
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
	client, server := w.pod("latency", "client"), at(w.addresses("latency", "server"), 8080, 0)
	for i := range server {
		_, server[i], _ = strings.Cut(server[i], "/")
	}
	adds := w.clockADD(w.Nodes[0])
	var shown latency.Figures
	var out, in [2]latency.Figures // by family
	var lost, lostTo []string
	for i := range *rounds {
		name := fmt.Sprint("starter", i)
		before := w.retransmitted(client)
		first := i % 2 // the family that goes first
		began := time.Now()
		w.apply(fmt.Sprintf(starter, name, server[2*first], server[2*(1-first)]))
		pod := w.addressesOf("latency", name)
		shown = append(shown, time.Since(began))
		for _, family := range []int{first, 1 - first} {
			in[family] = append(in[family], w.reached(client, pod[family]))
		}
		if n := w.retransmitted(client) - before; n > 0 {
			lostTo = append(lostTo, fmt.Sprintf("%s: %d", name, n))
		}
		took, again := w.firstDeed(name)
		out[first] = append(out[first], took)
		if again > 0 {
			lost = append(lost, fmt.Sprintf("%s, IPv%d first: %d", name, 4+2*first, again))
		}
		w.kubectl("-n", "latency", "delete", "pod", name, "--wait=false")
	}
	w.report("CNI ADD", adds(), ofADD)
	w.report("pod applied to its address in the API", shown, aim{})
	for i := range out[:min(2, *rounds)] {
		family := fmt.Sprintf(", IPv%d", 4+2*i)
		w.report("a new pod's first connection"+family, out[i], aim{})
		w.report("a new pod's address in the API to reached"+family, in[i], aim{})
	}
	w.Logf("of %d new pods, %d lost a first packet to another node, %d one from there", *rounds, len(lost), len(lostTo))
	if len(lost)+len(lostTo) > 0 {
		w.Errorf("first packets that were lost: from new pods %v, to them %v", lost, lostTo)
	}
}

// addressesOf a pod, as soon as the API has them.
func (w *world) addressesOf(namespace, name string) []string {
	w.Helper()
	watch, err := w.Admin.CoreV1().Pods(namespace).Watch(w.ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: "0"})
	w.must(err)
	defer watch.Stop()
	for e := range watch.ResultChan() {
		if p, ok := e.Object.(*corev1.Pod); ok && len(p.Status.PodIPs) == 2 {
			return ips(p)
		}
	}
	w.Fatalf("pod %s/%s has no addresses", namespace, name)
	return nil
}

// reached is how long any answer of a pod takes: a refusal is one.
func (w *world) reached(from *lab.Host, addr string) time.Duration {
	w.Helper()
	began := time.Now()
	conn, err := from.ConnectWithin(addr, 1, 20*time.Second)
	if err == nil {
		conn.Close()
	}
	if answer, err := lab.Judge(err); err != nil || answer == lab.Silent {
		w.Fatalf("%s does not reach %s: %v", from.Name, addr, err)
	}
	return time.Since(began)
}

// firstDeed is how long a starter's took, and how many of its SYNs were sent again.
func (w *world) firstDeed(name string) (took time.Duration, again int) {
	w.Helper()
	w.until(name+" said how its start was", func() error {
		said, err := w.Kubectl(w.ctx, "-n", "latency", "logs", name)
		if err != nil {
			return err
		}
		lines := strings.Split(said, "\n")
		if len(lines) < 4 || lines[3] != "end" {
			return fmt.Errorf("said %q", said)
		}
		f := strings.Fields(lines[0])
		if len(f) != 4 || f[0] != "0" || f[1] != "0" {
			w.Fatalf("%s did not reach the server: %s", name, said)
		}
		from, err := strconv.ParseFloat(f[2], 64)
		w.must(err)
		to, err := strconv.ParseFloat(f[3], 64)
		w.must(err)
		took = time.Duration((to - from) * float64(time.Second))
		counter := slices.Index(strings.Fields(lines[1]), "TCPSynRetrans")
		if counter < 0 {
			w.Fatalf("no TCPSynRetrans in %s", said)
		}
		again, err = strconv.Atoi(strings.Fields(lines[2])[counter])
		w.must(err)
		return nil
	})
	return took, again
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
