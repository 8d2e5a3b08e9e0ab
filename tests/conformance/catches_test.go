package conformance

import (
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// isolated is the ordinary cluster with a policy that lets nothing into namespace x.
func isolated() *cluster {
	c := newCluster()
	c.setPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "deny"},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	})
	return c
}

// TestCatches shows that the questions can fail: the node enforces one cluster and is asked
// about another, or a packet is lost on its way.
func TestCatches(t *testing.T) {
	r, ctx := startRig(t)
	r.patience, r.waves = 2*time.Second, 1
	ask := func(t *testing.T, enforced, asked *cluster) (table string, err error) {
		t.Helper()
		if err := r.enforce(ctx, enforced); err != nil {
			t.Fatal(err)
		}
		for name, pod := range enforced.Pods {
			asked.Pods[name].Addresses = pod.Addresses
		}
		w, err := r.probe(ctx, asked.expectations())
		if w == nil {
			t.Fatal(err)
		}
		return w.disagreements(), err
	}
	// Six pods of other namespaces and two of its own talk to each of the three of x.
	const rows = "288 of 864 questions"
	t.Run("lets through", func(t *testing.T) {
		table, err := ask(t, newCluster(), isolated())
		if !strings.Contains(table, rows) || !strings.Contains(table, "answered") || err == nil {
			t.Errorf("got %v, %s", err, table)
		}
	})
	t.Run("denies", func(t *testing.T) {
		table, err := ask(t, isolated(), newCluster())
		if !strings.Contains(table, rows) || !strings.Contains(table, "silent") || err == nil {
			t.Errorf("got %v, %s", err, table)
		}
	})
	t.Run("loses", func(t *testing.T) {
		p := r.pods[types.NamespacedName{Namespace: "y", Name: "a"}]
		// What it sends is dropped as spoofed from now on, not by a policy.
		if out, err := p.Run(ctx, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"); err != nil {
			t.Fatalf("change the address of %s: %v: %s", p.Name, err, out)
		}
		c := isolated()
		c.setPolicy(&networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "y", Name: "deny"},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"pod": "a"}},
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			},
		})
		again := *c
		table, err := ask(t, c, &again)
		if table != "" || err == nil || !strings.Contains(err.Error(), "dropped by policy") {
			t.Errorf("got %v, %s", err, table)
		}
	})
}
