package policy

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What policy uses of a Pod object is taken, and it is the same after it was written and read.
func TestPodOf(t *testing.T) {
	yes, always := true, corev1.ContainerRestartPolicyAlways
	port := func(name string, number, host int32) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: number, HostPort: host, Protocol: corev1.ProtocolTCP}
	}
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "x", Name: "p", UID: "u", ResourceVersion: "17", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "Other", Name: "o"}, {Kind: "ReplicaSet", Name: "p-1", Controller: &yes}},
		},
		Spec: corev1.PodSpec{
			NodeName: "n", HostNetwork: true, ServiceAccountName: "sa",
			Containers: []corev1.Container{
				{Name: "quiet", Ports: []corev1.ContainerPort{port("", 80, 0)}},
				{Name: "web", Env: make([]corev1.EnvVar, 9), Ports: []corev1.ContainerPort{port("http", 80, 0), port("", 81, 0), port("", 82, 8082)}},
			},
			InitContainers: []corev1.Container{
				{Name: "over", Ports: []corev1.ContainerPort{port("dns", 53, 0)}},
				{Name: "sidecar", RestartPolicy: &always, Ports: []corev1.ContainerPort{port("proxy", 15000, 0)}},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodFailed, PodIP: "10.0.0.1", Conditions: make([]corev1.PodCondition, 4),
			PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "::ffff:10.0.0.1"}, {IP: "nonsense"}, {IP: "fd00::1"}},
		},
	}
	want := &Pod{
		Namespace: "x", Name: "p", UID: "u", Labels: map[string]string{"a": "b"}, NodeName: "n", Owner: &Owner{"ReplicaSet", "p-1"},
		Ports:     []corev1.ContainerPort{port("http", 80, 0), port("", 82, 8082), port("proxy", 15000, 0)},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, HostNetwork: true, Finished: true,
	}
	got := PodOf(object)
	if !reflect.DeepEqual(got, want) || !got.Equal(want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	text, err := json.Marshal(got)
	again := &Pod{}
	if err == nil {
		err = json.Unmarshal(text, again)
	}
	if err != nil || !again.Equal(want) {
		t.Errorf("read again: %+v, %v", again, err)
	}
	if bare := PodOf(&corev1.Pod{}); !bare.Equal(&Pod{}) || !PodOf(bare.Object()).Equal(bare) {
		t.Errorf("of nothing: %+v", bare)
	}
	if only := PodOf(&corev1.Pod{Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "fd00::2"}}}}); len(only.Addresses) != 1 {
		t.Errorf("of podIPs alone: %v", only.Addresses)
	}
	if got := StatusAddresses(&Pod{Addresses: want.Addresses}); len(got) != 2 || StatusAddresses(want) != nil {
		t.Errorf("it has %v", got)
	}
}

// Each field counts.
func TestPodsDiffer(t *testing.T) {
	base := func() *Pod {
		return &Pod{Namespace: "x", Name: "p", UID: "u", Labels: map[string]string{"a": "b"}, NodeName: "n", Owner: &Owner{"Job", "j"},
			Ports: []corev1.ContainerPort{{Name: "http"}}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	}
	edits := []func(*Pod){
		func(p *Pod) { p.Namespace = "y" }, func(p *Pod) { p.Name = "q" }, func(p *Pod) { p.UID = "v" }, func(p *Pod) { p.Labels["a"] = "c" },
		func(p *Pod) { p.NodeName = "m" }, func(p *Pod) { p.Owner.Name = "k" }, func(p *Pod) { p.Ports[0].HostPort = 1 },
		func(p *Pod) { p.Addresses[0] = netip.MustParseAddr("10.0.0.2") }, func(p *Pod) { p.HostNetwork = true }, func(p *Pod) { p.Finished = true },
	}
	if n := reflect.TypeFor[Pod]().NumField(); n != len(edits) {
		t.Fatalf("a Pod has %d fields, %d are asked about", n, len(edits))
	}
	for i, edit := range edits {
		p := base()
		clone := p.Clone()
		clone.Owner = &Owner{"Job", "j"}
		edit(clone)
		if !p.Equal(base()) || p.Equal(clone) || clone.Equal(p) {
			t.Errorf("edit %d: %+v equals %+v, or is not what it was", i, clone, p)
		}
	}
	if p := base(); p.Equal(&Pod{}) || (&Pod{}).Equal(p) {
		t.Error("it equals nothing")
	}
}
