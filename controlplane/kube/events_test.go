package kube

import (
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

// TestRecorder is a conversation: what is wrong, which events follow.
func TestRecorder(t *testing.T) {
	fake := record.NewFakeRecorder(100)
	fake.IncludeObject = true
	r := newRecorder("n", fake)
	clock := time.Unix(1000, 0)
	r.now = func() time.Time { return clock }

	name := types.NamespacedName{Namespace: "x", Name: "p"}
	object := func(uid string) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", UID: types.UID(uid)}}
	}
	c := &policy.Cluster{
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{name: object("1")},
		Pods:            map[types.NamespacedName]*policy.Pod{{Namespace: "x", Name: "a"}: {UID: "2"}},
	}
	ref := policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: "x", Name: "p"}
	wrong := func(message string) policy.Problem {
		return policy.Problem{Ref: ref, Field: "spec.egress", Message: message}
	}
	local := map[uint32]policy.EndpointView{1: {Sides: [2]policy.SideView{{IsolatedBy: []policy.Ref{ref}}}}}
	nodes := &source.Nodes{}
	report := func(step string, endpoints map[uint32]policy.EndpointView, want string, problems ...policy.Problem) {
		t.Helper()
		r.Report(&source.Update{Cluster: c, Nodes: nodes}, &policy.Result{Endpoints: endpoints, Errors: problems})
		var got []string
		for len(fake.Events) > 0 {
			got = append(got, <-fake.Events)
		}
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], want)) {
			t.Errorf("%s:\n got %q\nwant %q", step, got, want)
		}
	}
	report("well", local, "")
	report("wrong", local, "Warning NotEnforced node n: not enforced as it is written: spec.egress: 300 ranges involvedObject{kind=NetworkPolicy,apiVersion=networking.k8s.io/v1}", wrong("300 ranges"))
	report("still", local, "", wrong("300 ranges"))
	report("another number", local, "", wrong("301 ranges"))
	clock = clock.Add(renewAfter)
	report("another number, later", local, "Warning NotEnforced node n: not enforced as it is written: spec.egress: 301", wrong("301 ranges"))
	clock = clock.Add(renewAfter)
	report("still, later", local, "", wrong("301 ranges"))
	clock = clock.Add(repeatAfter)
	report("still, when it was forgotten", local, "Warning NotEnforced", wrong("301 ranges"))
	report("mended", local, "Normal Enforced node n: enforced as it is written")
	report("still well", local, "")

	report("wrong again", local, "Warning", wrong("a"))
	delete(c.NetworkPolicies, name)
	report("deleted", nil, "")
	c.NetworkPolicies[name] = object("3")
	report("a new one of that name", local, "Warning", wrong("a"))
	c.NetworkPolicies[name] = object("4")
	report("replaced by one that is well", local, "")

	report("isolates nobody here: this is the first node", nil, "Warning", wrong("a"))
	nodes = &source.Nodes{Others: []source.Node{{Name: "m"}}}
	report("another node is the first", nil, "", wrong("a"))
	report("it isolates a pod here", local, "Warning", wrong("a"))

	c.NetworkPolicies = nil
	pod := policy.Problem{Ref: policy.Ref{Kind: "Pod", Namespace: "x", Name: "a"}, Message: strings.Repeat("ä", 2000)}
	report("a pod, at length", nil, "Warning NotEnforced node n: ", pod)
	if n := len(shorten(pod.Message)); n > 1024 {
		t.Errorf("a message of %d bytes", n)
	}
	report("what is nowhere", nil, "Normal", policy.Problem{Ref: policy.Ref{Kind: "Pod", Namespace: "x", Name: "none"}})
	if len(r.told) != 0 {
		t.Errorf("remembers %v", r.told)
	}
}
