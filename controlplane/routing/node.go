package routing

import (
	"errors"
	"net/netip"

	"github.com/weirnet/weir/controlplane/source"
)

// Native joins nodes that are neighbours on one network: a route to the pods of each, and
// to the outside, if Masquerade says so, by the node's own address.
type Native struct {
	Masquerade bool
}

// Route makes the node's routes and translation what these nodes need. cluster has the
// ranges whose addresses keep their meaning everywhere in it. What could not be done is in
// the error, by node; the rest is.
func (n Native) Route(nodes *source.Nodes, cluster []netip.Prefix) error {
	if nodes.Own == nil || len(nodes.Own.PodCIDRs) == 0 {
		return nil // the source says so; what is routed stays
	}
	return errors.Join(Routes(*nodes.Own, nodes.Others), removeTunnel(), masquerade(n.Masquerade, nodes, cluster))
}

func masquerade(on bool, nodes *source.Nodes, cluster []netip.Prefix) error {
	if !on {
		return removeMasquerade()
	}
	return Masquerade(nodes.Own.PodCIDRs, cluster, nodes.OtherAddresses)
}

// None leaves the way to other nodes' pods to others, and takes away what another mode made.
type None struct{}

// Route removes.
func (None) Route(*source.Nodes, []netip.Prefix) error { return Remove() }
