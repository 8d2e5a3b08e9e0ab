package policy

import (
	"flag"
	"fmt"
	"math/rand"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

var (
	seed = flag.Int64("seed", 1, "first seed of the differential test")
	sets = flag.Int("sets", 150, "random clusters of the differential test")
)

// TestCompileAgreesWithVerdict walks the compiled state as the kernel does and asks the
// reference the same, over random clusters: the verdict of both sides and the rule that
// decides each must be equal.
func TestCompileAgreesWithVerdict(t *testing.T) {
	tuples, allowed := 0, 0
	for s := *seed; s < *seed+int64(*sets); s++ {
		w := newScene(rand.New(rand.NewSource(s)))
		ids := NewAllocator()
		result := Compile(w.cluster, w.node, w.locals, ids)
		for _, from := range w.ends {
			for _, to := range w.ends {
				for i := 0; i < 8; i++ {
					tuple := w.tuple(from, to)
					if tuple == nil {
						continue
					}
					tuples++
					if w.compare(t, s, result.State, ids, *tuple) {
						allowed++
					}
				}
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d: %d policies", s, len(w.cluster.NetworkPolicies))
		}
	}
	t.Logf("%d tuples, %d allowed", tuples, allowed)
	if tuples < 200_000 && *sets >= 150 {
		t.Errorf("only %d tuples", tuples)
	}
	if allowed*20 < tuples || allowed*20 > 19*tuples {
		t.Errorf("%d of %d allowed: the sets are too much alike to tell anything", allowed, tuples)
	}
}

func (w *scene) compare(t *testing.T, s int64, state *datapath.State, ids *Allocator, tuple Tuple) (allowed bool) {
	t.Helper()
	want := Verdict(w.cluster, w.node, tuple)
	gotEgress, gotIngress := walk(state, w.node, tuple)
	for d, pair := range [...]struct {
		got  *judged
		want *Side
		pod  types.NamespacedName
	}{{gotEgress, want.Egress, tuple.From.Pod}, {gotIngress, want.Ingress, tuple.To.Pod}} {
		if w.local[pair.pod] == nil {
			continue // judged on its own node
		}
		if pair.got == nil || pair.want == nil {
			t.Fatalf("seed %d, %+v, %s: compiled %v, reference %v", s, tuple, datapath.Direction(d), pair.got, pair.want)
		}
		rule, ok := ids.Rule(pair.got.rule)
		if !ok || pair.got.allow != (pair.want.Verdict == Forwarded) || !sameRule(rule, pair.want) {
			t.Errorf("seed %d, %+v, %s: compiled %v by rule %d %s %+v, reference %+v", s, tuple, datapath.Direction(d), pair.got.allow, pair.got.rule, rule, rule, pair.want)
		}
	}
	return want.Forwarded
}

// sameRule reports whether the id's rule is the one that the reference names.
func sameRule(r Rule, s *Side) bool {
	if s.Verdict == Dropped {
		return r.Kind == KindDefaultDeny && reflect.DeepEqual(r.IsolatedBy, s.IsolatedBy)
	}
	want := s.Rules[0]
	return r.Kind == want.Kind && r.Name == want.Name && r.Index == want.Index &&
		(r.Kind != KindNetworkPolicy || r.Namespace == want.Namespace)
}

type judged struct {
	allow bool
	rule  uint32
}

// walk is the kernel's slow path: who the ends are by their addresses, the rules that
// need no ruleset, then egress of a local sender and ingress of a local receiver.
func walk(state *datapath.State, n Node, t Tuple) (egress, ingress *judged) {
	from, to := lookup(state, t.From.Addr), lookup(state, t.To.Addr)
	if from.Endpoint != 0 && from.Endpoint == to.Endpoint {
		self := &judged{true, datapath.RuleSelf}
		return self, self
	}
	port := t.Port
	if !slices.Contains([]uint8{datapath.TCP, datapath.UDP, datapath.SCTP}, t.Protocol) {
		port = 0
	}
	ask := func(ruleset uint32, peer datapath.Peer) *judged {
		allow, rule, _ := state.Judge(ruleset, peer, t.Protocol, port)
		return &judged{allow, rule}
	}
	if from.Endpoint != 0 {
		egress = ask(state.Endpoints[from.Endpoint].Egress, to)
		if n.NodeEgressAllow && to.Identity == identity.Host {
			egress = &judged{true, datapath.RuleNodeEgress}
		}
	}
	if to.Endpoint != 0 {
		ingress = ask(state.Endpoints[to.Endpoint].Ingress, from)
		if from.Identity == identity.Host {
			ingress = &judged{true, datapath.RuleNode}
		}
	}
	return egress, ingress
}

// lookup is the ipcache: the address itself, else the longest prefix over it.
func lookup(state *datapath.State, a netip.Addr) datapath.Peer {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p, ok := state.Peers[netip.PrefixFrom(a, bits).Masked()]; ok {
			return p
		}
	}
	return datapath.Peer{}
}

// scene is a random cluster of a dozen pods, on this node and elsewhere, with addresses
// of both families in ranges that policies' blocks cut across.
type scene struct {
	r       *rand.Rand
	cluster *Cluster
	node    Node
	locals  []Local
	local   map[types.NamespacedName]*Local
	ends    []place
}

// place is somebody who can begin or answer connections.
type place struct {
	pod   types.NamespacedName
	addrs [2]netip.Addr // by family: IPv4, IPv6; zero = none
}

func newScene(r *rand.Rand) *scene {
	w := &scene{r: r, local: map[types.NamespacedName]*Local{}, cluster: &Cluster{
		Namespaces:      map[string]*corev1.Namespace{},
		Pods:            map[types.NamespacedName]*corev1.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
	}}
	w.node = Node{
		Addresses:       []netip.Addr{netip.MustParseAddr("10.0.0.17"), netip.MustParseAddr("fd00::17")},
		RemoteNodes:     []netip.Addr{netip.MustParseAddr("10.0.0.18")},
		ClusterCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/120")},
		NodeEgressAllow: r.Intn(2) == 0,
	}
	for _, name := range []string{"x", "y", "z"} {
		if name != "z" || r.Intn(2) == 0 { // z may be undeclared
			w.cluster.Namespaces[name] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: w.labels()}}
		}
	}
	for i := 1; i <= 12; i++ {
		w.addPod(i)
	}
	for _, texts := range [][2]string{{"10.0.0.17", "fd00::17"}, {"10.0.0.18", ""}, {"10.0.0.30", "fd00::30"}, {"192.0.2.7", "2001:db8::7"}} {
		var p place
		for f, text := range texts {
			p.addrs[f], _ = netip.ParseAddr(text)
		}
		w.ends = append(w.ends, p)
	}
	for i := 1 + r.Intn(8); i > 0; i-- {
		w.addPolicy(i)
	}
	return w
}

var keys = []string{"app", "tier", "env"}

func (w *scene) labels() map[string]string {
	out := map[string]string{}
	for _, k := range keys {
		if w.r.Intn(3) > 0 {
			out[k] = w.value()
		}
	}
	return out
}

func (w *scene) value() string { return []string{"a", "b", "c", ""}[w.r.Intn(4)] }

func (w *scene) addPod(i int) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: string("xyz"[w.r.Intn(3)]), Name: fmt.Sprint("p", i), Labels: w.labels()}}
	pod.Spec.Containers = []corev1.Container{{}, {}}
	for _, name := range []string{"http", "dns"} {
		for c := range pod.Spec.Containers {
			if w.r.Intn(3) == 0 {
				pod.Spec.Containers[c].Ports = append(pod.Spec.Containers[c].Ports, corev1.ContainerPort{
					Name: name, ContainerPort: int32(80 + w.r.Intn(4)), Protocol: w.protocol()})
			}
		}
	}
	p := place{pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}}
	if w.r.Intn(5) > 0 {
		p.addrs[0] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	if !p.addrs[0].IsValid() || w.r.Intn(2) == 0 {
		p.addrs[1] = netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))
	}
	if i <= 7 {
		w.locals = append(w.locals, Local{Pod: p.pod, Number: uint32(i), Endpoint: datapath.Endpoint{Addr4: p.addrs[0], Addr6: p.addrs[1]}})
		w.local[p.pod] = &w.locals[len(w.locals)-1]
	} else {
		for _, a := range p.addrs {
			if a.IsValid() {
				pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
			}
		}
	}
	w.cluster.Pods[p.pod] = pod
	w.ends = append(w.ends, p)
}

func (w *scene) protocol() corev1.Protocol {
	return []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[w.r.Intn(4)]
}

func (w *scene) addPolicy(i int) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: string("xyz"[w.r.Intn(3)]), Name: fmt.Sprint("np", i)}}
	np.Spec.PodSelector = w.selector(2)
	switch w.r.Intn(4) {
	case 0:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	case 1:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	case 2:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	for j := w.r.Intn(4); j > 0; j-- {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
	}
	for j := w.r.Intn(4); j > 0; j-- {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	w.cluster.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
}

// selector is empty one time in n+1, else of all operators.
func (w *scene) selector(n int) metav1.LabelSelector {
	var s metav1.LabelSelector
	if w.r.Intn(n+1) == 0 {
		return s
	}
	for i := 1 + w.r.Intn(2); i > 0; i-- {
		key := keys[w.r.Intn(len(keys))]
		e := metav1.LabelSelectorRequirement{Key: key, Values: []string{w.value(), w.value()}}
		switch w.r.Intn(5) {
		case 0:
			s.MatchLabels = map[string]string{key: w.value()}
			continue
		case 1:
			e.Operator = metav1.LabelSelectorOpIn
		case 2:
			e.Operator = metav1.LabelSelectorOpNotIn
		case 3:
			e.Operator, e.Values = metav1.LabelSelectorOpExists, nil
		case 4:
			e.Operator, e.Values = metav1.LabelSelectorOpDoesNotExist, nil
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (w *scene) peers() (out []networkingv1.NetworkPolicyPeer) {
	for i := w.r.Intn(4); i > 0; i-- {
		var p networkingv1.NetworkPolicyPeer
		pods, namespaces := w.selector(3), w.selector(1)
		switch w.r.Intn(4) {
		case 0:
			p.PodSelector = &pods
		case 1:
			p.NamespaceSelector = &namespaces
		case 2:
			p.PodSelector, p.NamespaceSelector = &pods, &namespaces
		case 3:
			p.IPBlock = w.block()
		}
		out = append(out, p)
	}
	return out
}

// block cuts the pods' range at a random place, with up to two exceptions inside it.
func (w *scene) block() *networkingv1.IPBlock {
	base, most := fmt.Sprintf("10.0.0.%d", w.r.Intn(32)), []int{0, 8, 24, 27, 28, 29, 30, 31, 32}
	if w.r.Intn(2) == 0 {
		base, most = fmt.Sprintf("fd00::%x", w.r.Intn(32)), []int{0, 64, 120, 123, 124, 125, 126, 127, 128}
	}
	a, i := netip.MustParseAddr(base), w.r.Intn(len(most))
	b := &networkingv1.IPBlock{CIDR: netip.PrefixFrom(a, most[i]).Masked().String()}
	for n := w.r.Intn(3); n > 0 && i < len(most)-1; n-- {
		longer := most[i+1+w.r.Intn(len(most)-i-1)]
		b.Except = append(b.Except, netip.PrefixFrom(a, longer).Masked().String())
	}
	return b
}

func (w *scene) ports() (out []networkingv1.NetworkPolicyPort) {
	for i := w.r.Intn(4); i > 0; i-- {
		var p networkingv1.NetworkPolicyPort
		if protocol := w.protocol(); w.r.Intn(4) > 0 {
			p.Protocol = &protocol
		}
		number, name := intstr.FromInt32(int32(79+w.r.Intn(6))), intstr.FromString([]string{"http", "dns"}[w.r.Intn(2)])
		switch w.r.Intn(5) {
		case 0, 1:
			p.Port = &number
		case 2:
			end := number.IntVal + int32(w.r.Intn(4))
			p.Port, p.EndPort = &number, &end
		case 3:
			p.Port = &name
		}
		out = append(out, p)
	}
	return out
}

// tuple is a random connection in a family that both have; nil if they share none.
func (w *scene) tuple(from, to place) *Tuple {
	f := w.r.Intn(2)
	if !from.addrs[f].IsValid() || !to.addrs[f].IsValid() {
		f = 1 - f
	}
	if !from.addrs[f].IsValid() || !to.addrs[f].IsValid() {
		return nil
	}
	t := &Tuple{From: End{from.pod, from.addrs[f]}, To: End{to.pod, to.addrs[f]}, Family: 4 + 2*f,
		Protocol: []uint8{datapath.TCP, datapath.TCP, datapath.UDP, datapath.SCTP, 1, 47}[w.r.Intn(6)]}
	if hasPorts(t.Protocol) {
		t.Port = uint16(78 + w.r.Intn(10))
	}
	return t
}
