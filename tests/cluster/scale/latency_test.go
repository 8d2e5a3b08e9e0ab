package scale

import (
	"context"
	"fmt"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/latency"
	"github.com/weirnet/weir/tests/lab"
)

const (
	port      = 8081
	serverPod = "server"
	clientPod = "client"
	remotePod = "remote"
	// Of the pod done by hand, which the outside has.
	remoteAddress = "10.78.0.9"
)

// objectsHere makes the objects of this node's pods: two that talk, and others of all teams.
func (w *world) objectsHere() (out []*pod) {
	w.Helper()
	make := func(namespace, name string, labels map[string]string) {
		p := podOf(namespace, name, nodeName, labels)
		w.must(w.create(p))
		out = append(out, p)
	}
	for _, name := range []string{serverPod, clientPod} {
		make("latency", name, map[string]string{"name": name})
	}
	for i := 2; i < *local; i++ {
		make(namespace(i), fmt.Sprintf("here-%d", i), map[string]string{"app": app(i), "tier": "front"})
	}
	return out
}

// holds: policies of the cluster mean this node's pods, and pods that kwok plays are known.
func (w *world) holds() {
	w.Helper()
	w.must(w.here[serverPod].Serve(w.ctx, port))
	probe := func(from *lab.Host, want lab.Answer, what string) {
		w.Helper()
		if got, err := from.Probe("udp", w.here[serverPod].Addr4, port); err != nil || got != want {
			w.Errorf("%s: %v, %v, want %v", what, got, err, want)
		}
	}
	probe(&w.here[clientPod].Host, lab.Answered, "no policy selects the server")

	// One that kwok plays, of the node whose address the outside has.
	of, err := w.firstOf(playedPrefix + "0")
	w.must(err)
	w.outsideHas(of.Status.PodIP)
	p, stop := w.probeFrom(w.node.Outside, of.Status.PodIP)
	defer stop()
	w.makePolicy("played", ingress("played", &networkingv1.NetworkPolicyPeer{
		NamespaceSelector: select_("kubernetes.io/metadata.name", of.Namespace), PodSelector: select_("app", of.Labels["app"])}))
	w.inForce(patience)
	w.shows(p, true, "a pod that kwok plays is let in by its labels")
	probe(&w.here[clientPod].Host, lab.Silent, "and the client is not")
	w.deletePolicy("played")
	w.makePolicy("other", ingress("other", &networkingv1.NetworkPolicyPeer{PodSelector: select_("app", of.Labels["app"])}))
	w.inForce(patience)
	w.shows(p, false, "a pod that kwok plays is not let in: it is of another namespace")
	w.deletePolicy("other")

	// Each namespace's first policy isolates all pods of it.
	endpoints, err := w.client.Endpoints(w.ctx)
	w.must(err)
	for _, e := range endpoints {
		if e.PodNamespace != "latency" && (!e.Ingress.Isolated || !strings.Contains(strings.Join(e.Ingress.By, " "), "/policy-0")) {
			w.Errorf("%s/%s: ingress %+v", e.PodNamespace, e.PodName, e.Ingress)
		}
	}
}

func (w *world) outsideHas(addr string) {
	w.Helper()
	w.must(w.node.Outside.Address("lo", addr+"/32"))
}

func (w *world) probeFrom(from *lab.Host, source string) (p *latency.Prober, stop func()) {
	w.Helper()
	ctx, stop := context.WithCancel(w.ctx)
	p, err := latency.Probe(ctx, from, source, hostPort(w.here[serverPod].Addr4))
	w.must(err)
	return p, stop
}

func (w *world) shows(p *latency.Prober, answered bool, what string) time.Duration {
	w.Helper()
	d, err := p.Since(time.Now(), answered)
	if err != nil {
		w.Fatalf("%s: %v", what, err)
	}
	return d
}

// ingress of the server from a peer; from nobody, if there is none.
func ingress(name string, peer *networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "latency", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: *select_("name", serverPod), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}
	if peer != nil {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{*peer}}}
	}
	return p
}

func from(key, value string) *networkingv1.NetworkPolicyPeer {
	return &networkingv1.NetworkPolicyPeer{PodSelector: select_(key, value)}
}

func (w *world) makePolicy(name string, p *networkingv1.NetworkPolicy) {
	w.Helper()
	p.Name = name
	w.must(w.create(p))
}

func (w *world) deletePolicy(name string) {
	w.Helper()
	w.must(w.remove(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "latency", Name: name}}, true))
}

// latencies from an API call's return to its effect on packets.
func (w *world) latencies() {
	w.Helper()
	p, stop := w.probeFrom(&w.here[clientPod].Host, "")
	defer stop()
	label := func(value string) { w.must(w.label("latency", clientPod, "team", value)) }
	deny, allow := func() { w.makePolicy("deny", ingress("deny", nil)) }, func() { w.deletePolicy("deny") }
	w.alternate(p, "a pod's first policy, by a label that no selector had", deny, false, "it is deleted, and nobody asks for that label", allow)
	bystander := ingress("bystander", nil)
	bystander.Spec.PodSelector = *select_("name", "nobody")
	w.makePolicy("bystander", bystander)
	w.alternate(p, "a pod's first policy", deny, false, "its last policy deleted", allow)
	w.makePolicy("deny", ingress("deny", nil))
	w.alternate(p, "one more allow", func() { w.makePolicy("client", ingress("client", from("name", clientPod))) }, true,
		"one less allow", func() { w.deletePolicy("client") })
	w.makePolicy("team", ingress("team", from("team", "blue")))
	w.alternate(p, "a peer's label gained", func() { label("blue") }, true, "a peer's label lost", func() { label("") })

	w.outsideHas(remoteAddress)
	far, stopFar := w.probeFrom(w.node.Outside, remoteAddress)
	defer stopFar()
	w.makePolicy("remote", ingress("remote", from("name", remotePod)))
	w.shows(far, false, "a pod that does not exist is not let in")
	w.alternate(far, "a pod elsewhere gets its address", func() {
		of := podOf("latency", remotePod, byHand, map[string]string{"name": remotePod})
		w.must(w.create(of))
		w.giveAddress(of, remoteAddress)
	}, true, "a pod elsewhere is deleted", func() { w.must(w.remove(podOf("latency", remotePod, byHand, nil), true)) })
	for _, name := range []string{"bystander", "deny", "team", "remote"} {
		w.deletePolicy(name)
	}
	w.inForce(patience)
}

// alternate between two calls, and measure what each takes: there is an answer after the first
// if it makes one.
func (w *world) alternate(p *latency.Prober, first string, do func(), makes bool, second string, undo func()) {
	w.Helper()
	var figures [2]latency.Figures
	for range *rounds {
		do()
		figures[0] = append(figures[0], w.shows(p, makes, first))
		undo()
		figures[1] = append(figures[1], w.shows(p, !makes, second))
	}
	w.times(first, figures[0])
	w.times(second, figures[1])
}
