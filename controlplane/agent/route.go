package agent

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weirnet/weir/controlplane/source"
)

// Router brings packets to the pods of other nodes, and to the outside.
type Router interface {
	// Route makes it so for these nodes; cluster has the pods' ranges. Calls with the same
	// nodes mend what others changed.
	Route(nodes *source.Nodes, cluster []netip.Prefix) error
}

// routed is what the Router works on, and what it could not do.
type routed struct {
	wake     chan struct{}
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
		select {
		case <-ctx.Done():
			return nil
		case <-a.routed.wake:
		case <-again.C:
		}
		a.mu.Lock()
		update := a.input.update
		a.mu.Unlock()
		if update == nil || update.Nodes == nil {
			again.Reset(recheckMaps)
			continue
		}
		err := a.Router.Route(update.Nodes, clusterCIDRs(a.ClusterCIDRs, update.Nodes))
		a.noteRouted(err)
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
