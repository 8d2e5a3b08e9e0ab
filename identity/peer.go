package identity

import (
	"net/netip"
	"slices"
	"strings"
)

// PeerKind tells what a Peer is drawn over.
type PeerKind uint8

// Kinds of peers, in canonical order.
const (
	AnyPeer   PeerKind = iota // every address
	AllPods                   // every pod that is known
	ByLabels                  // pods by their namespace and labels
	ByAddress                 // an address block with exceptions
)

// Peer is one member of a peer set. Make it with Any, InNamespace,
// InNamespaces or InBlock.
type Peer struct {
	Kind       PeerKind
	Namespace  string   // ByLabels: this namespace; empty: those that Namespaces selects
	Namespaces Selector // ByLabels
	Pods       Selector // ByLabels
	Block      netip.Prefix
	Except     []netip.Prefix // sorted
	text       string
}

// Any is every address, known or not.
func Any() Peer { return Peer{Kind: AnyPeer, text: "any"} }

// InNamespace is the pods of one namespace that a selector matches.
func InNamespace(namespace string, pods Selector) Peer {
	return Peer{Kind: ByLabels, Namespace: namespace, Pods: pods,
		text: "namespace " + namespace + " pods " + pods.String()}
}

// InNamespaces is the pods that one selector matches in the namespaces that another
// matches; if both are empty that is all pods.
func InNamespaces(namespaces, pods Selector) Peer {
	if namespaces.Empty() && pods.Empty() {
		return Peer{Kind: AllPods, text: "all pods"}
	}
	return Peer{Kind: ByLabels, Namespaces: namespaces, Pods: pods,
		text: "namespaces " + namespaces.String() + " pods " + pods.String()}
}

// InBlock is the addresses of a block that are in none of its exceptions.
func InBlock(block netip.Prefix, except ...netip.Prefix) Peer {
	p := Peer{Kind: ByAddress, Block: Masked(block)}
	for _, e := range except {
		p.Except = append(p.Except, Masked(e))
	}
	slices.SortFunc(p.Except, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	p.Except = slices.Compact(p.Except)
	p.text = "block " + p.Block.String()
	for i, e := range p.Except {
		p.text += [...]string{" except ", ","}[min(i, 1)] + e.String()
	}
	return p
}

// Masked clears the bits below the prefix length; a v4-mapped prefix becomes the IPv4
// one that it writes.
func Masked(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// String is canonical: equal texts, equal peers.
func (p Peer) String() string { return p.text }

// MatchesLabels reports whether pods with these labels are meant by their labels.
func (p Peer) MatchesLabels(l *Labels) bool {
	switch p.Kind {
	case AnyPeer, AllPods:
		return true
	case ByLabels:
		if p.Namespace != "" {
			return p.Namespace == l.Namespace && p.Pods.Matches(l.PodLabels)
		}
		return p.Namespaces.Matches(l.NamespaceLabels) && p.Pods.Matches(l.PodLabels)
	}
	return false
}

func comparePeers(a, b Peer) int {
	ranks := func(k PeerKind) int { return int(min(k, ByLabels)) }
	if r := ranks(a.Kind) - ranks(b.Kind); r != 0 {
		return r
	}
	return strings.Compare(a.text, b.text)
}
