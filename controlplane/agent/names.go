package agent

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/identity"
)

// names is who has which number and address: as of the latest attempt, shown before its
// commit so that no event comes from an endpoint without a name, and of the commit
// before it, for events that the kernel wrote until then.
type names struct {
	now, before atomic.Pointer[directory]
}

// directory is the names of one attempt; it is never changed.
type directory struct {
	endpoints map[uint32]*flowlog.Party
	peers     map[netip.Addr]peerName
	node      *flowlog.Party
}

type peerName struct {
	party    *flowlog.Party
	identity identity.Number
}

var _ flowlog.Names = (*Agent)(nil)

// Endpoint implements flowlog.Names.
func (a *Agent) Endpoint(number uint32) *flowlog.Party {
	for _, d := range []*directory{a.names.now.Load(), a.names.before.Load()} {
		if d != nil && d.endpoints[number] != nil {
			return d.endpoints[number]
		}
	}
	return nil
}

// Peer implements flowlog.Names.
func (a *Agent) Peer(addr netip.Addr, n identity.Number) *flowlog.Party {
	for _, d := range []*directory{a.names.now.Load(), a.names.before.Load()} {
		if d == nil {
			continue
		}
		if n == identity.Host {
			return d.node
		}
		if p, ok := d.peers[addr.Unmap()]; ok && p.identity == n {
			return p.party
		}
	}
	return nil
}

// Rule implements flowlog.Names.
func (a *Agent) Rule(id uint32) (policy.Rule, bool) { return a.ids.Rule(id) }

// show the names of t beside those in force.
func (n *names) show(t, inForce *attempt) {
	t.directory = newDirectory(t)
	n.now.Store(t.directory)
	n.before.Store(inForce.directory)
}

func newDirectory(t *attempt) *directory {
	d := &directory{
		endpoints: map[uint32]*flowlog.Party{},
		peers:     map[netip.Addr]peerName{},
		node:      &flowlog.Party{Name: t.node.Name},
	}
	parties := map[types.NamespacedName]*flowlog.Party{}
	party := func(name types.NamespacedName) *flowlog.Party {
		if parties[name] == nil {
			parties[name] = partyOf(t.cluster, name)
		}
		return parties[name]
	}
	for number, e := range t.result.Endpoints {
		d.endpoints[number] = party(e.Pod)
	}
	for addr, name := range t.result.Names {
		d.peers[addr] = peerName{party(name), t.result.State.Peers[identity.Single(addr)].Identity}
	}
	return d
}

func partyOf(c *policy.Cluster, name types.NamespacedName) *flowlog.Party {
	p := &flowlog.Party{Namespace: name.Namespace, Name: name.Name}
	labels := identity.Labels{Namespace: name.Namespace, NamespaceLabels: map[string]string{}}
	if ns := c.Namespaces[name.Namespace]; ns != nil {
		labels.NamespaceLabels = maps.Clone(ns.Labels)
	}
	if labels.NamespaceLabels == nil {
		labels.NamespaceLabels = map[string]string{}
	}
	labels.NamespaceLabels[corev1.LabelMetadataName] = name.Namespace
	if pod := c.Pods[name]; pod != nil {
		labels.PodLabels = pod.Labels
	}
	p.Labels = slices.Clip(labels.Strings())
	return p
}
