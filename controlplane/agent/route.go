package agent

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

// Router brings packets to the pods of other nodes, and to the outside.
type Router interface {
	// Route makes it so for these nodes; cluster has the pods' ranges. Calls with the same
	// nodes mend what others changed.
	Route(nodes *source.Nodes, cluster []netip.Prefix) error
}

// tunneller is a Router whose packets have less room than the node's own.
type tunneller interface {
	// PodMTU is what pods' packets may have, 0 = not known yet.
	PodMTU() int
}

// origins are what other nodes' packets may come from, out of the tunnel no others: their addresses
// and those of their pods. An address that two nodes claim is the elder's; one of this
// node's is nobody's.
func origins(nodes *source.Nodes) map[netip.Prefix]datapath.Origin {
	out := map[netip.Prefix]datapath.Origin{}
	if nodes == nil {
		return out
	}
	add := func(n *source.Node, p netip.Prefix, address bool) {
		if _, taken := out[p.Masked()]; !taken {
			out[p.Masked()] = datapath.Origin{Node: nodeNumber(n.Name), Address: address}
		}
	}
	for i := range nodes.Others {
		n := &nodes.Others[i]
		for _, a := range n.Addresses {
			if a.IsGlobalUnicast() && n.Has(a) {
				add(n, netip.PrefixFrom(a, a.BitLen()), true)
			}
		}
	}
	for i := range nodes.Others {
		for _, p := range nodes.Others[i].PodCIDRs {
			add(&nodes.Others[i], p, false)
		}
	}
	if nodes.Own != nil {
		for _, a := range nodes.Own.Addresses {
			delete(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// nodeNumber stands for a node's name, before and after a restart.
func nodeNumber(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.LittleEndian.Uint64(sum[:]) | 1
}

// routed is what the Router works on, and what it could not do.
type routed struct {
	wake     chan struct{}
	look     chan struct{}
	passed   passed
	warnings []string // a.mu
}

// routeAgain has the Router look; a.mu need not be held.
func (a *Agent) routeAgain() {
	select {
	case a.routed.wake <- struct{}{}:
	default:
	}
}

// route keeps the routes: after changes of nodes and of the node's network, after errors,
// and every recheckMaps for what others did to them.
func (a *Agent) route(ctx context.Context) error {
	if a.Router == nil {
		return nil
	}
	again := time.NewTimer(recheckMaps)
	defer again.Stop()
	delay := retryFirst
	for {
		look := false
		select {
		case <-ctx.Done():
			return nil
		case <-a.routed.wake:
		case <-again.C:
		case <-a.routed.look:
			look = true
		}
		a.mu.Lock()
		update := a.input.update
		a.mu.Unlock()
		known := update != nil && update.Nodes != nil
		if known && look {
			a.lookForWays(update.Nodes)
		}
		if look {
			continue
		}
		if !known {
			again.Reset(recheckMaps)
			continue
		}
		err := a.Router.Route(update.Nodes, clusterCIDRs(a.ClusterCIDRs, update.Nodes))
		a.noteRouted(err)
		a.lookForWays(update.Nodes)
		if err == nil {
			delay = retryFirst
			again.Reset(recheckMaps)
			continue
		}
		again.Reset(delay) // a neighbour's link that is not up yet, say
		delay = min(2*delay, recheckMaps)
	}
}

func (a *Agent) noteRouted(err error) {
	var warnings []string
	if err != nil {
		warnings = strings.Split(err.Error(), "\n") // joined, a node each
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range warnings {
		if !slices.Contains(a.routed.warnings, w) {
			a.Log.Warn("route: " + w)
		}
	}
	a.routed.warnings = warnings
}
