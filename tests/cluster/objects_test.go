package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/source"
)

// TestObjects: what is made in the API is what comes out, and what nobody uses of it
// makes no update.
func TestObjects(t *testing.T) {
	s := newScene(t)
	s.begin()
	api := s.Admin

	p := s.makePod("web", "web")
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, "10.244.1.5", []corev1.PodIP{{IP: "10.244.1.5"}, {IP: "fd01::5"}}
	_, err := api.CoreV1().Pods("shop").UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
	s.must(err)
	s.makePolicy("deny", networkingv1.NetworkPolicySpec{Egress: []networkingv1.NetworkPolicyEgressRule{{Ports: []networkingv1.NetworkPolicyPort{{}}}}})
	_, err = api.CoreV1().Services("shop").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.77", Ports: []corev1.ServicePort{{Port: 80}}}}, create)
	s.must(err)
	_, err = api.DiscoveryV1().EndpointSlices("shop").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.5"}}}}, create)
	s.must(err)
	n := s.makeNode("node-b", "10.244.2.0/24")
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.2"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::2"}}
	_, err = api.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
	s.must(err)
	s.sync()

	u := s.last()
	c := u.Cluster
	web, deny, service, slice := c.Pods[shop("web")], c.NetworkPolicies[shop("deny")], c.Services[shop("web")], c.EndpointSlices[shop("web-1")]
	if web == nil || deny == nil || service == nil || slice == nil {
		t.Fatalf("not all objects are there: %v %v %v %v", web, deny, service, slice)
	}
	if web.UID != p.UID || app(u, "web") != "web" || len(web.Addresses) != 2 || web.Ports[0].Protocol != "TCP" {
		t.Errorf("pod %+v", web)
	}
	if len(deny.Spec.PolicyTypes) != 2 || *deny.Spec.Egress[0].Ports[0].Protocol != "TCP" || deny.UID == "" {
		t.Errorf("policy without its defaults: %+v", deny)
	}
	if service.Spec.ClusterIPs[0] != "10.96.0.77" || slice.Labels[discoveryv1.LabelServiceName] != "web" || slice.Endpoints[0].Addresses[0] != "10.244.1.5" {
		t.Errorf("service %+v, slice %+v", service, slice)
	}
	if l := c.Namespaces["shop"].Labels; l["kubernetes.io/metadata.name"] != "shop" || l["team"] != "shop" {
		t.Errorf("namespace labels %v", l)
	}
	if got := fmt.Sprint(u.Nodes.Own.PodCIDRs, u.Nodes.OtherAddresses, u.Nodes.PodCIDRs); got != "[10.244.1.0/24] [192.0.2.2 2001:db8::2] [10.244.1.0/24 10.244.2.0/24]" {
		t.Errorf("nodes %s", got)
	}

	before := s.sync()
	_, err = api.CoreV1().Pods("shop").Patch(t.Context(), "web", types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}}}`), metav1.PatchOptions{})
	s.must(err)
	_, err = api.CoreV1().Nodes().Patch(t.Context(), "node-b", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
	s.must(err)
	if after := s.sync(); after != before {
		t.Errorf("revision %d after %d: noise is a change", after, before)
	}
	s.label("web", "shop")
	if s.sync() != before+1 || app(s.last(), "web") != "shop" {
		t.Errorf("a label: revision %d after %d, %q", s.last().Revision, before, app(s.last(), "web"))
	}
	s.deletePod("web")
	s.must(api.NetworkingV1().NetworkPolicies("shop").Delete(t.Context(), "deny", metav1.DeleteOptions{}))
	s.sync()
	if c := s.last().Cluster; c.Pods[shop("web")] != nil || c.NetworkPolicies[shop("deny")] != nil || len(u.Cluster.Pods) != 1 {
		t.Error("what is deleted is still there, or an earlier update changed")
	}
	s.checkRevisions()
}

// TestSync: after it, everything that was in the API at the call is in an update, though
// some kinds are quiet and others change all the time; it does not wait for bookmarks.
func TestSync(t *testing.T) {
	s := newScene(t)
	s.begin()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	noise := make(chan struct{})
	go func() { // of another kind, so that versions run away from the quiet ones
		defer close(noise)
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = s.Admin.CoreV1().ConfigMaps("shop").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}}, create)
			time.Sleep(time.Millisecond)
		}
	}()
	var took time.Duration
	for i := range 100 {
		name := fmt.Sprint("p", i)
		s.makePod(name, "a")
		if i%3 == 0 {
			s.label(name, "b")
		}
		if i%5 == 4 {
			s.deletePod(fmt.Sprint("p", i-1))
		}
		begun := time.Now()
		revision := s.sync()
		took += time.Since(begun)
		s.mu.Lock()
		var held *source.Update
		for j := range s.updates {
			if s.updates[j].Revision <= revision {
				held = &s.updates[j]
			}
		}
		s.mu.Unlock()
		want := "a"
		if i%3 == 0 {
			want = "b"
		}
		if held == nil || app(*held, name) != want || i%5 == 4 && app(*held, fmt.Sprint("p", i-1)) != "" {
			t.Fatalf("round %d: revision %d does not hold what was in the API", i, revision)
		}
	}
	cancel()
	<-noise
	t.Logf("sync took %s on average", took/100)
	s.checkRevisions()

	s.proxy.Cut()
	short, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.source.Sync(short); err == nil || short.Err() != nil || !strings.Contains(err.Error(), "API server https://"+s.proxy.Addr()+": list ") {
		t.Errorf("sync without an API server: %v", err)
	}
}
