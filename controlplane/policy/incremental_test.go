package policy_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/randomcluster"
)

var (
	worlds = flag.Int("worlds", 60, "random clusters of the incremental test")
	edits  = flag.Int("edits", 60, "changes to each of them")
)

// TestIncrementalIsCompile changes clusters at random, and after every change demands of
// Incremental what Recompile makes of the same, with the numbers of the same Allocator.
func TestIncrementalIsCompile(t *testing.T) {
	kinds := map[string]int{}
	for s := *seed; s < *seed+int64(*worlds); s++ {
		e := newEdited(t, s)
		for i := range *edits {
			what := e.edit()
			e.step(fmt.Sprintf("seed %d, change %d: %s", s, i, what))
			kinds[what]++
			if t.Failed() {
				return
			}
		}
		kinds["whole"] += e.wholes
		kinds["undone"] += e.undone
	}
	t.Log(kinds)
	for _, kind := range []string{"world", "pod goes", "pod moves", "interface goes", "interface comes", "service", "slice", "invalid policy", "limits", "other node", "whole", "undone", "many"} {
		if kinds[kind] == 0 {
			t.Errorf("there was never %q: the test tries too little", kind)
		}
	}
}

// TestIncrementalForgets changes clusters without another compilation in between, and demands
// that the Allocator remembers what is in use and nothing of the rest.
func TestIncrementalForgets(t *testing.T) {
	for s := range int64(*worlds / 3) {
		e := newEdited(t, s)
		for i := range *edits {
			e.edit()
			e.compile()
			if e.ids.Forget(); e.inc == nil {
				continue
			}
			if wrong := e.inc.Remembered(); wrong != "" {
				t.Fatalf("seed %d, change %d: %s", s, i, wrong)
			}
			e.last, e.before = e.cluster.Clone(), snapshot(e.result)
		}
	}
}

// edited is a cluster, what is in force of it, and both ways to compile it.
type edited struct {
	t       *testing.T
	r       *rand.Rand
	w       *randomcluster.World
	cluster *policy.Cluster
	node    policy.Node
	locals  []policy.Local
	ids     *policy.Allocator
	inc     *policy.Incremental
	result  *policy.Result
	before  policy.Before
	last    *policy.Cluster // compiled last

	mirror         *datapath.State // what deltas make of the first State
	masks          map[datapath.MaskKey]datapath.Mask
	wholes, undone int
}

func newEdited(t *testing.T, seed int64) *edited {
	r := rand.New(rand.NewSource(seed))
	e := &edited{t: t, r: r, w: randomcluster.New(r), ids: policy.NewAllocator()}
	e.cluster, e.node, e.locals = e.w.Cluster.Clone(), e.w.Node, slices.Clone(e.w.Locals)
	e.node.Name = "here"
	e.cluster.Services = map[types.NamespacedName]*corev1.Service{}
	e.cluster.EndpointSlices = map[types.NamespacedName]*discoveryv1.EndpointSlice{}
	e.step(fmt.Sprintf("seed %d, first", seed))
	return e
}

// step compiles both ways.
func (e *edited) step(what string) {
	e.t.Helper()
	oracle := policy.Recompile(e.before, e.cluster, e.node, e.locals, e.ids)
	e.compile()
	if e.t.Failed() {
		return
	}
	e.compare(what, oracle)
	if e.inc != nil && !maps.Equal(e.masks, e.result.State.Masks()) {
		e.t.Errorf("%s: the delta lacks masks", what)
	}
	if e.inc != nil && !reflect.DeepEqual(e.mirror, e.result.State) {
		e.t.Errorf("%s: the delta lacks something:\n%s", what, difference(e.mirror.Text(), e.result.State.Text()))
	}
	e.last = e.cluster.Clone()
	e.ids.Forget()
	e.before = snapshot(e.result)
}

func (e *edited) compile() {
	if e.inc != nil {
		changes := e.last.ChangesTo(e.cluster)
		if e.r.Intn(4) == 0 {
			if s := e.inc.Apply(e.node, e.locals, changes); s != nil {
				e.inc.Undo(s)
				e.undone++
				if was := e.inc.Result().State; !reflect.DeepEqual(was, e.mirror) {
					e.t.Errorf("undone: %s", difference(e.mirror.Text(), was.Text()))
				}
			}
		}
		if s := e.inc.Apply(e.node, e.locals, changes); s != nil {
			e.result = s.Result
			follow(e.mirror, s.Delta, s.Result.State)
			for k, m := range s.Delta.Masks {
				if e.masks[k] = m; m == (datapath.Mask{}) {
					delete(e.masks, k)
				}
			}
			return
		}
		if was := e.inc.Result().State; !reflect.DeepEqual(was, e.mirror) {
			e.t.Errorf("refused, but not undone: %s", difference(e.mirror.Text(), was.Text()))
		}
	}
	e.wholes++
	e.inc, e.result = policy.NewIncremental(e.before, e.cluster, e.node, e.locals, e.ids)
	e.mirror, e.masks = cloneState(e.result.State), e.result.State.Masks()
}

// follow is what a kernel makes of a delta.
func follow(mirror *datapath.State, d *datapath.Delta, is *datapath.State) {
	mirror.Endpoints = is.Endpoints
	for _, k := range d.Peers {
		take(mirror.Peers, is.Peers, k)
	}
	for _, k := range d.Facts {
		take(mirror.Facts, is.Facts, k)
	}
	for _, k := range d.Rulesets {
		take(mirror.Rulesets, is.Rulesets, k)
	}
	for _, k := range d.Frontends {
		take(mirror.Frontends, is.Frontends, k)
	}
	for _, k := range d.Services {
		take(mirror.Services, is.Services, k)
	}
}

func take[K comparable, V any](into, from map[K]V, k K) {
	if v, ok := from[k]; ok {
		into[k] = v
	} else {
		delete(into, k)
	}
}

func cloneState(s *datapath.State) *datapath.State {
	out := *s
	out.Peers, out.Facts, out.Rulesets = maps.Clone(s.Peers), maps.Clone(s.Facts), maps.Clone(s.Rulesets)
	out.Frontends, out.Services = maps.Clone(s.Frontends), maps.Clone(s.Services)
	return &out
}

// snapshot is what a compilation goes on from, as it is now.
func snapshot(r *policy.Result) policy.Before {
	b := r.InForce()
	b.Policies, b.Names = maps.Clone(b.Policies), maps.Clone(b.Names)
	return b
}

func (e *edited) compare(what string, want *policy.Result) {
	e.t.Helper()
	got := e.result.Whole()
	sortProblems := func(all []policy.Problem) []policy.Problem {
		return slices.SortedFunc(slices.Values(all), func(a, b policy.Problem) int { return strings.Compare(a.String(), b.String()) })
	}
	for _, p := range []struct {
		name      string
		got, want any
	}{
		{"endpoints", got.Endpoints, want.Endpoints}, {"blocks", got.Blocks, want.Blocks}, {"names", got.Names, want.Names},
		{"held", got.Held, want.Held}, {"enforced", got.Enforced.NetworkPolicies, want.Enforced.NetworkPolicies},
		{"refused", got.Enforced.Refused, want.Enforced.Refused}, {"pods", got.Enforced.Pods, want.Enforced.Pods},
		{"identities", got.Identities, want.Identities}, {"policies", got.Policies, want.Policies},
		{"errors", sortProblems(got.Errors), sortProblems(want.Errors)}, {"warnings", sortProblems(got.Warnings), sortProblems(want.Warnings)},
		{"remembered", got.Remembered(), want.Remembered()},
	} {
		if !reflect.DeepEqual(p.got, p.want) {
			e.t.Errorf("%s: %s\n%+v\nwant\n%+v", what, p.name, p.got, p.want)
		}
	}
	if !reflect.DeepEqual(got.State, want.State) {
		e.t.Errorf("%s: %s", what, difference(got.State.Text(), want.State.Text()))
	}
}

// difference is the lines that only one of two texts has.
func difference(got, want string) string {
	var out []string
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "+ "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "- "+l)
		}
	}
	return strings.Join(out, "\n")
}

// edit changes something.
func (e *edited) edit() string {
	switch e.r.Intn(16) {
	case 0:
		return e.podGoes()
	case 1:
		return e.podMoves()
	case 2:
		return e.interfaces()
	case 3:
		return e.service()
	case 4, 5:
		return e.slice()
	case 6:
		return e.invalid()
	case 7:
		return e.limits()
	case 8:
		e.node.RemoteNodes = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", 18+e.r.Intn(3)))}
		return "other node"
	case 9:
		for range 2 + e.r.Intn(4) {
			e.edit()
		}
		return "many"
	}
	e.w.Cluster = e.cluster.Clone()
	e.w.Edit()
	services, endpoints := e.cluster.Services, e.cluster.EndpointSlices
	e.cluster = e.w.Cluster
	e.cluster.Services, e.cluster.EndpointSlices = services, endpoints
	return "world"
}

func (e *edited) anyPod() *policy.Pod {
	names := slices.SortedFunc(maps.Keys(e.cluster.Pods), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	if len(names) == 0 {
		return nil
	}
	return e.cluster.Pods[names[e.r.Intn(len(names))]]
}

func (e *edited) podGoes() string {
	if pod := e.anyPod(); pod != nil {
		delete(e.cluster.Pods, types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
	}
	return "pod goes"
}

// podMoves gives a pod another address, perhaps somebody's, or ends it, or puts it on its
// node's network; or there is one more.
func (e *edited) podMoves() string {
	pod := e.anyPod()
	if pod == nil {
		return "no pod"
	}
	pod = pod.Clone()
	switch e.r.Intn(5) {
	case 0:
		pod.Finished = e.r.Intn(2) == 1
	case 1:
		pod.HostNetwork = !pod.HostNetwork
	case 2:
		pod.Name = fmt.Sprint("more", e.r.Intn(9))
	}
	if e.r.Intn(2) == 0 {
		pod.Ports = append(pod.Ports, corev1.ContainerPort{ContainerPort: 80, HostPort: int32(8000 + e.r.Intn(3))})
	}
	pod.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + e.r.Intn(20))}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", 1+e.r.Intn(20)))}
	e.cluster.Pods[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	return "pod moves"
}

func (e *edited) interfaces() string {
	e.locals = slices.Clone(e.locals)
	if pod := e.anyPod(); pod != nil && e.r.Intn(2) == 0 {
		n := uint32(1)
		for slices.ContainsFunc(e.locals, func(l policy.Local) bool { return l.Number == n }) {
			n++
		}
		e.locals = append(e.locals, policy.Local{Pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, Number: n,
			Endpoint: datapath.Endpoint{Ifindex: 100 + n, Addr4: netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + e.r.Intn(20))})}})
		return "interface comes"
	}
	if len(e.locals) > 0 {
		i := e.r.Intn(len(e.locals))
		if pod := e.anyPod(); pod != nil && e.r.Intn(2) == 0 {
			e.locals[i].Pod = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
			return "interface is another pod's"
		}
		e.locals = slices.Delete(e.locals, i, i+1)
	}
	return "interface goes"
}

func (e *edited) service() string {
	name := types.NamespacedName{Namespace: "x", Name: fmt.Sprint("s", e.r.Intn(4))}
	if e.r.Intn(4) == 0 {
		delete(e.cluster.Services, name)
		return "service"
	}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
	s.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 1+e.r.Intn(4))
	if e.r.Intn(2) == 0 {
		s.Spec.ExternalIPs = []string{fmt.Sprintf("10.96.0.%d", 1+e.r.Intn(4)), "203.0.113.1"}
	}
	for i := range 1 + e.r.Intn(2) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(80 + e.r.Intn(2)), NodePort: int32(e.r.Intn(2) * 30000)})
	}
	e.cluster.Services[name] = s
	return "service"
}

func (e *edited) slice() string {
	name := types.NamespacedName{Namespace: "x", Name: fmt.Sprint("slice", e.r.Intn(6))}
	if e.r.Intn(4) == 0 {
		delete(e.cluster.EndpointSlices, name)
		return "slice"
	}
	port, portName := int32(8080), fmt.Sprint("p", e.r.Intn(2))
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "x", Name: name.Name, Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", e.r.Intn(4))}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for range e.r.Intn(3) {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.0.%d", 15+e.r.Intn(4))}})
	}
	e.cluster.EndpointSlices[name] = s
	return "slice"
}

// invalid breaks a policy; it stays broken until it is another or gone.
func (e *edited) invalid() string {
	for name, np := range e.cluster.NetworkPolicies {
		if e.r.Intn(3) > 0 {
			continue
		}
		np = np.DeepCopy()
		if len(np.Spec.Ingress) > 0 && np.Spec.Ingress[0].From == nil {
			np.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "nonsense"}}}
		} else {
			np.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Is"}}
		}
		e.cluster.NetworkPolicies[name] = np
		return "invalid policy"
	}
	return "no policy"
}

// limits are about what is needed, or none.
func (e *edited) limits() string {
	e.node.Limits = datapath.Limits{}
	if e.r.Intn(3) > 0 {
		need := e.result.State.Size()
		i := e.r.Intn(len(need.Values()))
		*e.node.Limits.Values()[i] = *need.Values()[i] * (6 + e.r.Intn(6)) / 8
	}
	return "limits"
}
