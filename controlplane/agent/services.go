package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/sockets"
)

// Sockets are those of pods' processes.
type Sockets interface {
	// Left reports whether any may have been left behind by a Service's backend.
	Left(services map[datapath.Frontend]*datapath.Service) (bool, error)
	// Release ends those that a Service's backend has left behind, and returns how many.
	Release(n sockets.Namespace, services map[datapath.Frontend]*datapath.Service) (int, error)
}

// backendsGone reports whether UDP sockets may have been left behind.
func backendsGone(was, is map[datapath.Frontend]*datapath.Service) bool {
	for f, old := range was {
		if f.Protocol != datapath.UDP || old == nil {
			continue
		}
		now := is[f]
		if now == nil {
			return true
		}
		if slices.Equal(old.Backends, now.Backends) {
			continue
		}
		if slices.ContainsFunc(old.Backends, func(b netip.AddrPort) bool { return !slices.Contains(now.Backends, b) }) {
			return true
		}
	}
	return false
}

// noteBackends has sockets looked after if t left some behind; a.mu is held.
func (a *Agent) noteBackends(t *attempt) {
	gone := a.applied.result == nil // after a start nobody knows
	switch {
	case t.step != nil:
		gone = backendsGone(t.step.WasServices, t.result.State.Services)
	case !gone:
		gone = backendsGone(a.applied.result.State.Services, t.result.State.Services)
	}
	if gone {
		select {
		case a.left <- struct{}{}:
		default:
		}
	}
}

// releaseSockets ends what commits left behind, apart from them.
func (a *Agent) releaseSockets(ctx context.Context) error {
	said := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.left:
		}
		if err := a.release(); err != nil && !said {
			a.Log.Warn("connected UDP sockets of pods go on sending to backends that are gone, until they are connected anew", "error", err)
			said = true
		} else if err == nil {
			said = false
		}
	}
}

// release looks after every pod's sockets; the error is the first pod's.
func (a *Agent) release() (failed error) {
	if err := a.Kernel.Grace(); err != nil { // who was choosing by the old list has chosen
		return err
	}
	a.live.RLock()
	a.mu.Lock()
	services := maps.Clone(a.applied.result.State.Services)
	a.mu.Unlock()
	a.live.RUnlock()
	if some, err := a.Sockets.Left(services); err != nil || !some {
		return err
	}
	for _, r := range a.records.All() {
		n, err := a.Sockets.Release(sockets.Namespace{Path: r.Netns, Cookie: r.NetnsCookie}, services)
		if failed == nil && err != nil {
			failed = fmt.Errorf("pod %s: %w", r.Pod(), err)
		}
		if n > 0 {
			a.Log.Info("UDP sockets ended: their backend is gone", "pod", r.Pod(), "sockets", n)
		}
	}
	return failed
}

// serviceStatus of what is applied; a.live and a.mu are held.
func (a *Agent) serviceStatus() api.ServiceStatus {
	s := api.ServiceStatus{Translated: a.CgroupRoot != "", CgroupRoot: a.CgroupRoot}
	if a.applied.result != nil {
		s.Addresses = len(a.applied.result.State.Services)
	}
	return s
}
