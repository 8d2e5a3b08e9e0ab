package installed

import (
	"context"
	"flag"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/tests/cluster/latency"
	"github.com/weirnet/weir/tests/lab"
)

var (
	rounds   = flag.Int("rounds", 10, "how often each latency is measured")
	policies = flag.String("policies", "120", "how many policies there are beside those that change, several numbers with commas between")
	strict   = flag.Bool("aims", false, "latencies beyond their aims fail")
)

// aim of a latency, and a limit that holds on a busy machine, too, where Cilium's p50 does not.
type aim struct{ p50, p99, most time.Duration }

var (
	ofChanges = aim{10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond}
	ofADD     = aim{50 * time.Millisecond, 100 * time.Millisecond, 270 * time.Millisecond}
)

func (w *world) prober(from *lab.Host, addr string) *latency.Prober {
	w.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w.Cleanup(stop)
	p, err := latency.Probe(ctx, from, "", net.JoinHostPort(addr, "8081"))
	w.must(err)
	return p
}

// report says how figures are to their aim, which may be none.
func (w *world) report(what string, f latency.Figures, is aim) {
	w.Helper()
	if len(f) == 0 {
		w.Errorf("%s: not measured", what)
		return
	}
	if is == (aim{}) {
		w.Logf("%-46s %s", what, f)
		return
	}
	met := f.At(.5) <= is.p50 && f.At(.99) <= is.p99
	text := fmt.Sprintf("%-46s %s   aim %3d/%3d ms: %s", what, f, is.p50.Milliseconds(), is.p99.Milliseconds(), map[bool]string{true: "met", false: "missed"}[met])
	if f.At(.5) > is.most {
		w.Errorf("%s, and half take longer than %s", text, is.most)
	} else if *strict && !met {
		w.Error(text)
	} else {
		w.Log(text)
	}
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
	var first, last latency.Figures
	for range *rounds {
		measure(&first, false, create(ingress("deny", "", "")))
		measure(&last, true, remove("deny"))
	}
	w.report("a pod's first policy", first, ofChanges)
	w.report("its last policy deleted", last, ofChanges)
	w.must(create(ingress("deny", "", ""))())
	w.must(create(ingress("team", "team", "blue"))())
	others := 0
	for word := range strings.SplitSeq(*policies, ",") {
		among, err := strconv.Atoi(word)
		w.must(err)
		for ; others < among; others++ {
			w.must(create(ingress(fmt.Sprint("other", others), "other", fmt.Sprint(others)))())
		}
		w.kubectl("-n", "kube-system", "exec", w.agent(w.nodeOf("latency", "server")), "--", "weir", "status", "--wait")
		var more, less, gained, lost latency.Figures
		for range *rounds {
			measure(&more, true, create(ingress("client", "name", "client")))
			measure(&less, false, remove("client"))
		}
		for range *rounds {
			measure(&gained, true, label(`"blue"`))
			measure(&lost, false, label("null"))
		}
		where := fmt.Sprintf(", among %d policies", others)
		w.report("one more allow"+where, more, ofChanges)
		w.report("one less allow"+where, less, ofChanges)
		w.report("a peer's label gained"+where, gained, ofChanges)
		w.report("a peer's label lost"+where, lost, ofChanges)
	}
}
