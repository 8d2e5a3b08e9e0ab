package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

func hostedOn(node, name, address string) *policy.Pod {
	return policy.PodOf(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name + "-1")},
		Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{PodIP: address},
	})
}

func byName(pods ...*policy.Pod) map[types.NamespacedName]*policy.Pod {
	out := map[types.NamespacedName]*policy.Pod{}
	for _, p := range pods {
		out[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = p
	}
	return out
}

func TestHostedPodsAreThisNodesWithAnAddress(t *testing.T) {
	onHost, finished := hostedOn("node", "on-host", "192.0.2.1"), hostedOn("node", "finished", "10.0.0.3")
	onHost.HostNetwork = true
	finished.Finished = true
	h, now := hosted{}, time.Now()
	h.take("node", byName(onHost, finished, hostedOn("other", "elsewhere", "10.0.1.1"), hostedOn("node", "starting", ""), hostedOn("node", "web", "10.0.0.1")), now)
	if got := h.unprotected(nil, now.Add(unprotectedAfter-time.Second)); len(got) != 0 {
		t.Errorf("too early: %v", got)
	}
	later := now.Add(unprotectedAfter)
	if got := h.unprotected(nil, later); !slices.Equal(got, []string{"shop/web"}) {
		t.Errorf("got %v", got)
	}
	h.take("node", byName(hostedOn("node", "web", "10.0.0.1")), later) // nothing new
	if got := h.unprotected(nil, later); len(got) != 1 {
		t.Errorf("its time began anew: %v", got)
	}
	again := hostedOn("node", "web", "10.0.0.2")
	again.UID = "web-2"
	h.take("node", byName(again), later)
	if got := h.unprotected(nil, later); len(got) != 0 {
		t.Errorf("another pod of the name has the time of the first: %v", got)
	}
	h.take("node", map[types.NamespacedName]*policy.Pod{{Namespace: "shop", Name: "web"}: nil}, later)
	if got := h.unprotected(nil, later.Add(time.Hour)); len(got) != 0 {
		t.Errorf("it is gone: %v", got)
	}
}

func TestUnprotectedWarningIsBounded(t *testing.T) {
	var pods []string
	for i := range 12 {
		pods = append(pods, fmt.Sprintf("shop/p%02d", i))
	}
	if got := unprotectedWarning(pods); !strings.HasPrefix(got, "12 pods of this node have no policy enforced: shop/p00, ") || !strings.Contains(got, "shop/p09 and 2 more: ") {
		t.Error(got)
	}
	if got := unprotectedWarning(pods[:1]); !strings.HasPrefix(got, "1 pod of this node has no policy enforced: shop/p00: ") {
		t.Error(got)
	}
}

// toldSource holds what a test tells it.
type toldSource chan toldUpdate

type toldUpdate struct {
	update source.Update
	taken  chan struct{}
}

// tell returns when the agent has taken it.
func (s toldSource) tell(u source.Update) {
	taken := make(chan struct{})
	s <- toldUpdate{u, taken}
	<-taken
}

func (s toldSource) Run(ctx context.Context, update func(source.Update)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case told := <-s:
			update(told.update)
			close(told.taken)
		}
	}
}

func (toldSource) Sync(context.Context) (uint64, error) { return 1, nil }

// A pod that runs here beside the plugin is named, where the API server says that it does; one
// that is attached is not, nor while its object outlives its endpoint.
func TestStatusNamesUnprotectedPods(t *testing.T) {
	b, told := newBench(t), make(toldSource)
	b.source = told
	pods := byName(hostedOn("node", "old", "10.0.0.1"), hostedOn("node", "web", "10.0.0.2"))
	go told.tell(source.Update{Revision: 1, Changes: &policy.Changes{Pods: pods}})
	b.start()
	age := func() { // all that is known
		b.agent.mu.Lock()
		defer b.agent.mu.Unlock()
		for name, p := range b.agent.hosted {
			b.agent.hosted[name] = hostedPod{p.uid, p.since.Add(-unprotectedAfter)}
		}
	}
	check := func(what string, want ...string) {
		t.Helper()
		s, err := b.agent.Status(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		warned := slices.ContainsFunc(s.Warnings, func(w string) bool {
			return len(want) > 0 && strings.Contains(w, "no policy enforced: "+strings.Join(want, ", ")+": ")
		})
		if s.Unprotected != len(want) || warned != (len(want) > 0) {
			t.Errorf("%s: %d unprotected, want %v; warnings %q", what, s.Unprotected, want, s.Warnings)
		}
	}
	age()
	check("standalone: they are pods elsewhere")
	told.tell(source.Update{Revision: 2, Changes: &policy.Changes{Pods: pods}, Nodes: &source.Nodes{}})
	check("just seen")
	age()
	check("no endpoint", "shop/old", "shop/web")
	e, err := b.added(t.Context(), 101, "web", "10.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	check("one attached", "shop/old")
	if err := b.agent.DeleteEndpoint(t.Context(), api.Attachment{ContainerID: e.ContainerID, IfName: e.IfName}); err != nil {
		t.Fatal(err)
	}
	check("its object goes after its endpoint", "shop/old")
	age()
	check("its object stays", "shop/old", "shop/web")
}
