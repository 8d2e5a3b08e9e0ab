package kube

import (
	"fmt"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// large is stores with 10,000 pods of 100 namespaces and 1,000 policies.
func large(b *testing.B) (*stores, []*corev1.Pod) {
	s := newStores()
	var pods []*corev1.Pod
	var values []any
	for i := range 10_000 {
		p := &corev1.Pod{ObjectMeta: noise(metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i%100), Name: fmt.Sprint("pod-", i), Labels: map[string]string{
			"app": fmt.Sprint("app", i%50), "pod-template-hash": fmt.Sprint("h", i%300), "tier": "web", "version": "v1"}})}
		p.Spec.NodeName = fmt.Sprint("node-", i%100)
		p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}}}}
		p.Status.PodIP = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
		p.ResourceVersion = strconv.Itoa(i + 1)
		pods, values = append(pods, p), append(values, p)
	}
	if err := s.pods.Replace(values, "10000"); err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		if err := s.policies.Add(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i%100), Name: fmt.Sprint("p", i), ResourceVersion: "1"}}); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 100 {
		if err := s.namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("ns", i), ResourceVersion: "1"}}); err != nil {
			b.Fatal(err)
		}
	}
	return s, pods
}

// BenchmarkPodEvent is what an event of a pod costs until it is in its store: a label
// that changes, or noise of a kubelet.
func BenchmarkPodEvent(b *testing.B) {
	for _, kind := range []string{"label", "noise"} {
		b.Run(kind, func(b *testing.B) {
			s, pods := large(b)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				p := pods[n%len(pods)]
				n++
				p.ResourceVersion = strconv.Itoa(10_000 + n)
				if kind == "label" {
					p.Labels = map[string]string{"app": strconv.Itoa(n), "pod-template-hash": "h", "tier": "web", "version": "v1"}
				}
				if err := s.pods.Update(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkChanges is what an update costs after one pod changed, 500 a second at most.
func BenchmarkChanges(b *testing.B) {
	s, pods := large(b)
	s.takeChanges("node")
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		p := pods[n%len(pods)]
		n++
		p.ResourceVersion, p.Labels = strconv.Itoa(10_000+n), map[string]string{"app": strconv.Itoa(n)}
		if err := s.pods.Update(p); err != nil {
			b.Fatal(err)
		}
		if c, _ := s.takeChanges("node"); len(c.Pods) != 1 || len(c.Namespaces) != 0 {
			b.Fatal("more than that")
		}
	}
}
