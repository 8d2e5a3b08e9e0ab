package policy_test

import (
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/randomcluster"
)

// TestCompileFitsLimits edits random clusters under random limits: whatever is refused,
// the state fits, what is refused is named, and what is enforced is what the reference
// says of Result.Enforced.
func TestCompileFitsLimits(t *testing.T) {
	refused, held := 0, 0
	for s := range int64(60) {
		random := rand.New(rand.NewSource(s))
		w := randomcluster.New(random)
		ids := policy.NewAllocator()
		full := policy.Compile(w.Cluster, w.Node, w.Locals, ids).State.Size()
		for i, v := range full.Values() {
			*w.Node.Limits.Values()[i] = max(*v*(30+random.Intn(80))/100, 4)
		}
		before := policy.Before{}
		for range 8 {
			r := policy.Recompile(before, w.Cluster, w.Node, w.Locals, ids)
			fits(t, w, r)
			named(t, w, r)
			refused += len(r.Enforced.Refused)
			held += len(r.Held)
			agrees(t, random, w, ids, r)
			if t.Failed() {
				t.Fatalf("seed %d", s)
			}
			before = r.InForce()
			if random.Intn(2) == 0 {
				before.Retry()
			}
			if w.Edit(); random.Intn(3) == 0 {
				w.Renew()
			}
			w.Cluster = rewritten(random, w.Cluster)
		}
	}
	if refused < 100 || held < 20 {
		t.Errorf("%d refused, %d of them as they were before: too few to tell anything", refused, held)
	}
}

// rewritten gives one policy the content of another.
func rewritten(random *rand.Rand, c *policy.Cluster) *policy.Cluster {
	out := *c
	out.NetworkPolicies = maps.Clone(c.NetworkPolicies)
	names := slices.SortedFunc(maps.Keys(c.NetworkPolicies), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	if len(names) > 1 {
		np := c.NetworkPolicies[names[random.Intn(len(names))]].DeepCopy()
		np.Spec = c.NetworkPolicies[names[random.Intn(len(names))]].Spec
		out.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
	}
	return &out
}

func fits(t *testing.T, w *randomcluster.World, r *policy.Result) {
	t.Helper()
	need, most := r.State.Size(), w.Node.Limits
	own := len(w.Node.Addresses) + len(w.Node.RemoteNodes)
	for _, l := range w.Locals {
		own += len(l.Addresses())
	}
	most.Addresses = max(most.Addresses, own)
	most.CIDRs += 2 + len(w.Node.ClusterCIDRs) // those are no policy's
	for i, v := range need.Values() {
		if *v > *most.Values()[i] {
			t.Errorf("%d %s, at most %d fit; refused %v, held %v", *v, most.Maps()[i], *most.Values()[i], r.Enforced.Refused, r.Held)
		}
	}
}

// named holds that a policy is enforced as written or has an error.
func named(t *testing.T, w *randomcluster.World, r *policy.Result) {
	t.Helper()
	said := map[types.NamespacedName]bool{}
	for _, e := range r.Errors {
		if e.Kind == policy.KindNetworkPolicy {
			said[types.NamespacedName{Namespace: e.Namespace, Name: e.Name}] = true
		}
	}
	for name, np := range w.Cluster.NetworkPolicies {
		asWritten := r.Enforced.NetworkPolicies[name] == np && !r.Enforced.Refused[name]
		if asWritten == said[name] {
			t.Errorf("policy %s: enforced as written %v, in the errors %v: %v", name, asWritten, said[name], r.Errors)
		}
	}
}

func agrees(t *testing.T, random *rand.Rand, w *randomcluster.World, ids *policy.Allocator, r *policy.Result) {
	t.Helper()
	enforced := *w
	enforced.Cluster = r.Enforced
	c := comparison{&enforced, ids, r.State}
	unknown := func(p randomcluster.Place) bool { // an address did not fit, or the rulesets
		for _, a := range p.Addrs {
			if a.IsValid() && p.Pod.Name != "" && r.Names[a] != p.Pod {
				return true
			}
		}
		return p.Local != 0 && r.State.Endpoints[p.Local].Ingress == 0
	}
	for range 300 {
		from, to := w.Places[random.Intn(len(w.Places))], w.Places[random.Intn(len(w.Places))]
		if tuple, ok := w.Tuple(from, to); ok && !unknown(from) && !unknown(to) {
			c.ask(t, tuple, from.Local != 0, to.Local != 0)
		}
	}
}

// tenants is a node with a pod in each of two namespaces, each with a policy.
type tenants struct {
	cluster *policy.Cluster
	node    policy.Node
	locals  []policy.Local
	ids     *policy.Allocator
	before  policy.Before
	retry   bool
}

func newTenants() *tenants {
	k := &tenants{ids: policy.NewAllocator(), cluster: &policy.Cluster{
		Namespaces: map[string]*corev1.Namespace{}, Pods: map[types.NamespacedName]*policy.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{}, Services: map[types.NamespacedName]*corev1.Service{},
	}}
	for i, ns := range []string{"good", "greedy"} {
		pod := &policy.Pod{Namespace: ns, Name: "p"}
		k.cluster.Pods[types.NamespacedName{Namespace: ns, Name: "p"}] = pod
		k.locals = append(k.locals, policy.Local{Pod: types.NamespacedName{Namespace: ns, Name: "p"}, Number: uint32(i + 1),
			Endpoint: datapath.Endpoint{Ifindex: uint32(i + 1)}})
		k.policy(ns, 1)
	}
	return k
}

// policy writes a namespace's policy: n ports from as many blocks.
func (k *tenants) policy(ns string, n int) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "np"}}
	for i := range n {
		port := intstr.FromInt32(int32(1000 + i))
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			From:  []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.0.%d.0/24", i)}}},
		})
	}
	k.cluster.NetworkPolicies[types.NamespacedName{Namespace: ns, Name: "np"}] = np
}

func (k *tenants) compile() *policy.Result {
	r := policy.Recompile(k.before, k.cluster, k.node, k.locals, k.ids)
	k.before = r.InForce()
	if k.retry {
		k.before.Retry()
	}
	return r
}

// enforce compiles and tells how many rules each tenant's pod has, and who is refused.
func (k *tenants) enforce(t *testing.T) string {
	t.Helper()
	r := k.compile()
	out := k.groups(r)
	for _, e := range r.Errors {
		out += e.String()
	}
	return strings.TrimSuffix(out, ", ")
}

func (k *tenants) groups(r *policy.Result) (out string) {
	for _, l := range k.locals {
		id := r.State.Endpoints[l.Number].Ingress
		out += fmt.Sprintf("%s %d, ", l.Pod.Namespace, len(r.State.Rulesets[id].Groups))
	}
	return out
}

// A tenant's policy that outgrows the node stays as it was, and stops nobody else.
func TestOversizedPolicyKeepsItsLastGoodVersion(t *testing.T) {
	const refusal = "NetworkPolicy greedy/np: spec: the policies of this node's pods need %d exact_groups together, " +
		"at most 10 can be enforced (--map-size exact_groups=N); "
	k := newTenants()
	k.retry = true
	k.node.Limits.ExactGroups = 10
	for _, step := range []struct {
		good, greedy int
		want         string
	}{
		{2, 3, "good 2, greedy 3"},
		{2, 9, "good 2, greedy 3, " + fmt.Sprintf(refusal, 11) + "its last good version stays in force"},
		{4, 9, "good 4, greedy 3, " + fmt.Sprintf(refusal, 13) + "its last good version stays in force"}, // the other goes on
		{1, 9, "good 1, greedy 9"}, // it fits now
		{2, 9, "good 1, greedy 9, " + strings.ReplaceAll(fmt.Sprintf(refusal, 11), "greedy", "good") + "its last good version stays in force"},
		{1, 5, "good 1, greedy 5"},
	} {
		k.policy("good", step.good)
		k.policy("greedy", step.greedy)
		if got := k.enforce(t); got != step.want {
			t.Fatalf("%d and %d ports:\n got %s\nwant %s", step.good, step.greedy, got, step.want)
		}
	}
}

// What did not fit is left alone while others change, until it is tried again.
func TestRefusalIsRemembered(t *testing.T) {
	k := newTenants()
	k.node.Limits.ExactGroups = 10
	ask := func(remembered bool, good, greedy int) {
		t.Helper()
		r := k.compile()
		if got, want := k.groups(r), fmt.Sprintf("good %d, greedy %d, ", good, greedy); got != want || r.Remembered() != remembered {
			t.Fatalf("%s, remembered %v: %v", got, r.Remembered(), r.Errors)
		}
	}
	k.policy("greedy", 3)
	k.policy("good", 2)
	ask(false, 2, 3)
	k.policy("greedy", 9)
	ask(false, 2, 3)
	k.policy("good", 1) // now there is room
	ask(true, 1, 3)
	ask(true, 1, 3)
	k.before.Retry()
	ask(false, 1, 9)
	k.policy("greedy", 11)
	ask(false, 1, 9)
	k.policy("greedy", 9) // another object
	ask(false, 1, 9)
}

// Many ranges need spans and masks, where no policy needs them alone too.
func TestRangesThatDoNotFitAreRefused(t *testing.T) {
	const refusal = "NetworkPolicy greedy/np: spec: the policies of this node's pods need %d %s together, at most %d can be enforced (--map-size %s=N); "
	limits := map[string]func(l *datapath.Limits) *int{
		"port_spans": func(l *datapath.Limits) *int { return &l.Spans },
		"peer_masks": func(l *datapath.Limits) *int { return &l.Masks },
	}
	for _, c := range []struct {
		limit              string
		most, good, greedy int
		more               int // ranges of another policy of the greedy
		need               int
		fits, without      string
	}{
		{"port_spans", 43, 3, 40, 0, 4 + 40, "good 3, greedy 39", "good 3, greedy 0"},
		{"peer_masks", 39, 3, 40, 0, 40, "good 3, greedy 39", "good 3, greedy 0"},
		{"port_spans", 20, 3, 12, 5, 4 + 17, "good 3, greedy 16", "good 3, greedy 5"},
		{"peer_masks", 16, 3, 12, 5, 17, "good 3, greedy 16", "good 3, greedy 5"},
	} {
		k := newTenants()
		*limits[c.limit](&k.node.Limits) = c.most
		k.ranges("good", "np", c.good)
		if c.more > 0 {
			k.ranges("greedy", "another", c.more)
		}
		k.ranges("greedy", "np", c.greedy)
		said := fmt.Sprintf(refusal, c.need, c.limit, c.most, c.limit)
		if got, want := k.enforce(t), c.without+", "+said+"the policy isolates the pods it selects and allows nothing"; got != want {
			t.Errorf("%d %s:\n got %s\nwant %s", c.most, c.limit, got, want)
		}
		k.ranges("greedy", "np", c.greedy-1)
		if got := k.enforce(t); got != c.fits {
			t.Errorf("%d %s:\n got %s\nwant %s", c.most, c.limit, got, c.fits)
		}
		k.ranges("greedy", "np", c.greedy)
		if got, want := k.enforce(t), c.fits+", "+said+"its last good version stays in force"; got != want {
			t.Errorf("%d %s:\n got %s\nwant %s", c.most, c.limit, got, want)
		}
	}
}

// ranges writes a policy of n ranges over each other from as many blocks.
func (k *tenants) ranges(ns, name string, n int) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	for i := range n {
		port, end := intstr.FromInt32(int32(1000+100*len(name)+i)), int32(60000)
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			Ports: []networkingv1.NetworkPolicyPort{{Port: &port, EndPort: &end}},
			From:  []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.%d.%d.0/24", len(name), i)}}},
		})
	}
	k.cluster.NetworkPolicies[types.NamespacedName{Namespace: ns, Name: name}] = np
}

// One that never fitted isolates; so does one that was deleted and made again.
func TestOversizedPolicyWithoutAGoodVersionIsolates(t *testing.T) {
	k := newTenants()
	k.node.Limits.ExactGroups = 10
	k.policy("greedy", 11)
	const isolated = "good 1, greedy 0, NetworkPolicy greedy/np: spec: the policies of this node's pods need 12 exact_groups together, " +
		"at most 10 can be enforced (--map-size exact_groups=N); the policy isolates the pods it selects and allows nothing"
	for range 2 {
		if got := k.enforce(t); got != isolated {
			t.Fatal(got)
		}
	}
	k.policy("greedy", 5)
	if got := k.enforce(t); got != "good 1, greedy 5" {
		t.Fatal(got)
	}
	k.policy("greedy", 11)
	k.cluster.NetworkPolicies[types.NamespacedName{Namespace: "greedy", Name: "np"}].UID = "another"
	if got := k.enforce(t); got != isolated {
		t.Fatal(got)
	}
}

func TestPodsThatDoNotFitAreStrangers(t *testing.T) {
	k := newTenants()
	k.node.Limits.Addresses = 3
	add := func(name, ip string) {
		pod := &policy.Pod{Namespace: "x", Name: name, Addresses: []netip.Addr{netip.MustParseAddr(ip)}}
		k.cluster.Pods[types.NamespacedName{Namespace: "x", Name: name}] = pod
	}
	for i := range 3 {
		add(fmt.Sprint("m", i), fmt.Sprint("10.0.0.", i+1))
	}
	if got := k.enforce(t); got != "good 1, greedy 1" {
		t.Fatal(got)
	}
	for i := range 20 { // their names come first, and yet those that are known stay
		add(fmt.Sprint("a", i), fmt.Sprint("10.0.1.", i+1))
	}
	got := k.enforce(t)
	if strings.Count(got, "Pod x/a") != 10 || strings.Contains(got, "Pod x/m") || !strings.Contains(got, "nor the addresses of 10 more") {
		t.Fatal(got)
	}
}

func TestServicesThatDoNotFitAreNamed(t *testing.T) {
	k := newTenants()
	k.node.Limits.Frontends = 3
	for i := range 2 {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: fmt.Sprint("s", i)}}
		s.Spec.ClusterIP = fmt.Sprint("10.96.0.", i+1)
		s.Spec.Ports = []corev1.ServicePort{{Port: 80}, {Port: 443}}
		k.cluster.Services[types.NamespacedName{Namespace: "x", Name: s.Name}] = s
	}
	r := policy.Compile(k.cluster, k.node, k.locals, k.ids)
	if len(r.State.Frontends) != 2 || len(r.Errors) != 1 || r.Errors[0].Ref.String() != "Service x/s1" {
		t.Fatalf("%v, errors %v", r.State.Frontends, r.Errors)
	}
}

// Endpoints for whose rulesets there is no room get nothing.
func TestEndpointsThatDoNotFitAreCutOff(t *testing.T) {
	k := newTenants()
	k.node.Limits.Rulesets = 2
	r := policy.Compile(k.cluster, k.node, k.locals, k.ids)
	pods := slices.DeleteFunc(r.Errors, func(p policy.Problem) bool { return p.Kind != "Pod" })
	if len(pods) != 1 || pods[0].Ref.String() != "Pod greedy/p" || r.State.Endpoints[2].Ingress != 0 || len(r.State.Rulesets) != 2 {
		t.Fatalf("errors %v\n%s", r.Errors, r.State.Text())
	}
}
