package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// compiler is one run of Compile.
type compiler struct {
	cluster    *Cluster
	node       Node
	locals     []Local
	ids        *Allocator
	before     Before
	fates      fates
	known      *rounds // of the rounds before; in run alone
	singles    int     // addresses of pods and nodes said so far
	backends   int     // of Services translated so far, with the head of each list
	overflowed bool    // something besides policies does not fit
	result     *Result
	state      *datapath.State

	pods     []types.NamespacedName // of the cluster, sorted
	policies []*parsed              // by namespace and name
	byNS     map[string][]*parsed
	keys     mentioned
	podID    map[types.NamespacedName]identity.Number
	inUse    map[identity.Number]*IdentityView
	used     map[uint32]identity.PeerSet // sets of this node's rulesets, by id
	names    map[uint32]portName         // likewise, sets that are a port's name
	cidrs    *identity.Blocks[identity.Number]
}

// portName is a port by name, as egress rules have it.
type portName struct {
	name     string
	protocol uint8
}

// Compile makes what a node has to enforce from the cluster's objects and the pods'
// interfaces on it. Numbers come from a; the same input gives the same numbers again.
func Compile(c *Cluster, n Node, locals []Local, a *Allocator) *Result {
	return Recompile(Before{}, c, n, locals, a)
}

// Recompile is Compile on a node that has something in force. What cannot be enforced is
// refused by object: a policy's version in force stays, or, where there is none, the pods
// it selects are isolated. What did not fit before is not tried again unless Before.Retry
// was called.
func Recompile(before Before, c *Cluster, n Node, locals []Local, a *Allocator) *Result {
	return recompile(before, c, n, locals, a, func(r *rounds) *rounds { return r })
}

// recompile has next say what a round knows of those before it.
func recompile(before Before, c *Cluster, n Node, locals []Local, a *Allocator, next func(*rounds) *rounds) *Result {
	a.begin()
	fates := before.remembered(c)
	remembered := len(fates) > 0
	for known := newRounds(c); ; known = next(known) {
		w := newCompiler(c, n, locals, a)
		w.before, w.fates, w.known = before, fates, known
		if w.run() {
			w.result.refusals, w.result.remember = w.refusals(), remembered
			w.result.fates, w.result.incremental = w.fates, !w.overflowed
			return w.result
		}
	}
}

// run compiles; false: something was refused on the way. What costs most comes after what
// can be refused before.
func (w *compiler) run() bool {
	w.pods = w.known.pods
	w.parse()
	if w.keys = mentionedBy(w.policies); w.known.same(w.keys) {
		w.podID, w.inUse = w.known.podID, w.known.inUse
	} else {
		w.identify()
		w.known.identified(w)
	}
	w.rulesets()
	w.blocks()
	if w.refuse(w.tooManyRanges()) || w.refuse(w.tooLarge(w.withoutFacts(), false)) {
		return false
	}
	w.facts()
	if w.refuse(w.tooLarge(datapath.Limits{Facts: len(w.state.Facts), Masks: len(w.state.Masks())}, true)) {
		return false
	}
	w.cutOff()
	w.peers()
	w.frontends()
	w.services()
	w.views()
	w.warn()
	return true
}

func newCompiler(c *Cluster, n Node, locals []Local, a *Allocator) *compiler {
	state := &datapath.State{
		Endpoints: map[uint32]datapath.Endpoint{},
		Peers:     map[netip.Prefix]datapath.Peer{},
		Facts:     map[datapath.Fact]uint32{},
		Rulesets:  map[uint32]datapath.Ruleset{},
		Frontends: map[datapath.Frontend]struct{}{},
		Services:  map[datapath.Frontend]*datapath.Service{},
	}
	locals = slices.Clone(locals)
	slices.SortFunc(locals, func(x, y Local) int { return int(x.Number) - int(y.Number) })
	return &compiler{
		cluster: c, node: n, locals: locals, ids: a, state: state,
		byNS:  map[string][]*parsed{},
		podID: map[types.NamespacedName]identity.Number{},
		inUse: map[identity.Number]*IdentityView{},
		used:  map[uint32]identity.PeerSet{},
		names: map[uint32]portName{},
		result: &Result{
			State:     state,
			Endpoints: map[uint32]EndpointView{},
			Blocks:    map[netip.Prefix]identity.Number{},
			Names:     map[netip.Addr]types.NamespacedName{},
			Held:      map[types.NamespacedName]bool{},
			services:  map[types.NamespacedName]*compiledService{},
		},
	}
}

// mentioned is what some policy can tell pods apart by.
type mentioned struct {
	pods, namespaces, ports map[string]bool
}

func mentionedBy(policies []*parsed) mentioned {
	m := mentioned{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	for _, p := range policies {
		m.add(m.pods, p.subject)
		for _, r := range slices.Concat(p.rules[0], p.rules[1]) {
			for _, peer := range r.peers {
				m.add(m.pods, peer.Pods)
				m.add(m.namespaces, peer.Namespaces)
			}
			for _, port := range r.ports {
				if port.name != "" {
					m.ports[port.name] = true
				}
			}
		}
	}
	return m
}

func (m mentioned) add(keys map[string]bool, s identity.Selector) {
	for _, r := range s.Requirements() {
		keys[r.Key] = true
	}
}

// labelsOf is a pod's identity.
func (w *compiler) labelsOf(pod *Pod) identity.Labels {
	return identity.Labels{
		Namespace:       pod.Namespace,
		NamespaceLabels: only(namespaceLabels(w.cluster, pod.Namespace), w.keys.namespaces),
		PodLabels:       only(pod.Labels, w.keys.pods),
		Ports:           namedPorts(pod, w.keys.ports),
	}
}

func only(labels map[string]string, keys map[string]bool) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if keys[k] {
			out[k] = v
		}
	}
	return out
}

func namedPorts(pod *Pod, names map[string]bool) []identity.NamedPort {
	var out []identity.NamedPort
	for _, p := range pod.Ports {
		protocol, ok := protocolNumber(p.Protocol)
		if ok && names[p.Name] {
			out = append(out, identity.NamedPort{Name: p.Name, Protocol: protocol, Port: uint16(p.ContainerPort)})
		}
	}
	slices.SortFunc(out, func(a, b identity.NamedPort) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(out)
}

// identify numbers the pods that have an identity: those with a network of their own
// that are running or have an interface here.
func (w *compiler) identify() {
	here := map[types.NamespacedName]bool{}
	for _, l := range w.locals {
		here[l.Pod] = true
	}
	found := map[alike]identity.Number{}
	for _, name := range w.pods {
		pod := w.cluster.Pods[name]
		if !here[name] && (pod.HostNetwork || pod.Finished) {
			continue
		}
		like := alikeOf(pod)
		n, ok := found[like]
		if !ok {
			labels := w.labelsOf(pod)
			n = w.ids.identity(labels)
			found[like] = n
			if w.inUse[n] == nil {
				w.inUse[n] = &IdentityView{Number: n, Labels: labels}
			}
		}
		w.podID[name] = n
		w.inUse[n].Pods++
	}
}

// facts says for every set in use which identities and blocks it has.
func (w *compiler) facts() {
	for id, set := range w.used {
		if set.Has(identity.ByLabels) {
			for n, o := range w.known.membersOf(id, &set) {
				w.state.Facts[datapath.Fact{Set: id, Identity: n}] = o
			}
		}
		if set.Has(identity.ByAddress) {
			for cidr, n := range w.result.Blocks {
				if o, ok := set.OfBlock(cidr); ok {
					w.state.Facts[datapath.Fact{Set: id, Identity: n}] = o
				}
			}
		}
	}
	for id, port := range w.names {
		for n, view := range w.inUse {
			for _, p := range view.Labels.Ports {
				if p.Name == port.name && p.Protocol == port.protocol {
					w.state.Facts[datapath.Fact{Set: id, Identity: n, Protocol: p.Protocol, Port: p.Port}] = 0
				}
			}
		}
	}
}

// blocks numbers the policy CIDRs of the sets in use: their blocks and exceptions.
func (w *compiler) blocks() {
	cidrs := map[netip.Prefix]struct{}{}
	for _, set := range w.used {
		set.CIDRs(cidrs)
	}
	for _, p := range slices.SortedFunc(maps.Keys(cidrs), comparePrefixes) {
		w.result.Blocks[p] = w.ids.block(p)
	}
	w.cidrs = identity.NewBlocks(w.result.Blocks)
}

// views lists identities and policies.
func (w *compiler) views() {
	for _, n := range slices.Sorted(maps.Keys(w.inUse)) {
		w.result.Identities = append(w.result.Identities, *w.inUse[n])
	}
	selects := map[*parsed]int{}
	for name := range w.podID {
		for _, p := range w.byNS[name.Namespace] {
			if p.selects(w.cluster.Pods[name]) {
				selects[p]++
			}
		}
	}
	for _, p := range w.policies {
		np := w.result.Enforced.NetworkPolicies[p.name]
		v := PolicyView{Ref: p.ref, Selects: selects[p], Ingress: len(np.Spec.Ingress), Egress: len(np.Spec.Egress)}
		for d, name := range [...]string{datapath.Ingress: "Ingress", datapath.Egress: "Egress"} {
			if p.isolates[d] {
				v.Types = append(v.Types, name)
			}
		}
		slices.Sort(v.Types)
		slices.Reverse(v.Types)
		w.result.Policies = append(w.result.Policies, v)
	}
}
