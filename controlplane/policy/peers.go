package policy

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

var everywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// peers says what every address known and every prefix means: what is written first
// about a single address stays.
func (w *compiler) peers() {
	w.prefixes()
	for _, l := range w.locals {
		for _, a := range l.Addresses() {
			w.local(a, l)
		}
	}
	for _, a := range w.node.Addresses {
		w.single(a, datapath.Peer{Identity: identity.Host})
	}
	w.elsewhere()
	for _, a := range w.node.RemoteNodes {
		w.single(a, datapath.Peer{Identity: identity.RemoteNode})
	}
}

// local is an address of a pod's interface here, whatever the API says of it. A pod
// that the cluster does not have is nobody that policy could mean.
func (w *compiler) local(a netip.Addr, l Local) {
	n := w.podID[l.Pod]
	if n == 0 {
		n = identity.Unmanaged
	}
	if !w.single(a, datapath.Peer{Identity: n, Endpoint: l.Number}) {
		w.taken(l.Pod, a)
		return
	}
	w.result.Names[a.Unmap()] = l.Pod
}

// elsewhere is the pods without an interface here, by what the API has.
func (w *compiler) elsewhere() {
	here := map[types.NamespacedName]bool{}
	for _, l := range w.locals {
		here[l.Pod] = true
	}
	for _, name := range w.pods {
		if here[name] {
			continue
		}
		for _, a := range statusAddresses(w.cluster.Pods[name]) {
			if !w.single(a, datapath.Peer{Identity: w.podID[name]}) {
				w.taken(name, a)
				continue
			}
			w.result.Names[a] = name
		}
	}
}

func (w *compiler) taken(pod types.NamespacedName, a netip.Addr) {
	w.result.Warnings = append(w.result.Warnings, Problem{
		Ref:     Ref{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name},
		Field:   "status.podIPs",
		Message: fmt.Sprintf("%s is in use by %s: that one is believed", a, w.owner(a)),
	})
}

func (w *compiler) owner(a netip.Addr) string {
	if name, ok := w.result.Names[a]; ok {
		return "pod " + name.String()
	}
	return "a node"
}

// single sets what one address means; false: somebody has it already.
func (w *compiler) single(a netip.Addr, p datapath.Peer) bool {
	key := identity.Single(a)
	if was, ok := w.state.Peers[key]; ok && (was.Endpoint != 0 || was.Identity.IsPod() || was.Identity == identity.Host || was.Identity == identity.RemoteNode) {
		return false
	}
	_, p.Block, _ = w.cidrs.Longest(key)
	w.state.Peers[key] = p
	return true
}

// prefixes are the cluster's ranges, everywhere else, and the policy CIDRs.
func (w *compiler) prefixes() {
	ranges := map[netip.Prefix]identity.Number{}
	for _, p := range everywhere {
		ranges[p] = identity.World
	}
	for _, p := range w.node.ClusterCIDRs {
		ranges[identity.Masked(p)] = identity.Unmanaged
	}
	meaning := identity.NewBlocks(ranges)
	for p := range ranges {
		w.prefix(p, meaning)
	}
	for p := range w.result.Blocks {
		w.prefix(p, meaning)
	}
}

func (w *compiler) prefix(p netip.Prefix, meaning *identity.Blocks[identity.Number]) {
	var peer datapath.Peer
	_, peer.Identity, _ = meaning.Longest(p)
	_, peer.Block, _ = w.cidrs.Longest(p)
	w.state.Peers[p] = peer
}
