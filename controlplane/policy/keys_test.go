package policy

import (
	"fmt"
	"maps"
	"math/rand"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What a selector may come to ask is looked for only in namespaces with pods that have it: the counts
// that say so are of the pods that are there.
func TestKeysAreCountedByNamespace(t *testing.T) {
	x, _ := NewIncremental(Before{}, &Cluster{}, Node{}, nil, NewAllocator())
	r := rand.New(rand.NewSource(1))
	for range 2000 {
		ch := Changes{Pods: map[types.NamespacedName]*Pod{}}
		for range 1 + r.Intn(4) {
			name := types.NamespacedName{Namespace: fmt.Sprint("ns", r.Intn(3)), Name: fmt.Sprint("pod-", r.Intn(5))}
			if ch.Pods[name] = nil; r.Intn(3) > 0 {
				ch.Pods[name] = &Pod{Namespace: name.Namespace, Name: name.Name, Labels: map[string]string{fmt.Sprint("key", r.Intn(3)): "v", fmt.Sprint("key", r.Intn(6)): "v"},
					Ports: []corev1.ContainerPort{{Name: fmt.Sprint("port", r.Intn(3)), ContainerPort: 80}}}
			}
		}
		if x.Apply(Node{}, nil, ch) == nil {
			t.Fatal("it took a whole compilation")
		}
		keys, ports := map[string]map[string]int{}, map[string]map[string]int{}
		for _, p := range x.cluster.Pods {
			s := &space{keys: map[string]int{}, ports: map[string]int{}}
			if keys[p.Namespace] != nil {
				s.keys, s.ports = keys[p.Namespace], ports[p.Namespace]
			}
			s.count(p, 1)
			keys[p.Namespace], ports[p.Namespace] = s.keys, s.ports
		}
		for name, s := range x.spaces {
			if !maps.Equal(s.keys, keys[name]) || !maps.Equal(s.ports, ports[name]) {
				t.Fatalf("namespace %s: counted %v %v, want %v %v", name, s.keys, s.ports, keys[name], ports[name])
			}
		}
		if len(x.spaces) != len(keys) {
			t.Fatalf("%d namespaces, want %d", len(x.spaces), len(keys))
		}
	}
}
