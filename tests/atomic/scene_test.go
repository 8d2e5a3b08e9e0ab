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

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// scene is two clusters on one node. Pods are named by letters and have the label role.
// One more, w, watches: nothing isolates it, and its egress policy has a rule for each
// role, so that it learns every pod's identity and ingress ruleset.
type scene struct {
	pods []string
	a, b side
}

// side is a cluster: the pods' roles, in order, and who may reach whom, by role. A policy
// for each role isolates its pods; its name is the state's, so that a denial tells both.
type side struct {
	name   string
	roles  []string
	allows []allow
}

type allow struct{ name, from, to string }

var scenes = map[string]scene{
	// Another pair may talk: a's egress under one state with b's ingress under the other is
	// a denial by ingress, which neither state has.
	"policies": {
		pods: []string{"x", "y", "z"},
		a:    side{"a", []string{"x", "y", "z"}, []allow{{"xy", "x", "y"}}},
		b:    side{"b", []string{"x", "y", "z"}, []allow{{"yz", "y", "z"}}},
	},
	// All pods change places: identities and rulesets of six pods at once, no policy.
	"swap": {
		pods: []string{"p", "q", "r", "s", "t", "u"},
		a:    side{"ab", []string{"client", "server", "none", "client", "server", "none"}, []allow{{"p", "client", "server"}}},
		b:    side{"ab", []string{"server", "none", "client", "none", "client", "server"}, []allow{{"p", "client", "server"}}},
	},
	// A pod's label and the policy that asks for it change together: x reaches y all the
	// time, and is dropped by any mixture.
	"label": {
		pods: []string{"x", "y"},
		a:    side{"ab", []string{"red", "y"}, []allow{{"p", "red", "y"}}},
		b:    side{"ab", []string{"blue", "y"}, []allow{{"p", "blue", "y"}}},
	},
}

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
		Pods:            map[types.NamespacedName]*corev1.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
	}
	for i, name := range append(slices.Clone(s.pods), watcher) {
		role := append(slices.Clone(d.roles), watcher)[i]
		c.Pods[types.NamespacedName{Namespace: namespace, Name: name}] = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"role": role}}}
	}
	add := func(name string, spec networkingv1.NetworkPolicySpec) {
		c.NetworkPolicies[types.NamespacedName{Namespace: namespace, Name: name}] = &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
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
			Egress: []networkingv1.NetworkPolicyEgressRule{{To: peer(p.to)}}})
		add(p.name+"-in", networkingv1.NetworkPolicySpec{PodSelector: selector(p.to), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peer(p.from)}}})
	}
	return c
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
	return policy.Compile(s.cluster(s.a), policy.Node{}, locals, ids).State, policy.Compile(s.cluster(s.b), policy.Node{}, locals, ids).State
}

// pair is two pods, by their endpoint numbers.
type pair struct{ from, to uint32 }

func (s scene) pairs() (out []pair) {
	for from := range len(s.pods) + 1 {
		for to := range len(s.pods) + 1 {
			if from != to {
				out = append(out, pair{uint32(from + 1), uint32(to + 1)})
			}
		}
	}
	return out
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

func judge(s *datapath.State, p pair) (o outcome) {
	from, to := s.Endpoints[p.from], s.Endpoints[p.to]
	peer := func(ep datapath.Endpoint) datapath.Peer { return s.Peers[netip.PrefixFrom(ep.Addr4, 32)] }
	if o.forwarded, o.rule[datapath.Egress], _ = s.Judge(from.Egress, peer(to), datapath.TCP, 80); o.forwarded {
		o.forwarded, o.rule[datapath.Ingress], _ = s.Judge(to.Ingress, peer(from), datapath.TCP, 80)
	}
	return o
}

// TestEveryMixtureIsVisible holds the scenes to what they are for: let any of the words that
// a commit changes come too early or too late, and some pair's outcome is neither state's.
func TestEveryMixtureIsVisible(t *testing.T) {
	for name, s := range scenes {
		a, b := s.states(s.locals())
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
	return !slices.ContainsFunc(s.pairs(), func(p pair) bool { return judge(x, p) != judge(y, p) })
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
			if p.Addr().Is4() && peer != a.Peers[p] {
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
