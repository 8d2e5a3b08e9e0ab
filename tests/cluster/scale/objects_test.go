package scale

import (
	"context"
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
	"k8s.io/apimachinery/pkg/watch"
)

type pod = corev1.Pod

const (
	played      = "kwok.x-k8s.io/node" // annotation: kwok plays that node
	nodeName    = "node"               // the real one
	byHand      = "by-hand"            // the test is that one's kubelet
	localCIDR   = "10.77.0.0/24"
	handCIDR    = "10.78.0.0/24"
	nodeAddress = "198.18.0.1"

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
		w.makeNode(fmt.Sprintf("played-%d", i), address(1+i), cidr(i), true)
	}
	w.parallel(*policies, "policies", func(i int) error {
		p := policyOf(i)
		_, err := w.admin.NetworkingV1().NetworkPolicies(p.Namespace).Create(w.ctx, p, create)
		return err
	})
	w.parallel(*pods, "pods", func(i int) error {
		_, err := w.makePod(fmt.Sprintf("pod-%d", i), i)
		return err
	})
	for said := time.Now(); w.watch.addressed("pod-") < *pods; time.Sleep(20 * time.Millisecond) {
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			w.Logf("%d pods have addresses", w.watch.addressed("pod-"))
		}
		if time.Since(begun) > 6*patience {
			w.Fatalf("%d of %d pods have addresses", w.watch.addressed("pod-"), *pods)
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
	_, err := w.admin.CoreV1().Namespaces().Create(w.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, create)
	w.must(err)
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
	_, err := w.admin.CoreV1().Nodes().Create(w.ctx, n, create)
	w.must(err)
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

// makePod makes one of a node that is played.
func (w *world) makePod(name string, i int) (*pod, error) {
	return w.admin.CoreV1().Pods(namespace(i)).Create(w.ctx, podOf(namespace(i), name, fmt.Sprintf("played-%d", i%nodes()),
		map[string]string{"app": app(i / namespaces()), "tier": []string{"front", "back"}[i%2]}), create)
}

// deletePod: its kubelet does it, or it goes at once.
func (w *world) deletePod(p *pod, now bool) {
	w.Helper()
	o := metav1.DeleteOptions{}
	if now {
		o.GracePeriodSeconds = new(int64)
	}
	w.must(w.admin.CoreV1().Pods(p.Namespace).Delete(w.ctx, p.Name, o))
}

// giveAddress is what a kubelet says of a pod that it started.
func (w *world) giveAddress(p *pod, addrs ...string) {
	w.Helper()
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, addrs[0], nil
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	_, err := w.admin.CoreV1().Pods(p.Namespace).UpdateStatus(w.ctx, p, metav1.UpdateOptions{})
	w.must(err)
}

// watcher sees what becomes of pods.
type watcher struct {
	mu    sync.Mutex
	seen  int
	state map[string]bool // by name: it has an address
}

func (w *world) watchPods() *watcher {
	out := &watcher{state: map[string]bool{}}
	list, err := w.admin.CoreV1().Pods("").List(w.ctx, metav1.ListOptions{})
	w.must(err)
	ctx, cancel := context.WithCancel(w.ctx)
	w.Cleanup(cancel)
	go func() {
		version := list.ResourceVersion
		for ctx.Err() == nil {
			changes, err := w.admin.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				time.Sleep(100 * time.Millisecond)
				continue
			}
			for e := range changes.ResultChan() {
				if p, ok := e.Object.(*pod); ok {
					version = p.ResourceVersion
					out.take(e.Type, p)
				}
			}
		}
	}()
	return out
}

func (w *watcher) take(kind watch.EventType, p *pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen++
	if kind == watch.Deleted {
		delete(w.state, p.Name)
	} else {
		w.state[p.Name] = p.Status.PodIP != ""
	}
}

func (w *watcher) events() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

func (w *watcher) count(prefix string, addressed bool) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, has := range w.state {
		if strings.HasPrefix(name, prefix) && (has || !addressed) {
			n++
		}
	}
	return n
}

func (w *watcher) alive(prefix string) int     { return w.count(prefix, false) }
func (w *watcher) addressed(prefix string) int { return w.count(prefix, true) }
