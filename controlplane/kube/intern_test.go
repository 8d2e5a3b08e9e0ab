package kube

import (
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
)

// decoded is pod i of n as it comes from an API server: every text of it is its own.
func decoded(t testing.TB, i int) *corev1.Pod {
	t.Helper()
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{ObjectMeta: noise(metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i%50), Name: fmt.Sprintf("service-%d-7c5ddbdf54-%05d", i%500, i),
		UID:    "4b7b3b0e-0d0e-4a27-9d0e-5f1b0b2c8f11",
		Labels: map[string]string{"app": fmt.Sprint("app-", i%500), "pod-template-hash": fmt.Sprint("h", i%500), "app.kubernetes.io/managed-by": "Helm", "tier": "front"}})}
	p.ResourceVersion = strconv.Itoa(i + 1)
	controller := true
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: fmt.Sprintf("service-%d-7c5ddbdf54", i%500), UID: "u", Controller: &controller}}
	p.Spec.NodeName = fmt.Sprint("node-", i%100)
	for n, name := range []string{"service", "sidecar"} {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name, Ports: []corev1.ContainerPort{{Name: name, ContainerPort: int32(8000 + n), Protocol: corev1.ProtocolTCP}}})
	}
	p.Spec.InitContainers = []corev1.Container{{Name: "proxy", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "proxy", ContainerPort: int32(9000 + i%2)}}}}
	p.Status.PodIP = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	text, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out := &corev1.Pod{}
	if err := out.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	return out
}

// A pod costs what makes it another pod: what it has in common with others is held once.
func TestMemoryOfPods(t *testing.T) {
	const (
		pods = 10_000
		most = 520 // bytes; a corev1.Pod alone is 1280
	)
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	s := newStores()
	for i := range pods {
		if err := s.pods.Add(decoded(t, i)); err != nil {
			t.Fatal(err)
		}
	}
	each := (used() - before) / pods
	t.Logf("%d bytes a pod", each)
	if each > most {
		t.Errorf("%d bytes a pod, at most %d are expected", each, most)
	}
	for i := range pods {
		want := policy.PodOf(decoded(t, i))
		if got := s.pods.get(types.NamespacedName{Namespace: want.Namespace, Name: want.Name}); !reflect.DeepEqual(got, want) {
			t.Fatalf("pod %d: %+v\nwant %+v", i, got, want)
		}
	}
}

// Equal parts are one, and what differs in the least is another.
func TestIntern(t *testing.T) {
	i := newInterner()
	same := func(a, b any) bool { return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() }
	labels := func(kv ...string) map[string]string {
		out := map[string]string{}
		for n := 0; n < len(kv); n += 2 {
			out[kv[n]] = kv[n+1]
		}
		return i.labelsOf(out)
	}
	a := labels("a", "b", "c", "d")
	if !same(a, labels("c", "d", "a", "b")) {
		t.Error("equal labels are two maps")
	}
	for _, other := range []map[string]string{labels("a", "bc", "", "d"), labels("a", "b"), labels("a", "b", "c", "e"), labels("ab", "", "c", "d"), labels("a", "b\x01c\x01d")} {
		if same(a, other) || reflect.DeepEqual(a, other) {
			t.Errorf("%v is taken for %v", other, a)
		}
	}
	if labels() != nil {
		t.Error("no labels are some")
	}

	base := func() []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}}
	}
	first := i.portsOf(base())
	if !same(first, i.portsOf(base())) {
		t.Error("equal ports are two")
	}
	for name, change := range map[string]func([]corev1.ContainerPort) []corev1.ContainerPort{
		"port":     func(p []corev1.ContainerPort) []corev1.ContainerPort { p[0].ContainerPort = 81; return p },
		"hostPort": func(p []corev1.ContainerPort) []corev1.ContainerPort { p[0].HostPort = 80; return p },
		"hostIP":   func(p []corev1.ContainerPort) []corev1.ContainerPort { p[0].HostIP = "::1"; return p },
		"protocol": func(p []corev1.ContainerPort) []corev1.ContainerPort { p[0].Protocol = corev1.ProtocolUDP; return p },
		"its name": func(p []corev1.ContainerPort) []corev1.ContainerPort { p[0].Name = "https"; return p },
		"one more": func(p []corev1.ContainerPort) []corev1.ContainerPort { return append(p, p[0]) },
	} {
		if got, want := i.portsOf(change(base())), change(base()); same(first, got) || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	owner := i.ownerOf(&policy.Owner{Kind: "Job", Name: "a"})
	if owner != i.ownerOf(&policy.Owner{Kind: "Job", Name: "a"}) {
		t.Error("equal owners are two")
	}
	for _, other := range []policy.Owner{{Kind: "Job", Name: "b"}, {Kind: "Joba"}, {Kind: "CronJob", Name: "a"}} {
		if got := i.ownerOf(&other); got == owner || *got != other {
			t.Errorf("%+v is taken for %+v", other, got)
		}
	}
	if i.ownerOf(nil) != nil || i.portsOf(nil) != nil {
		t.Error("nothing is something")
	}
}

// What no pod has any more is not held for long.
func TestInternForgets(t *testing.T) {
	s := newStores()
	for n := range 100_000 {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: fmt.Sprint("p", n%10), Labels: map[string]string{"job": fmt.Sprint(n)}, ResourceVersion: strconv.Itoa(n + 1)}}
		if err := s.pods.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	if i := s.common; len(i.labels) > spare+100 || len(i.strings) > spare+100 {
		t.Errorf("10 pods, and %d label sets and %d texts are held", len(i.labels), len(i.strings))
	}
	for n := 99_990; n < 100_000; n++ {
		if got := s.pods.get(types.NamespacedName{Namespace: "n", Name: fmt.Sprint("p", n%10)}); got.Labels["job"] != fmt.Sprint(n) {
			t.Errorf("pod %d has %v", n%10, got.Labels)
		}
	}
}

// What comes in a list is held once while it comes, and goes into the store as it is.
func TestListsAreShared(t *testing.T) {
	s := newStores()
	strip := s.pods.Transformer()
	var list []any
	for i := range 3000 {
		p, err := strip(decoded(t, i))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if n := len(s.common.labels); n != 500 {
		t.Errorf("%d sets of labels are held of pods on their way, want 500", n)
	}
	plain := decoded(t, 4000) // of a list that no watch brought
	if err := s.pods.Replace(append(list, plain), "9999"); err != nil {
		t.Fatal(err)
	}
	for i, value := range list {
		want := policy.PodOf(decoded(t, i))
		got := s.pods.get(types.NamespacedName{Namespace: want.Namespace, Name: want.Name})
		if got != value.(*seen[*policy.Pod]).stripped || !reflect.DeepEqual(got, want) {
			t.Fatalf("pod %d: %+v\nwant %+v", i, got, want)
		}
	}
	got := s.pods.objects[types.NamespacedName{Namespace: plain.Namespace, Name: plain.Name}]
	if !got.object.Equal(policy.PodOf(plain)) || plain.ResourceVersion == "" || s.pods.coming != 0 {
		t.Errorf("%+v of %+v, %d still come", got.object, plain, s.pods.coming)
	}
	if got.version != 4001 {
		t.Error("its version is lost")
	}
	bad := decoded(t, 5000)
	bad.ResourceVersion = "x"
	if value, err := strip(bad); err != nil || s.pods.Replace([]any{value}, "10000") == nil {
		t.Error("an object without a version is dropped, or taken")
	}
}
