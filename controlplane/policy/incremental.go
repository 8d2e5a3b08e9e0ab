package policy

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Incremental compiles a cluster once and then only what changes reach. Its State is
// Compile's; what it keeps besides are the ways from an object to what is made of it:
//
//	policy --selects--> identity of pods here --> ruleset --> peer set --> fact <-- identity <-- pod
//	                                                              \--> block --> addresses <----/
//
// It has no answer to what does not fit, and to a policy that is not valid: then everything
// is compiled by Recompile, which decides what is refused, and Incremental goes on from that.
// The Result's maps change in place with the next Apply.
type Incremental struct {
	node    Node
	ids     *Allocator
	cluster *Cluster // as it is enforced
	result  *Result
	state   *datapath.State
	fates   fates // of policies that are not enforced as they are written; they stay

	locals    []Local // by number
	here      map[types.NamespacedName]bool
	localAt   map[netip.Addr]Local // the first to have the address
	nodeAt    map[netip.Addr]identity.Number
	remoteAt  map[netip.Addr]identity.Number
	rangeAt   map[netip.Prefix]identity.Number
	ranges    *identity.Blocks[identity.Number] // of rangeAt
	ownTexts  map[string]bool                   // this node's addresses
	hostPorts []datapath.Frontend

	mentions   mentions
	spaces     map[string]*space
	pods       map[types.NamespacedName]*known
	policies   map[types.NamespacedName]*parsed
	identities map[identity.Number]*member
	views      map[identity.Number]*localView // of identities that pods here have

	rulesets   map[uint32]int // views that use it
	rules      map[uint32]int // rulesets that have it
	sets       map[uint32]*setUse
	wideSets   map[*setUse]bool            // that pods of any namespace may be in
	setsIn     map[string]map[*setUse]bool // others, by namespace
	blockSets  map[*setUse]bool            // with members by address
	blocks     map[netip.Prefix]*blockUse
	cidrs      *identity.Blocks[identity.Number]
	spanned    map[uint32]datapath.Ruleset // that have spans
	spannedBy  map[uint32]map[uint32]bool  // rulesets of those, by set
	masks      map[datapath.MaskKey]datapath.Mask
	size       datapath.Limits // of rulesets
	tooWide    int             // rulesets with more wide groups than the kernel scans
	claims     claims
	serviceUse serviceUse
}

// Step is what a change reached.
type Step struct {
	Result  *Result
	Delta   *datapath.Delta // nil: everything
	Changed Changes         // the objects
	Was     Changes         // these before
	// What of the Delta was said before; what is not there had nothing.
	WasNames    map[netip.Addr]Name
	WasServices map[datapath.Frontend]*datapath.Service

	locals []Local
}

// Name is who has an address.
type Name struct {
	Pod      types.NamespacedName // zero: nobody with a name
	Identity identity.Number
}

// space is a namespace that is there or that something is in.
type space struct {
	labels   map[string]string // those that are mentioned
	pods     map[*known]bool
	keys     map[string]int // of labels, by how many pods have them
	ports    map[string]int // names likewise
	policies map[types.NamespacedName]*parsed
	members  map[*member]bool
}

// known is a pod of the cluster. There are as many as pods: what a Pod says is not said again.
type known struct {
	pod     *Pod
	member  *member // nil: no policy can mean it
	claimed bool    // its addresses, see elsewhere
	gone    bool
}

func (k *known) name() types.NamespacedName {
	return types.NamespacedName{Namespace: k.pod.Namespace, Name: k.pod.Name}
}

// elsewhere are the addresses that the API has for it, if it has no interface here.
func (k *known) elsewhere() []netip.Addr {
	if !k.claimed {
		return nil
	}
	return StatusAddresses(k.pod)
}

// member is an identity that pods have.
type member struct {
	number identity.Number
	labels identity.Labels
	pods   int
	listed bool // facts are said about it
	sets   map[*setUse]bool
}

// localView is a view and what it needs.
type localView struct {
	view     EndpointView
	policies [2][]*parsed // that isolate it, by name
	rulesets []uint32
	sets     []uint32
}

// step is a change on its way.
type step struct {
	delta    *datapath.Delta
	pods     map[*known]bool // to be identified
	members  map[*member]bool
	views    map[identity.Number]bool
	fresh    map[*setUse]bool // used by the first view, or not by the last any more
	idle     map[uint32]bool  // rulesets likewise
	rest     map[uint32]bool  // rules likewise
	blocks   map[netip.Prefix]bool
	peers    map[netip.Prefix]bool
	facts    map[datapath.Fact]bool
	fronts   map[datapath.Frontend]bool
	services map[types.NamespacedName]bool

	wasNames    map[netip.Addr]Name
	wasServices map[datapath.Frontend]*datapath.Service
}

// NewIncremental compiles everything.
func NewIncremental(before Before, c *Cluster, n Node, locals []Local, a *Allocator) (*Incremental, *Result) {
	if len(before.remembered(c)) == 0 {
		x := newIncremental(n, a)
		x.cluster.Refused = map[types.NamespacedName]bool{}
		if s := x.Apply(n, locals, (&Cluster{}).ChangesTo(c)); s != nil {
			s.Result.Enforced = x.cluster
			return x, s.Result
		}
	}
	r := Recompile(before, c, n, locals, a)
	if !r.incremental {
		return nil, r
	}
	x := newIncremental(n, a)
	x.fates, x.result.Held = r.fates, r.Held
	x.cluster.Refused = r.Enforced.Refused
	x.result.Errors = r.Errors
	x.result.refusals, x.result.remember = r.refusals, r.remember
	if s := x.Apply(n, locals, (&Cluster{}).ChangesTo(r.Enforced)); s != nil {
		return x, s.Result
	}
	return nil, r
}

func newIncremental(n Node, a *Allocator) *Incremental {
	a.begin()
	empty := newCompiler(&Cluster{}, n, nil, a)
	x := &Incremental{
		node: n, ids: a, cluster: &Cluster{}, result: empty.result, state: empty.state, fates: fates{},
		mentions: mentions{map[string]int{}, map[string]int{}, map[string]int{}},
		spaces:   map[string]*space{}, pods: map[types.NamespacedName]*known{}, policies: map[types.NamespacedName]*parsed{},
		identities: map[identity.Number]*member{}, views: map[identity.Number]*localView{},
		rulesets: map[uint32]int{}, rules: map[uint32]int{}, sets: map[uint32]*setUse{},
		wideSets: map[*setUse]bool{}, setsIn: map[string]map[*setUse]bool{}, blockSets: map[*setUse]bool{},
		blocks: map[netip.Prefix]*blockUse{}, spanned: map[uint32]datapath.Ruleset{}, spannedBy: map[uint32]map[uint32]bool{},
		masks: map[datapath.MaskKey]datapath.Mask{}, claims: newClaims(), serviceUse: newServiceUse(),
		nodeAt: map[netip.Addr]identity.Number{}, remoteAt: map[netip.Addr]identity.Number{},
		ownTexts: map[string]bool{},
	}
	x.result.Enforced, x.result.from = x.cluster, x
	x.cidrs = identity.NewBlocks(x.result.Blocks)
	for _, at := range n.RemoteNodes {
		x.remoteAt[identity.Single(at).Addr()] = identity.RemoteNode
	}
	for _, at := range n.Addresses {
		x.nodeAt[identity.Single(at).Addr()] = identity.Host
		x.ownTexts[at.String()] = true
	}
	x.rangeAt = rangesOf(n)
	x.ranges = identity.NewBlocks(x.rangeAt)
	return x
}

// Apply makes the cluster what changes say and returns what that reached; nil: it takes a
// compilation of everything, and nothing changed.
func (x *Incremental) Apply(n Node, locals []Local, ch Changes) *Step {
	first := x.localAt == nil
	if !first && !sameNode(x.node, n) || !x.valid(&ch) {
		return nil
	}
	locals = slices.Clone(locals)
	slices.SortFunc(locals, func(a, b Local) int { return int(a.Number) - int(b.Number) })
	s := &Step{Changed: ch, locals: x.locals}
	var t *step
	s.Was, t = x.apply(locals, &ch, first)
	if !x.fits() {
		if !first {
			x.Undo(s)
		}
		return nil
	}
	if s.Delta, s.WasNames, s.WasServices = t.delta, t.wasNames, t.wasServices; first {
		s.Delta = nil
	}
	if !first {
		x.result.remember = len(x.result.refusals) > 0
	}
	s.Result = x.result
	return s
}

// Undo takes back the last Apply: what it made is not in force.
func (x *Incremental) Undo(s *Step) {
	x.apply(s.locals, &s.Was, false)
}

// Result is that of the last change.
func (x *Incremental) Result() *Result { return x.result }

// Node is what it compiles for.
func (x *Incremental) Node() Node { return x.node }

// Pod is a pod of the cluster as it is enforced.
func (x *Incremental) Pod(name types.NamespacedName) *Pod { return x.cluster.Pods[name] }

// valid reports whether the policies among changes are, and none of them was refused.
func (x *Incremental) valid(ch *Changes) bool {
	for name, np := range ch.NetworkPolicies {
		if x.fates[name] != nil && x.localAt != nil {
			return false
		}
		if np == nil || x.fates[name] != nil {
			continue
		}
		if _, problems := parsePolicy(np); len(problems) > 0 {
			return false
		}
	}
	return true
}

func sameNode(a, b Node) bool {
	return a.Name == b.Name && a.NodeEgressAllow == b.NodeEgressAllow && a.Limits == b.Limits &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.RemoteNodes, b.RemoteNodes) && slices.Equal(a.ClusterCIDRs, b.ClusterCIDRs)
}

func (x *Incremental) apply(locals []Local, ch *Changes, first bool) (undo Changes, t *step) {
	t = &step{
		delta: &datapath.Delta{}, pods: map[*known]bool{}, members: map[*member]bool{}, views: map[identity.Number]bool{},
		fresh: map[*setUse]bool{}, idle: map[uint32]bool{}, rest: map[uint32]bool{}, blocks: map[netip.Prefix]bool{},
		peers: map[netip.Prefix]bool{}, facts: map[datapath.Fact]bool{}, fronts: map[datapath.Frontend]bool{},
		services: map[types.NamespacedName]bool{}, wasNames: map[netip.Addr]Name{}, wasServices: map[datapath.Frontend]*datapath.Service{},
	}
	result, state := *x.result, *x.state // of their own, with the same maps
	result.State, x.result, x.state = &state, &result, &state
	if first {
		x.firstPeers(t)
	}
	undo = x.cluster.Apply(ch)
	x.changePolicies(t, undo, ch)
	x.changeNamespaces(t, ch)
	x.changePods(t, ch)
	moved := first || !slices.Equal(x.locals, locals)
	if moved {
		x.changeLocals(t, locals)
	}
	x.identify(t)
	x.changeViews(t, moved)
	if moved || t.views[0] {
		x.changeHostPorts(t)
	}
	x.changeSets(t)
	x.changePeers(t)
	x.changeServices(t, undo, ch)
	x.changeMasks(t)
	x.finish(t)
	return undo, t
}

// finish says what is not in use any more, and sorts out the delta.
func (x *Incremental) finish(t *step) {
	t.delta.Rulesets = slices.Collect(maps.Keys(t.idle))
	for id := range t.rest {
		if x.rules[id] == 0 {
			delete(x.rules, id)
			x.ids.releaseRule(id)
		}
	}
	t.delta.Facts = slices.Collect(maps.Keys(t.facts))
	t.delta.Peers = slices.Collect(maps.Keys(t.peers))
	t.delta.Frontends = slices.Collect(maps.Keys(t.fronts))
}

// fits reports whether the state is within the node's limits.
func (x *Incremental) fits() bool {
	l := x.node.Limits
	need := x.size
	need.Facts, need.Rulesets, need.Masks = len(x.state.Facts), len(x.state.Rulesets), len(x.masks)
	need.CIDRs, need.Addresses = len(x.blocks), x.claims.count+len(x.localAt)+len(x.nodeAt)+len(x.remoteAt)
	need.Frontends, need.Services, need.Backends = len(x.state.Frontends), len(x.state.Services), x.serviceUse.backends
	for i, most := range l.Values() {
		if *most > 0 && *need.Values()[i] > *most {
			return false
		}
	}
	return x.tooWide == 0
}
