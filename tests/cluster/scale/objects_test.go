package scale

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

type pod = corev1.Pod

const (
	playedPrefix = "played-"            // names of such nodes
	played       = "kwok.x-k8s.io/node" // annotation: kwok plays that node
	nodeName     = "node"               // the real one
	byHand       = "by-hand"            // the test is that one's kubelet
	localCIDR    = "10.77.0.0/24"
	handCIDR     = "10.78.0.0/24"
	nodeAddress  = "198.18.0.1"

	perNamespace = 200 // pods
	perNode      = 100
	apps         = 20 // of a namespace
	makers       = 8  // at a time
)

// address of the other nodes: the one done by hand, then those that are played.
func address(i int) string { return fmt.Sprintf("198.18.%d.%d", 1+i/250, 1+i%250) }

// played nodes' ranges.
func cidr(i int) string { return fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256) }

func namespaces() int { return max(2, (*pods+perNamespace-1)/perNamespace) }
func nodes() int      { return max(2, (*pods+perNode-1)/perNode) }

func namespace(i int) string { return fmt.Sprintf("team-%d", i%namespaces()) }
func app(i int) string       { return fmt.Sprintf("app-%d", i%apps) }

// fill makes all objects, and waits until the pods of other nodes have addresses.
func (w *world) fill() {
	w.Helper()
	begun := time.Now()
	for i := range namespaces() {
		w.makeNamespace(namespace(i), map[string]string{"team": fmt.Sprint(i % 10), "environment": []string{"production", "staging"}[i%2]})
	}
	w.makeNamespace("latency", map[string]string{"team": "latency"})
	w.makeNode(nodeName, nodeAddress, localCIDR, false)
	w.makeNode(byHand, address(0), handCIDR, false)
	for i := range nodes() {
		w.makeNode(playedPrefix+fmt.Sprint(i), address(1+i), cidr(i), true)
	}
	w.parallel(*policies, "policies", func(i int) error {
		return w.create(policyOf(i))
	})
	w.parallel(*pods, "pods", func(i int) error {
		return w.create(podElsewhere(fmt.Sprintf("pod-%d", i), i))
	})
	for said := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		_, addressed := w.count("pod-")
		if addressed == *pods {
			break
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			w.Logf("%d pods have addresses", addressed)
		}
		if time.Since(begun) > 6*patience {
			w.Fatalf("%d of %d pods have addresses", addressed, *pods)
		}
	}
	w.Logf("%d pods of %d nodes and %d policies in %d namespaces took %.0f s to make", *pods, nodes(), *policies, namespaces(), time.Since(begun).Seconds())
}

// parallel does n things, some at a time, and says how far it is.
func (w *world) parallel(n int, what string, do func(int) error) {
	w.Helper()
	var group sync.WaitGroup
	todo := make(chan int)
	for range makers {
		group.Go(func() {
			for i := range todo {
				if err := do(i); err != nil {
					w.Error(err)
				}
			}
		})
	}
	for i := range n {
		todo <- i
		w.progress(i, n, what)
	}
	close(todo)
	group.Wait()
	if w.Failed() {
		w.FailNow()
	}
}

func (w *world) progress(i, n int, what string) {
	if step := max(n/5, 20); i%step == step-1 {
		w.Logf("%d of %d %s", i+1, n, what)
	}
}

func (w *world) makeNamespace(name string, labels map[string]string) {
	w.Helper()
	w.must(w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
}

func (w *world) makeNode(name, addr, cidr string, play bool) {
	w.Helper()
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
		Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}, {Type: corev1.NodeHostName, Address: name}}},
	}
	if play {
		n.Annotations = map[string]string{played: "fake"}
	}
	w.must(w.create(n))
}

// policyOf is one as teams write them: each namespace is closed, and its applications are
// opened to one another, to other teams, to blocks of addresses.
func policyOf(i int) *networkingv1.NetworkPolicy {
	n := i / namespaces() // of its namespace
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(i), Name: fmt.Sprintf("policy-%d", n)}}
	if n == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		return p
	}
	port, protocol := intstr.FromInt(8000+n%3), corev1.ProtocolTCP
	ports := []networkingv1.NetworkPolicyPort{{Port: &port, Protocol: &protocol}}
	p.Spec.PodSelector = *select_("app", app(n-1))
	peer := networkingv1.NetworkPolicyPeer{PodSelector: select_("app", app(n))}
	switch n % 5 {
	case 1:
		peer.NamespaceSelector = select_("team", fmt.Sprint(n%10))
	case 2:
		peer = networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("203.%d.%d.0/24", n%200, i%250), Except: []string{fmt.Sprintf("203.%d.%d.128/25", n%200, i%250)}}}
	}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{peer}, Ports: ports}}
	if n%5 == 3 {
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: select_("app", app(n+1))}}, Ports: ports}}
	}
	return p
}

func select_(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

// podOf is an object about as large as a Deployment's.
func podOf(namespace, name, node string, labels map[string]string) *pod {
	all := map[string]string{"pod-template-hash": "7c5ddbdf54", "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/instance": namespace, "helm.sh/chart": "service-1.4.2"}
	maps.Copy(all, labels)
	controller := true
	p := &pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, Labels: all,
			Annotations: map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9100", "checksum/config": strings.Repeat("0123456789abcdef", 4)},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "service-7c5ddbdf54",
				UID: "4b7b3b0e-0d0e-4a27-9d0e-5f1b0b2c8f11", Controller: &controller}},
		},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "default"},
	}
	for n, c := range []string{"service", "sidecar"} {
		container := corev1.Container{Name: c, Image: "registry.example/" + c + ":1.4.2", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
		}}
		for i := range 10 {
			container.Env = append(container.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", i), Value: "a value of some length"})
		}
		container.Ports = []corev1.ContainerPort{{Name: c, ContainerPort: int32(8000 + n), Protocol: corev1.ProtocolTCP}}
		p.Spec.Containers = append(p.Spec.Containers, container)
	}
	return p
}

// podElsewhere is one of a node that is played.
func podElsewhere(name string, i int) *pod {
	return podOf(namespace(i), name, playedPrefix+fmt.Sprint(i%nodes()),
		map[string]string{"app": app(i / namespaces()), "tier": []string{"front", "back"}[i%2]})
}

// running is what a kubelet says of a pod that it started.
func running(p *pod, addrs ...string) *pod {
	out := p.DeepCopy()
	out.Status.Phase, out.Status.PodIP, out.Status.PodIPs = corev1.PodRunning, addrs[0], nil
	for _, a := range addrs {
		out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return out
}
