package agent

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
)

func TestWorkloads(t *testing.T) {
	yes := true
	for _, c := range []struct {
		owner, hash string // kind/name
		want        flowlog.Workload
	}{
		{"ReplicaSet/web-7d4b9", "7d4b9", flowlog.Workload{Kind: "Deployment", Name: "web"}},
		{"ReplicaSet/web-7d4b9", "other", flowlog.Workload{Kind: "ReplicaSet", Name: "web-7d4b9"}},
		{"ReplicaSet/alone", "", flowlog.Workload{Kind: "ReplicaSet", Name: "alone"}},
		{"StatefulSet/db", "7d4b9", flowlog.Workload{Kind: "StatefulSet", Name: "db"}},
		{"Job/backup-29384756", "", flowlog.Workload{Kind: "CronJob", Name: "backup"}},
		{"Job/migrate", "", flowlog.Workload{Kind: "Job", Name: "migrate"}},
		{"", "7d4b9", flowlog.Workload{}},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"pod-template-hash": c.hash}}}
		if kind, name, ok := strings.Cut(c.owner, "/"); ok {
			pod.OwnerReferences = []metav1.OwnerReference{{Kind: "Other", Name: "no-controller"}, {Kind: kind, Name: name, Controller: &yes}}
		}
		if got := workloadOf(policy.PodOf(pod)); got != c.want {
			t.Errorf("%s: %v, want %v", c.owner, got, c.want)
		}
	}
}

func TestServiceAddresses(t *testing.T) {
	c := &policy.Cluster{Services: map[types.NamespacedName]*corev1.Service{
		{Namespace: "shop", Name: "web"}: {
			Spec:   corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, ExternalIPs: []string{"203.0.113.5"}},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.6"}, {Hostname: "lb"}}}},
		},
		{Namespace: "shop", Name: "api"}:  {Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.2", ExternalIPs: []string{"203.0.113.5"}}},
		{Namespace: "shop", Name: "none"}: {Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}},
	}}
	got := servicesOf(c)
	for addr, want := range map[string]string{
		"10.96.0.1": "shop/web", "fd00::1": "shop/web", "10.96.0.2": "shop/api", "203.0.113.5": "shop/api", "203.0.113.6": "shop/web",
	} {
		if ref := got.at(netip.MustParseAddr(addr)); ref == nil || ref.String() != want {
			t.Errorf("%s is %v, want %s", addr, ref, want)
		}
	}
	if len(got) != 5 {
		t.Errorf("%d addresses, want 5: %v", len(got), got)
	}
}
