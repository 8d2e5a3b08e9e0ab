package installed

import (
	"context"
	"flag"
	"fmt"
	"net"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/tests/cluster/latency"
	"github.com/weirnet/weir/tests/lab"
)

var (
	rounds   = flag.Int("rounds", 10, "how often each latency is measured")
	policies = flag.Int("policies", 120, "how many policies there are beside those that change")
)

func (w *world) prober(from *lab.Host, addr string) *latency.Prober {
	w.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w.Cleanup(stop)
	p, err := latency.Probe(ctx, from, "", net.JoinHostPort(addr, "8081"))
	w.must(err)
	return p
}

func (w *world) report(what string, f latency.Figures) {
	w.Helper()
	if len(f) == 0 {
		w.Errorf("%s: not measured", what)
		return
	}
	w.Logf("%-46s %s", what, f)
}

func byName(name string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"name": name}}
}

// ingress of the server from who has a label; from nobody, if it is empty.
func ingress(name, key, value string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "latency", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: byName("server"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}
	if key != "" {
		from := metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &from}}}}
	}
	return p
}

// latency from an API call's return to its effect on packets between two nodes.
func (w *world) latency() {
	w.namespace("latency", "server@node2", "client@node1")
	server, client := w.pod("latency", "server"), w.pod("latency", "client")
	p := w.prober(client, server.Addr4)
	api := w.Admin.NetworkingV1().NetworkPolicies("latency")
	measure := func(f *latency.Figures, answered bool, call func() error) {
		w.Helper()
		w.must(call())
		d, err := p.Since(time.Now(), answered)
		w.must(err)
		*f = append(*f, d)
	}
	create := func(n *networkingv1.NetworkPolicy) func() error {
		return func() error { _, err := api.Create(w.ctx, n, metav1.CreateOptions{}); return err }
	}
	remove := func(name string) func() error {
		return func() error { return api.Delete(w.ctx, name, metav1.DeleteOptions{}) }
	}
	label := func(patch string) func() error {
		return func() error {
			_, err := w.Admin.CoreV1().Pods("latency").Patch(w.ctx, "client", types.MergePatchType, []byte(`{"metadata":{"labels":{"team":`+patch+`}}}`), metav1.PatchOptions{})
			return err
		}
	}
	var first, last, more, less, gained, lost latency.Figures
	for range *rounds {
		measure(&first, false, create(ingress("deny", "", "")))
		measure(&last, true, remove("deny"))
	}
	w.must(create(ingress("deny", "", ""))())
	for i := range *policies {
		w.must(create(ingress(fmt.Sprint("other", i), "other", fmt.Sprint(i)))())
	}
	for range *rounds {
		measure(&more, true, create(ingress("client", "name", "client")))
		measure(&less, false, remove("client"))
	}
	w.must(create(ingress("team", "team", "blue"))())
	for range *rounds {
		measure(&gained, true, label(`"blue"`))
		measure(&lost, false, label("null"))
	}
	among := fmt.Sprintf(" (among %d policies)", *policies)
	w.report("a pod's first policy", first)
	w.report("its last policy deleted", last)
	w.report("one more allow"+among, more)
	w.report("one less allow"+among, less)
	w.report("a peer's label gained"+among, gained)
	w.report("a peer's label lost"+among, lost)
}
