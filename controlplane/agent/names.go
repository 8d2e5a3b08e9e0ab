package agent

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/identity"
)

// names is who has which number and address: as of the latest attempt, shown before its
// commit so that no event comes from an endpoint without a name, and as it was before that
// attempt, where it was something else, for events that the kernel wrote until then.
type names struct {
	mu     sync.RWMutex
	now    *directory // changes in place
	before *directory
	undo   func() // makes now what it was before the latest attempt

	party   sync.Mutex
	parties map[netip.Addr]made // made of now's, for the next packet
}

// directory is names; not every one is complete.
type directory struct {
	endpoints  map[uint32]*flowlog.Party
	madeOf     map[uint32]pieces // endpoints' parties
	interfaces map[uint32]string // of pods, by index
	peers      map[netip.Addr]peerName
	parties    map[netip.Addr]*flowlog.Party // of peers that are no more
	namespaces map[string]*corev1.Namespace
	services   serviceNames
	node       *flowlog.Party
}

// peerName is whose address it is.
type peerName struct {
	pod      *policy.Pod // names it, at least; nil: it is nobody's
	identity identity.Number
	bare     bool // the pod has no object
}

// pieces are what a Party is made of.
type pieces struct {
	pod       *policy.Pod
	namespace *corev1.Namespace
}

// made is a Party and what it is made of.
type made struct {
	party *flowlog.Party
	of    pieces
}

const partiesMost = 8192

var _ flowlog.Names = (*Agent)(nil)

// look asks the names of the latest attempt and then those before it.
func (n *names) look(found func(*directory) bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, d := range []*directory{n.now, n.before} {
		if d != nil && found(d) {
			return
		}
	}
}

// Endpoint implements flowlog.Names.
func (a *Agent) Endpoint(number uint32) (out *flowlog.Party) {
	a.names.look(func(d *directory) bool {
		out = d.endpoints[number]
		return out != nil
	})
	return out
}

// Peer implements flowlog.Names.
func (a *Agent) Peer(addr netip.Addr, n identity.Number) (out *flowlog.Party) {
	a.names.look(func(d *directory) bool {
		if n == identity.Host {
			out = d.node
			return out != nil
		}
		addr := addr.Unmap()
		if p := d.peers[addr]; p.pod == nil || p.identity != n {
			return false
		} else if out = d.parties[addr]; out == nil {
			out = a.names.partyOf(addr, p)
		}
		return out != nil
	})
	return out
}

// Service implements flowlog.Names.
func (a *Agent) Service(addr netip.Addr) (out *flowlog.Ref) {
	a.names.look(func(d *directory) bool {
		out = d.services.at(addr)
		return out != nil
	})
	return out
}

// ServiceNumbered implements flowlog.Names.
func (a *Agent) ServiceNumbered(number uint16) *flowlog.Ref {
	name, ok := a.ids.Service(number)
	if !ok {
		return nil
	}
	return &flowlog.Ref{Namespace: name.Namespace, Name: name.Name}
}

// Interface implements flowlog.Names.
func (a *Agent) Interface(index uint32) (out string) {
	a.names.look(func(d *directory) bool {
		out = d.interfaces[index]
		return out != ""
	})
	return out
}

// Rule implements flowlog.Names.
func (a *Agent) Rule(id uint32) (policy.Rule, bool) { return a.ids.Rule(id) }

// partyOf makes the Party of an address when somebody asks: a cluster has many addresses and a
// node few peers. n.mu is held.
func (n *names) partyOf(addr netip.Addr, p peerName) *flowlog.Party {
	of := pieces{p.pod, n.now.namespaces[p.pod.Namespace]}
	n.party.Lock()
	defer n.party.Unlock()
	if m, ok := n.parties[addr]; ok && m.of == of {
		return m.party
	}
	if len(n.parties) >= partiesMost {
		clear(n.parties)
	}
	name, object := types.NamespacedName{Namespace: p.pod.Namespace, Name: p.pod.Name}, p.pod
	if p.bare {
		object = nil
	}
	m := made{partyOf(name, object, of.namespace), of}
	n.parties[addr] = m
	return m.party
}

// show the names of t beside those in force.
func (n *names) show(t *attempt, records []*endpoint.Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.parties == nil {
		n.parties = map[netip.Addr]made{}
	}
	was := n.now
	if t.step == nil || was == nil {
		n.now, n.before = newDirectory(t), was
		n.undo = func() {
			if was != nil {
				n.now, n.before = was, nil
			}
		}
	} else {
		n.change(t)
	}
	endpoints, madeOf := n.now.endpoints, n.now.madeOf
	n.now.endpoints, n.now.madeOf, n.now.interfaces = map[uint32]*flowlog.Party{}, map[uint32]pieces{}, map[uint32]string{}
	for number, e := range t.result.Endpoints {
		of := pieces{t.cluster.Pods[e.Pod], n.now.namespaces[e.Pod.Namespace]}
		party := endpoints[number]
		if party == nil || madeOf[number] != of || party.Name != e.Pod.Name || party.Namespace != e.Pod.Namespace {
			party = partyOf(e.Pod, of.pod, of.namespace)
		}
		n.now.endpoints[number], n.now.madeOf[number] = party, of
	}
	for _, r := range records {
		n.now.interfaces[r.HostIfindex] = r.HostIfName
	}
}

// hide takes back the latest show: its commit failed.
func (n *names) hide() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.undo()
}

// change makes now the names of t, and before what they were where it changed.
func (n *names) change(t *attempt) {
	d, s := n.now, t.step
	was := &directory{endpoints: d.endpoints, madeOf: d.madeOf, interfaces: d.interfaces, node: d.node,
		peers: map[netip.Addr]peerName{}, parties: map[netip.Addr]*flowlog.Party{}}
	n.before = was
	for addr := range s.WasNames {
		if p := d.peers[addr]; p.pod != nil {
			was.peers[addr], was.parties[addr] = p, n.partyOf(addr, p)
		}
	}
	spaces := policy.Changes{Namespaces: s.Changed.Namespaces}
	c := policy.Cluster{Namespaces: d.namespaces}
	wasSpaces := c.Apply(&spaces)
	d.namespaces = c.Namespaces
	fresh := map[netip.Addr]peerName{}
	for addr := range s.WasNames {
		fresh[addr] = newPeerName(t, addr)
	}
	for name := range s.Changed.Pods { // also one whose labels no selector asks for
		if pod := t.cluster.Pods[name]; pod != nil {
			for _, addr := range pod.Addresses {
				if t.result.Names[addr] == name {
					fresh[addr] = newPeerName(t, addr)
				}
			}
		}
	}
	old := d.put(fresh)
	was.services = d.services.change(s.Was.Services, s.Changed.Services)
	n.undo = func() {
		d.put(old)
		c.Apply(&wasSpaces)
		d.services.change(s.Changed.Services, s.Was.Services)
		d.endpoints, d.madeOf, d.interfaces = was.endpoints, was.madeOf, was.interfaces
		n.before = nil
	}
}

// put sets peers, nobody takes one out, and returns what was there.
func (d *directory) put(peers map[netip.Addr]peerName) (was map[netip.Addr]peerName) {
	was = map[netip.Addr]peerName{}
	for addr, p := range peers {
		was[addr] = d.peers[addr]
		if p.pod == nil {
			delete(d.peers, addr)
		} else {
			d.peers[addr] = p
		}
	}
	return was
}

func newPeerName(t *attempt, addr netip.Addr) peerName {
	name, ok := t.result.Names[addr]
	if !ok {
		return peerName{}
	}
	out := peerName{pod: t.cluster.Pods[name], identity: t.result.State.Peers[identity.Single(addr)].Identity}
	if out.pod == nil {
		out.pod, out.bare = &policy.Pod{Namespace: name.Namespace, Name: name.Name}, true
	}
	return out
}

func newDirectory(t *attempt) *directory {
	d := &directory{
		peers:      make(map[netip.Addr]peerName, len(t.result.Names)),
		namespaces: maps.Clone(t.cluster.Namespaces),
		services:   servicesOf(t.cluster),
		node:       &flowlog.Party{Name: t.node.Name},
	}
	for addr := range t.result.Names {
		d.peers[addr] = newPeerName(t, addr)
	}
	return d
}

func partyOf(name types.NamespacedName, pod *policy.Pod, ns *corev1.Namespace) *flowlog.Party {
	p := &flowlog.Party{Namespace: name.Namespace, Name: name.Name}
	labels := identity.Labels{Namespace: name.Namespace, NamespaceLabels: map[string]string{}}
	if ns != nil {
		maps.Copy(labels.NamespaceLabels, ns.Labels)
	}
	labels.NamespaceLabels[corev1.LabelMetadataName] = name.Namespace
	if pod != nil {
		labels.PodLabels = pod.Labels
	}
	p.Labels = slices.Clip(labels.Strings())
	p.Workload = workloadOf(pod)
	return p
}

// cronJob is how a CronJob names its Jobs: by the minute they are of.
var cronJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workloadOf is what made a pod. A ReplicaSet named by a Deployment stands for that, and a
// Job by a CronJob.
func workloadOf(pod *policy.Pod) flowlog.Workload {
	if pod == nil || pod.Owner == nil {
		return flowlog.Workload{}
	}
	owner := pod.Owner
	if cron := cronJob.FindStringSubmatch(owner.Name); owner.Kind == "Job" && cron != nil {
		return flowlog.Workload{Kind: "CronJob", Name: cron[1]}
	}
	if hash := pod.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; owner.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
			return flowlog.Workload{Kind: "Deployment", Name: name}
		}
	}
	return flowlog.Workload{Kind: owner.Kind, Name: owner.Name}
}

// serviceNames are the Services that name an address, the first by name first.
type serviceNames map[netip.Addr][]*flowlog.Ref

func (s serviceNames) at(addr netip.Addr) *flowlog.Ref {
	if all := s[addr]; len(all) > 0 {
		return all[0]
	}
	return nil
}

// servicesOf are the addresses of Services.
func servicesOf(c *policy.Cluster) serviceNames {
	out := serviceNames{}
	out.change(nil, c.Services)
	return out
}

// change takes other objects for some, and returns what their addresses named before.
func (s serviceNames) change(was, is map[types.NamespacedName]*corev1.Service) serviceNames {
	before := serviceNames{}
	for _, objects := range []map[types.NamespacedName]*corev1.Service{was, is} {
		for name, o := range objects {
			if o == nil {
				continue
			}
			for _, addr := range addressesOf(o) {
				if _, noted := before[addr]; !noted {
					before[addr] = slices.Clone(s[addr])
				}
				ref := &flowlog.Ref{Namespace: name.Namespace, Name: name.Name}
				all := slices.DeleteFunc(s[addr], func(r *flowlog.Ref) bool { return *r == *ref })
				if is[name] == o {
					i, _ := slices.BinarySearchFunc(all, ref, func(a, b *flowlog.Ref) int { return strings.Compare(a.String(), b.String()) })
					all = slices.Insert(all, i, ref)
				}
				if s[addr] = all; len(all) == 0 {
					delete(s, addr)
				}
			}
		}
	}
	return before
}

func addressesOf(s *corev1.Service) (out []netip.Addr) {
	texts := slices.Concat([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs, s.Spec.ExternalIPs)
	for _, in := range s.Status.LoadBalancer.Ingress {
		texts = append(texts, in.IP)
	}
	for _, text := range texts {
		a, err := netip.ParseAddr(text) // "None" of a headless one, "" of one that has none yet
		if err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}
