package policy

import (
	"fmt"
	"net/netip"
	"slices"

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

// address is one that the API has for a pod.
type address struct {
	netip.Addr
	pod types.NamespacedName
}

// elsewhere is the pods without an interface here, by what the API has. Where they do not
// fit those that are known stay; the others are strangers, whom no selector means.
func (w *compiler) elsewhere() {
	addrs := w.addressesElsewhere()
	if most := w.node.Limits.Addresses; most > 0 {
		room := max(0, most-w.singles-len(w.node.RemoteNodes))
		if len(addrs) > room {
			slices.SortStableFunc(addrs, func(a, b address) int { return w.unknown(a) - w.unknown(b) })
			w.overflow(addrs[room:], most)
			addrs = addrs[:room]
		}
	}
	for _, a := range addrs {
		if !w.single(a.Addr, datapath.Peer{Identity: w.podID[a.pod]}) {
			w.taken(a.pod, a.Addr)
			continue
		}
		w.result.Names[a.Addr] = a.pod
	}
}

func (w *compiler) addressesElsewhere() (out []address) {
	here := map[types.NamespacedName]bool{}
	for _, l := range w.locals {
		here[l.Pod] = true
	}
	for _, name := range w.pods {
		if here[name] {
			continue
		}
		for _, a := range StatusAddresses(w.cluster.Pods[name]) {
			out = append(out, address{a, name})
		}
	}
	return out
}

func (w *compiler) unknown(a address) int {
	if w.before.Names[a.Addr] == a.pod {
		return 0
	}
	return 1
}

const namedAtMost = 10 // objects of one problem

func (w *compiler) overflow(addrs []address, most int) {
	w.overflowed = true
	for i, a := range addrs {
		message := fmt.Sprintf("%s does not fit, at most %d addresses are known (--map-size addresses=N): no selector means it", a, most)
		if i == namedAtMost-1 && len(addrs) > namedAtMost {
			message += fmt.Sprintf("; nor the addresses of %d more", len(addrs)-namedAtMost)
		}
		if i < namedAtMost {
			w.result.Errors = append(w.result.Errors, Problem{Ref: podRef(a.pod), Field: "status.podIPs", Message: message})
		}
	}
}

func (w *compiler) taken(pod types.NamespacedName, a netip.Addr) {
	w.result.Warnings = append(w.result.Warnings, Problem{
		Ref:     podRef(pod),
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
	w.singles++
	return true
}

// prefixes are the cluster's ranges, everywhere else, and the policy CIDRs.
func (w *compiler) prefixes() {
	ranges := rangesOf(w.node)
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
