// Package atomic floods a node with packets while commits flip between two states, and holds
// that each was judged by one of them whole: the one of the epoch it was judged under.
package atomic

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// scene is two clusters on one node. Pods are named by letters and have the label role.
// One more, w, watches: nothing isolates it, and its egress policy has a rule for each
// role, so that it learns every pod's identity and ingress ruleset.
type scene struct {
	pods    []string
	a, b    side
	outside [][2]string // addresses that pods try too, by family
	ranges  int         // over each other, that each rule allows; 0 = it allows all ports
}

// side is a cluster: the pods' roles, in order, and who may reach whom, by role. A policy
// for each role isolates its pods; its name is the state's, so that a denial tells both.
type side struct {
	name   string
	roles  []string
	allows []allow
	blocks []block  // what pods of role x may reach
	remote []string // roles of pods elsewhere, at the first of outside
}

type allow struct{ name, from, to string }

type block struct {
	name, cidr string
	except     []string
}

var scenes = map[string]scene{
	// Another pair may talk: a's egress under one state with b's ingress under the other is
	// a denial by ingress, which neither state has.
	"policies": {
		pods: []string{"x", "y", "z"},
		a:    side{name: "a", roles: []string{"x", "y", "z"}, allows: []allow{{"xy", "x", "y"}}},
		b:    side{name: "b", roles: []string{"x", "y", "z"}, allows: []allow{{"yz", "y", "z"}}},
	},
	// Likewise with so many ranges that spans and masks are asked.
	"ranges": {
		pods:   []string{"x", "y", "z"},
		a:      side{name: "a", roles: []string{"x", "y", "z"}, allows: []allow{{"xy", "x", "y"}}},
		b:      side{name: "b", roles: []string{"x", "y", "z"}, allows: []allow{{"yz", "y", "z"}}},
		ranges: datapath.ScanMax + 4,
	},
	// All pods change places: identities and rulesets of six pods at once, no policy.
	"swap": {
		pods: []string{"p", "q", "r", "s", "t", "u"},
		a:    side{name: "ab", roles: []string{"client", "server", "none", "client", "server", "none"}, allows: []allow{{"p", "client", "server"}}},
		b:    side{name: "ab", roles: []string{"server", "none", "client", "none", "client", "server"}, allows: []allow{{"p", "client", "server"}}},
	},
	// A pod's label and the policy that asks for it change together: x reaches y all the
	// time, and is dropped by any mixture.
	"label": {
		pods: []string{"x", "y"},
		a:    side{name: "ab", roles: []string{"red", "y"}, allows: []allow{{"p", "red", "y"}}},
		b:    side{name: "ab", roles: []string{"blue", "y"}, allows: []allow{{"p", "blue", "y"}}},
	},
	// Prefixes come, go and cover one another, and so does the address of a pod elsewhere.
	"blocks": {
		pods: []string{"x"},
		a: side{name: "a", roles: []string{"x"}, remote: []string{"y"}, allows: []allow{{"xy", "x", "y"}}, blocks: []block{
			{"p4", "192.0.2.0/24", []string{"192.0.2.64/26", "192.0.2.128/25"}}, {"p6", "2001:db8::/120", []string{"2001:db8::40/122", "2001:db8::80/121"}}}},
		b: side{name: "b", roles: []string{"x"}, blocks: []block{
			{"q4", "192.0.2.0/25", []string{"192.0.2.0/26"}}, {"q6", "2001:db8::/121", []string{"2001:db8::/122"}},
			{"r4", "192.0.2.192/26", nil}, {"r6", "2001:db8::c0/122", nil}}},
		outside: [][2]string{{"10.0.1.5", "fd00:1::5"}, {"192.0.2.1", "2001:db8::1"}, {"192.0.2.65", "2001:db8::41"},
			{"192.0.2.129", "2001:db8::81"}, {"192.0.2.193", "2001:db8::c1"}, {"198.51.100.1", "2001:db8:1::1"}},
	},
}

// node knows the pods' ranges, so that an address there that is nobody's is not the world's.
var node = policy.Node{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/15"), netip.MustParsePrefix("fd00::/16")}}

const watcher = "w"

const namespace = "n"

func (s scene) locals() (out []policy.Local) {
	for i, name := range append(slices.Clone(s.pods), watcher) {
		out = append(out, policy.Local{
			Pod: types.NamespacedName{Namespace: namespace, Name: name}, Number: uint32(i + 1),
			Endpoint: datapath.Endpoint{
				Ifindex: uint32(100 + i), MAC: [6]byte{2, 0, 0, 0, 0, byte(i + 1)},
				Addr4: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Addr6: netip.MustParseAddr(fmt.Sprintf("fd00::%x", i+1)),
			},
		})
	}
	return out
}

func (s scene) cluster(d side) *policy.Cluster {
	c := &policy.Cluster{
		Namespaces:      map[string]*corev1.Namespace{},
		Pods:            map[types.NamespacedName]*policy.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
	}
	for i, name := range append(slices.Clone(s.pods), watcher) {
		role := append(slices.Clone(d.roles), watcher)[i]
		c.Pods[types.NamespacedName{Namespace: namespace, Name: name}] = &policy.Pod{
			Namespace: namespace, Name: name, Labels: map[string]string{"role": role}}
	}
	add := func(name string, spec networkingv1.NetworkPolicySpec) {
		c.NetworkPolicies[types.NamespacedName{Namespace: namespace, Name: name}] = &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
	}
	for i, role := range d.remote {
		c.Pods[types.NamespacedName{Namespace: namespace, Name: fmt.Sprint("remote", i)}] = &policy.Pod{
			Namespace: namespace, Name: fmt.Sprint("remote", i), Labels: map[string]string{"role": role},
			Addresses: []netip.Addr{netip.MustParseAddr(s.outside[i][0]), netip.MustParseAddr(s.outside[i][1])}}
	}
	for _, b := range d.blocks {
		add(b.name, networkingv1.NetworkPolicySpec{PodSelector: selector("x"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: b.cidr, Except: b.except}}}}}})
	}
	watch := networkingv1.NetworkPolicySpec{PodSelector: selector(watcher), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}}
	for _, role := range s.roles() {
		both := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
		add("isolate-"+d.name+"-"+role, networkingv1.NetworkPolicySpec{PodSelector: selector(role), PolicyTypes: both})
		watch.Egress = append(watch.Egress, networkingv1.NetworkPolicyEgressRule{To: peer(role)})
	}
	add("watch", watch)
	for _, p := range d.allows {
		add(p.name+"-out", networkingv1.NetworkPolicySpec{PodSelector: selector(p.from), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress: []networkingv1.NetworkPolicyEgressRule{{To: peer(p.to), Ports: s.ports()}}})
		add(p.name+"-in", networkingv1.NetworkPolicySpec{PodSelector: selector(p.to), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peer(p.from), Ports: s.ports()}}})
	}
	return c
}

func (s scene) ports() (out []networkingv1.NetworkPolicyPort) {
	for i := range s.ranges {
		low, end := intstr.FromInt32(dport-int32(i)), int32(dport+1+i)
		out = append(out, networkingv1.NetworkPolicyPort{Port: &low, EndPort: &end})
	}
	return out
}

// roles of both sides.
func (s scene) roles() []string {
	roles := slices.Concat(s.a.roles, s.b.roles)
	slices.Sort(roles)
	return slices.Compact(roles)
}

func peer(role string) []networkingv1.NetworkPolicyPeer {
	s := selector(role)
	return []networkingv1.NetworkPolicyPeer{{PodSelector: &s}}
}

func selector(role string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"role": role}}
}

// states compiles both; the rule ids are of one table.
func (s scene) states(locals []policy.Local) (a, b *datapath.State) {
	ids := policy.NewAllocator()
	return policy.Compile(s.cluster(s.a), node, locals, ids).State, policy.Compile(s.cluster(s.b), node, locals, ids).State
}

// pair is a pod and whom it tries: endpoint numbers, or outsider + an index of outside.
type pair struct {
	from, to uint32
	family   int
}

const outsider = 1000

func (s scene) pairs() (out []pair) {
	numbers := []uint32{}
	for i := range len(s.pods) + 1 {
		numbers = append(numbers, uint32(i+1))
	}
	for i := range s.outside {
		numbers = append(numbers, uint32(i+outsider))
	}
	for _, from := range numbers[:len(s.pods)+1] {
		for _, to := range numbers {
			if from != to {
				out = append(out, pair{from, to, 4}, pair{from, to, 6})
			}
		}
	}
	return out
}

// address of an end of a pair.
func (s scene) address(n uint32, family int) netip.Addr {
	if n >= outsider {
		return netip.MustParseAddr(s.outside[n-outsider][family/2-2])
	}
	ep := s.locals()[n-1].Endpoint
	return [2]netip.Addr{ep.Addr4, ep.Addr6}[family/2-2]
}

// outcome is what a state says of a pair's packets.
type outcome struct {
	forwarded bool
	rule      [2]uint32 // by direction; 0 = not asked
}

// denial is the rule and direction that deny.
func (o outcome) denial() (rule uint32, direction uint8) {
	if o.rule[datapath.Ingress] != 0 {
		return o.rule[datapath.Ingress], uint8(datapath.Ingress)
	}
	return o.rule[datapath.Egress], uint8(datapath.Egress)
}

// judge says what a state does.
func (s scene) judge(state *datapath.State, p pair) (o outcome) {
	from, to := lookup(state, s.address(p.from, p.family)), lookup(state, s.address(p.to, p.family))
	o.forwarded, o.rule[datapath.Egress], _ = state.Judge(state.Endpoints[p.from].Egress, to, datapath.TCP, dport)
	if o.forwarded && to.Endpoint != 0 {
		o.forwarded, o.rule[datapath.Ingress], _ = state.Judge(state.Endpoints[p.to].Ingress, from, datapath.TCP, dport)
	}
	return o
}

// lookup is the address itself, else the longest prefix over it.
func lookup(state *datapath.State, a netip.Addr) datapath.Peer {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p, ok := state.Peers[netip.PrefixFrom(a, bits).Masked()]; ok {
			return p
		}
	}
	return datapath.Peer{}
}

// TestEveryMixtureIsVisible holds the scenes to what they are for: let any of the words that
// a commit changes come too early or too late, and some pair's outcome is neither state's.
func TestEveryMixtureIsVisible(t *testing.T) {
	for name, s := range scenes {
		if s.outside != nil {
			continue // not every prefix has an address that is tried
		}
		a, b := s.states(s.locals())
		if want := s.ranges > 0; want != (a.Size().Masks > 0) {
			t.Errorf("%s: %d masks", name, a.Size().Masks)
		}
		mixtures := 0
		for m := range mixed(a, b) {
			mixtures++
			if s.outcomesEqual(m, a) || s.outcomesEqual(m, b) {
				t.Errorf("%s: a mixture looks like a state: %+v %+v", name, m.Endpoints, m.Peers)
			}
		}
		if mixtures == 0 {
			t.Errorf("%s: there are no mixtures", name)
		}
		t.Logf("%s: %d mixtures", name, mixtures)
	}
}

func (s scene) outcomesEqual(x, y *datapath.State) bool {
	return !slices.ContainsFunc(s.pairs(), func(p pair) bool { return s.judge(x, p) != s.judge(y, p) })
}

// mixed yields the states that have each changed word (an endpoint's rulesets, an address's
// identity of both families) of a or of b, but a and b.
func mixed(a, b *datapath.State) func(func(*datapath.State) bool) {
	return func(yield func(*datapath.State) bool) {
		var words []func(m *datapath.State)
		for n, ep := range b.Endpoints {
			if ep != a.Endpoints[n] {
				words = append(words, func(m *datapath.State) { m.Endpoints[n] = ep })
			}
		}
		for p, peer := range b.Peers {
			if peer != a.Peers[p] && p.Addr().Is4() {
				words = append(words, func(m *datapath.State) { m.Peers[p] = peer })
			}
		}
		for set := 1; set < 1<<len(words)-1; set++ {
			m := &datapath.State{Endpoints: maps.Clone(a.Endpoints), Peers: maps.Clone(a.Peers), Facts: maps.Clone(a.Facts), Rulesets: maps.Clone(a.Rulesets), Frontends: a.Frontends}
			maps.Copy(m.Facts, b.Facts) // facts and rulesets are immutable: both are there
			maps.Copy(m.Rulesets, b.Rulesets)
			for i, word := range words {
				if set&(1<<i) != 0 {
					word(m)
				}
			}
			if !yield(m) {
				return
			}
		}
	}
}
