package kube

import (
	"fmt"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
)

// world is stores that are told what an API server would tell them; every call has the
// next resource version.
type world struct {
	*testing.T
	*stores
	rv    uint64
	shown policy.Cluster // what was handed out until now
}

func newWorld(t *testing.T) *world { return &world{T: t, stores: newStores()} }

func (w *world) meta(namespace, name string) metav1.ObjectMeta {
	w.rv++
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name), ResourceVersion: strconv.FormatUint(w.rv, 10)}
}

func (w *world) pod(namespace, name, label string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: w.meta(namespace, name)}
	p.Labels = map[string]string{"l": label}
	return p
}

func (w *world) namespace(name, label string) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: w.meta("", name)}
	n.Labels = map[string]string{"l": label}
	return n
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// counted is how many changes f made.
func (w *world) counted(f func() error) uint64 {
	w.Helper()
	before := w.changes
	w.must(f())
	return w.changes - before
}

// take adds what changed to what was handed out.
func (w *world) take() *policy.Changes {
	w.Lock()
	defer w.Unlock()
	c, _ := w.takeChanges("node")
	w.shown.Apply(c)
	return c
}

// shows is the pods that were handed out as "namespace/name pod-label namespace-label", sorted.
func (w *world) shows(want ...string) {
	w.Helper()
	w.take()
	c := &w.shown
	got := map[string]bool{}
	for key, p := range c.Pods {
		label := "?"
		if n := c.Namespaces[key.Namespace]; n != nil {
			label = n.Labels["l"]
		}
		got[fmt.Sprintf("%s %s %s", key, p.Labels["l"], label)] = true
	}
	for _, line := range want {
		if !got[line] {
			w.Errorf("pods lack %q: %v", line, got)
		}
	}
	if len(got) != len(want) {
		w.Errorf("pods are %v, want %v", got, want)
	}
}

func TestStoreCountsChanges(t *testing.T) {
	w := newWorld(t)
	p := w.pod("x", "a", "1")
	if n := w.counted(func() error { return w.pods.Add(p) }); n != 1 {
		t.Errorf("a new pod: %d changes", n)
	}
	noisy := p.DeepCopy()
	noisy.ResourceVersion, noisy.Annotations, noisy.Status.Phase = "100", map[string]string{"a": "b"}, corev1.PodRunning
	if n := w.counted(func() error { return w.pods.Update(noisy) }); n != 0 {
		t.Errorf("noise: %d changes", n)
	}
	if w.pods.version != 100 || w.pods.objects[types.NamespacedName{Namespace: "x", Name: "a"}].version != 100 {
		t.Errorf("noise: version %d", w.pods.version)
	}
	again := p.DeepCopy()
	again.ResourceVersion, again.UID = "101", "other"
	if n := w.counted(func() error { return w.pods.Update(again) }); n != 1 {
		t.Errorf("another pod of that name: %d changes", n)
	}
	again.ResourceVersion = "102"
	if n := w.counted(func() error { return w.pods.Delete(again) }); n != 1 || w.pods.version != 102 || len(w.pods.objects) != 0 || len(w.pods.perNamespace) != 0 {
		t.Errorf("deleted: %d changes, %+v", n, w.pods)
	}
	if n := w.counted(func() error { return w.pods.Delete(again) }); n != 0 {
		t.Errorf("deleted again: %d changes", n)
	}
	w.pods.UpdateResourceVersion("200")
	if w.pods.version != 200 {
		t.Errorf("bookmark: version %d", w.pods.version)
	}
	bad := w.pod("x", "b", "")
	bad.ResourceVersion = "x"
	if w.pods.Add(bad) == nil || w.pods.Add(&corev1.Node{}) == nil || w.pods.Replace(nil, "") == nil {
		t.Error("what is no pod, or has no version, is taken")
	}
}

// TestStoreReplaceIsOneStep: a relist brings all that was missed in one change.
func TestStoreReplaceIsOneStep(t *testing.T) {
	w := newWorld(t)
	w.must(w.namespaces.Replace([]any{w.namespace("x", "n")}, "1"))
	kept, gone := w.pod("x", "kept", "1"), w.pod("x", "gone", "1")
	w.must(w.pods.Replace([]any{kept, gone}, "9"))
	w.shows("x/kept 1 n", "x/gone 1 n")
	before := w.changes
	if n := w.counted(func() error { return w.pods.Replace([]any{kept, w.pod("x", "new", "2")}, "30") }); n != 1 {
		t.Errorf("%d changes", n)
	}
	w.shows("x/kept 1 n", "x/new 2 n")
	if n := w.counted(func() error { return w.pods.Replace([]any{kept, w.pod("x", "new", "2")}, "31") }); n != 0 || w.pods.version != 31 {
		t.Errorf("a relist that brings nothing new: %d changes, version %d", n, w.pods.version)
	}
	if w.changes != before+1 {
		t.Errorf("%d changes in all", w.changes-before)
	}
}

// TestOnlyWhatChangedIsHandedOut, as objects that never change.
func TestOnlyWhatChangedIsHandedOut(t *testing.T) {
	w := newWorld(t)
	a := types.NamespacedName{Namespace: "x", Name: "a"}
	w.must(w.namespaces.Replace([]any{w.namespace("x", "n")}, "1"))
	w.must(w.pods.Add(w.pod("x", "a", "1")))
	w.must(w.policies.Add(&networkingv1.NetworkPolicy{ObjectMeta: w.meta("x", "p")}))
	first := w.take()
	if len(first.Pods) != 1 || len(first.NetworkPolicies) != 1 || len(first.Namespaces) != 1 {
		t.Errorf("first %v", first)
	}
	w.must(w.pods.Update(w.pod("x", "a", "2")))
	w.must(w.pods.Add(w.pod("x", "b", "1")))
	second := w.take()
	if len(second.Pods) != 2 || second.Pods[a].Labels["l"] != "2" || first.Pods[a].Labels["l"] != "1" || len(second.NetworkPolicies)+len(second.Namespaces) != 0 {
		t.Errorf("second %v, first %v", second, first)
	}
	if third := w.take(); !third.Empty() {
		t.Errorf("nothing changed, but %v", third)
	}
	w.must(w.pods.Delete(w.pod("x", "a", "2")))
	if last := w.take(); len(last.Pods) != 1 || last.Pods[a] != nil {
		t.Errorf("it went: %v", last)
	}
	w.shows("x/b 1 n")
}

// TestPodsWaitForTheirNamespace: a pod is never shown without the labels of its namespace.
func TestPodsWaitForTheirNamespace(t *testing.T) {
	w := newWorld(t)
	w.must(w.pods.Add(w.pod("x", "a", "1")))
	w.must(w.namespaces.Add(w.namespace("y", "m")))
	w.must(w.pods.Add(w.pod("y", "b", "1")))
	w.shows("y/b 1 m")
	w.must(w.namespaces.Add(w.namespace("x", "n")))
	w.shows("x/a 1 n", "y/b 1 m")
	w.must(w.namespaces.Delete(w.namespace("x", "n"))) // seen before the end of its pod
	w.shows("x/a 1 n", "y/b 1 m")
	w.must(w.namespaces.Add(w.namespace("z", "k")))
	w.shows("x/a 1 n", "y/b 1 m")
	w.must(w.pods.Delete(w.pod("x", "a", "1")))
	w.shows("y/b 1 m")
	if c := &w.shown; c.Namespaces["x"] != nil || len(c.Namespaces) != 2 {
		t.Errorf("namespaces %v", c.Namespaces)
	}
	w.must(w.pods.Add(w.pod("x", "a", "2"))) // of a new namespace x
	w.shows("y/b 1 m")
	w.must(w.namespaces.Add(w.namespace("x", "n2")))
	w.shows("x/a 2 n2", "y/b 1 m")
}

// TestBehind: what a consistent list has and a watch may not have brought.
func TestBehind(t *testing.T) {
	key := func(name string) types.NamespacedName { return types.NamespacedName{Namespace: "x", Name: name} }
	fresh := func() *world {
		w := newWorld(t)
		a, b := w.pod("x", "a", ""), w.pod("x", "b", "")
		a.ResourceVersion, b.ResourceVersion = "10", "20"
		w.must(w.pods.Replace([]any{a, b}, "20"))
		return w
	}
	all := map[types.NamespacedName]uint64{key("a"): 10, key("b"): 20}
	for _, c := range []struct {
		name    string
		version uint64
		listed  map[types.NamespacedName]uint64
		want    bool
	}{
		{"nothing new, other kinds went on", 500, all, false},
		{"seen beyond the list", 20, map[types.NamespacedName]uint64{key("a"): 11}, false},
		{"a change is not seen", 500, map[types.NamespacedName]uint64{key("a"): 21, key("b"): 20}, true},
		{"a new one is not seen", 500, map[types.NamespacedName]uint64{key("a"): 10, key("b"): 20, key("c"): 21}, true},
		{"an end is not seen", 500, map[types.NamespacedName]uint64{key("a"): 10}, true},
	} {
		if got := fresh().pods.behind(c.version, c.listed); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	for _, c := range []struct {
		name   string
		listed map[types.NamespacedName]uint64
		want   bool
	}{
		{"all", all, true},
		{"those of a namespace", map[types.NamespacedName]uint64{key("b"): 20}, true},
		{"none", nil, true},
		{"a newer one", map[types.NamespacedName]uint64{key("b"): 21}, false},
		{"one that it saw go", map[types.NamespacedName]uint64{key("c"): 19}, true},
		{"one that it has not seen", map[types.NamespacedName]uint64{key("c"): 21}, false},
	} {
		if got := fresh().pods.has(c.listed); got != c.want {
			t.Errorf("has %s: %v", c.name, got)
		}
	}
	w := fresh()
	late := w.pod("x", "c", "")
	late.ResourceVersion = "501" // made after the list
	w.must(w.pods.Add(late))
	if w.pods.behind(500, all) {
		t.Error("a pod that is younger than the list")
	}
	if !newWorld(t).pods.behind(1, nil) {
		t.Error("a store that heard nothing is not behind")
	}
}
