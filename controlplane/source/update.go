// Package source turns a directory of Kubernetes YAML into the cluster that policy is
// made from. What an API server would reject is rejected here, by file, document,
// object and field; what was good before stays.
//
// The way of a file: read (whole, while nobody writes it) -> split into documents ->
// decode strictly -> default -> validate -> last good content of that file. The way of
// the directory: scan -> merge the last good contents (one object a name, the first one
// enforced wins) -> save -> Update.
package source

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
)

// Update is everything that a source holds, and what of it cannot be used.
type Update struct {
	// Revision grows when Cluster or Errors change, across restarts too; it is never 0.
	Revision uint64
	// Cluster and the objects in it belong to everybody and are never changed. It is nil where
	// there are Changes.
	Cluster *policy.Cluster
	// Changes are what differs from the update before, for sources that know; they are never
	// changed.
	Changes *policy.Changes
	// Errors in the order of files and documents. Each is one line of text without
	// control characters.
	Errors []api.ObjectError
	// Nodes is never changed; nil: the source knows of none.
	Nodes *Nodes

	places map[key]enforced
}

// Nodes are the cluster's.
type Nodes struct {
	Own            *Node          // this node, nil: it is not there
	Others         []Node         // sorted by name
	OtherAddresses []netip.Addr   // of Others
	PodCIDRs       []netip.Prefix // of all nodes: the fewest prefixes that cover them, sorted
}

// Node is a node of the cluster.
type Node struct {
	Name      string
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix // none: it was given no addresses for pods yet
	Disputed  []Dispute
	Borrowed  []Borrowed // of Addresses
}

// Has reports whether an address is this node's, and not another's that it claims as well.
func (n *Node) Has(a netip.Addr) bool {
	return slices.Contains(n.Addresses, a) && !slices.ContainsFunc(n.Borrowed, func(b Borrowed) bool { return b.Address == a })
}

// Borrowed is an address that a node claims and another has.
type Borrowed struct {
	Address netip.Addr
	Node    string // the one that has it
}

// Named is the node of that name; nil: there is none.
func (n *Nodes) Named(name string) *Node {
	if n.Own != nil && n.Own.Name == name {
		return n.Own
	}
	i, ok := slices.BinarySearchFunc(n.Others, name, func(other Node, name string) int { return strings.Compare(other.Name, name) })
	if !ok {
		return nil
	}
	return &n.Others[i]
}

// Dispute is a range that a node was given and is not believed to have.
type Dispute struct {
	Range, With netip.Prefix
	Node        string // the one that has With
}

// Place of an object in the directory: its file and the document in it. ok is false for
// what no file declares.
func (u Update) Place(kind string, name types.NamespacedName) (file string, document int, ok bool) {
	e, ok := u.places[key{kind, name}]
	return e.file, e.document, ok
}

// Whole hands on updates with the whole Cluster, for who keeps none: it costs a clone of all
// of it for every update with Changes.
func Whole(update func(Update)) func(Update) {
	cluster := &policy.Cluster{}
	return func(u Update) {
		if u.Changes != nil {
			cluster = cluster.Clone()
			cluster.Apply(u.Changes)
			u.Cluster, u.Changes = cluster, nil
		}
		update(u)
	}
}
