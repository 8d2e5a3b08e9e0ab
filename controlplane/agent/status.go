package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

var _ api.Node = (*Agent)(nil)

// Ping implements api.Node.
func (a *Agent) Ping() api.Ping {
	p := api.Ping{Version: a.Version, NodeName: a.NodeName, BPFFSDir: a.BPFFSDir}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), &st); err == nil {
		p.NetnsInode = st.Ino
	}
	if r, ok := a.Router.(tunneller); ok {
		p.MTU = r.PodMTU()
	}
	return p
}

// Status implements api.Node.
func (a *Agent) Status(ctx context.Context, wait time.Duration) (api.Status, error) {
	if wait > 0 {
		if err := a.awaitEnforced(ctx, wait); err != nil {
			return api.Status{}, err
		}
	}
	return a.status()
}

// awaitEnforced returns when all that the source and the endpoints hold is enforced,
// or with the first reason why it is not.
func (a *Agent) awaitEnforced(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	revision, err := a.Source.Sync(ctx)
	if err != nil && ctx.Err() == nil {
		return &api.Error{Message: err.Error()}
	}
	if err == nil {
		a.mu.Lock()
		change := a.input.change
		a.mu.Unlock()
		err = a.await(ctx, func() (bool, error) {
			if a.last.change < change || a.last.revision < revision {
				return false, nil
			}
			if a.last.result != nil && a.last.result.Remembered() {
				return false, nil // soon it is known whether what did not fit does now
			}
			if errs := a.last.allErrors(); len(errs) > 0 {
				return false, &api.Error{Message: errs[0].String()}
			}
			return a.applied.revision >= revision && len(a.waiting()) == 0, nil
		})
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return &api.Error{Message: fmt.Sprintf("not enforced within %s: %s", wait, a.lag(revision))}
	}
	return err
}

// waiting are the pods whose endpoints are not enforced; a.mu is held.
func (a *Agent) waiting() []string {
	var out []string
	for _, r := range a.records.All() {
		if !a.enforced(r.Number) {
			out = append(out, r.Pod().String())
		}
	}
	return out
}

// enforced reports whether an endpoint is in the kernel; a.mu is held.
func (a *Agent) enforced(number uint32) bool {
	if a.applied.result == nil {
		return false
	}
	_, ok := a.applied.result.Endpoints[number]
	return ok
}

func (a *Agent) lag(revision uint64) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if revision == 0 {
		return a.SourceName + " was not read in that time"
	}
	text := fmt.Sprintf("revision %d is applied, %d is wanted", a.applied.revision, revision)
	if pods := a.waiting(); len(pods) > 0 {
		text += "; not ready: " + strings.Join(pods, ", ")
	}
	return text
}

func (a *Agent) status() (api.Status, error) {
	counters, err := a.Kernel.Counters()
	if err != nil {
		return api.Status{}, err
	}
	hooks, hookWarnings := a.hooked.report()
	s := api.Status{
		Node: a.NodeName, Version: a.Version, Started: a.started, Epoch: a.Kernel.Epoch(),
		Flows: api.FlowStatus{
			Emitted:    counters.EventsEmitted + counters.DenialsEmitted,
			Lost:       counters.EventsLost + counters.DenialsLost,
			LostBy:     map[string]uint64{flowlog.LostFlowEvents: counters.EventsLost, flowlog.LostDenialEvents: counters.DenialsLost},
			EmittedBy:  map[string]uint64{flowlog.LostFlowEvents: counters.EventsEmitted, flowlog.LostDenialEvents: counters.DenialsEmitted},
			Made:       map[string]uint64{"new": counters.FlowsNew, "updated": counters.FlowsUpdated, "ended": counters.FlowsEnded, "revoked": counters.FlowsRevoked},
			Suppressed: counters.DenialsSuppressed,
			Parked:     counters.Parked, Resent: a.resent.Load(),
		},
		Drops: map[string]uint64{}, Hooks: hooks, Maps: []api.MapUse{}, Warnings: hookWarnings,
	}
	if table, ok := a.Kernel.(flowTable); ok {
		s.Flows.Active = table.FlowCount()
		s.Maps = append(s.Maps, api.MapUse{Name: "flows", Used: int(s.Flows.Active), Most: int(table.FlowCapacity())})
	}
	for _, reason := range slices.Sorted(maps.Keys(counters.Drops)) {
		if reason != datapath.ReasonNone {
			s.Drops[reason.String()] = counters.Drops[reason]
		}
	}
	for reason, n := range counters.KernelDrops {
		s.Drops["kernel: "+reason] = n
	}
	if len(counters.KernelDrops) > 0 {
		delete(s.Drops, datapath.ReasonKernel.String()) // their sum
	}
	people := a.forPeople()
	a.live.RLock()
	defer a.live.RUnlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.input.update != nil {
		s.Revision.Desired = a.input.update.Revision
	}
	s.Warnings = append(s.Warnings, people.nothing...)
	s.Revision.Applied = a.applied.revision
	for _, r := range a.records.All() {
		s.Endpoints++
		if r.Chained {
			s.Chained++
		}
	}
	if pods := a.hosted.unprotected(a.records.All(), time.Now()); len(pods) > 0 {
		s.Unprotected = len(pods)
		s.Warnings = append(s.Warnings, unprotectedWarning(pods))
	}
	s.Services = a.serviceStatus()
	s.Errors = append(a.last.allErrors(), a.shield.errors...)
	var unshielded []string
	s.Shield, unshielded = a.shieldStatus(counters.Drops, s.Hooks)
	s.Warnings = append(s.Warnings, unshielded...)
	s.Degraded = len(s.Errors) > 0
	if a.applied.result != nil {
		s.Maps = append(s.Maps, mapsInUse(people.size, a.Kernel.Limits())...)
	}
	if s.Shield != nil {
		s.Maps = append(s.Maps, api.MapUse{Name: "shield_deny", Used: s.Shield.Denied, Most: s.Shield.Most})
	}
	for _, m := range s.Maps {
		if m.Nearly() {
			s.Warnings = append(s.Warnings, fmt.Sprintf("map %s is nearly full: %d of %d (--map-size %s=N makes it larger)", m.Name, m.Used, m.Most, m.Name))
		}
	}
	if w, ok := a.Source.(warner); ok {
		s.Warnings = append(s.Warnings, w.Warnings()...)
	}
	if a.Unready != nil {
		s.Unready = a.Unready()
	}
	if w, ok := a.Kernel.(warner); ok {
		s.Warnings = append(s.Warnings, w.Warnings()...)
	}
	s.Warnings = append(s.Warnings, a.routed.warnings...)
	var stack string
	if s.HostRouting, stack = a.hostRouting(); stack != "" {
		s.Warnings = append(s.Warnings, stack)
	}
	s.Warnings = append(s.Warnings, a.last.warnings...)
	s.Warnings = append(s.Warnings, people.warnings...)
	return s, nil
}

// flowTable is a Kernel that has one.
type flowTable interface {
	FlowCount() uint64
	FlowCapacity() uint64
}

func mapsInUse(used, most datapath.Limits) []api.MapUse {
	var out []api.MapUse
	for i, name := range used.Maps() {
		out = append(out, api.MapUse{Name: name, Used: *used.Values()[i], Most: *most.Values()[i]})
	}
	return out
}

// Nodes are the cluster's, this one first; changed is closed once that may not be so any
// more. This node's addresses are those that it has.
func (a *Agent) Nodes() (nodes []source.Node, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	own := source.Node{Name: a.NodeName}
	if a.input.update != nil && a.input.update.Nodes != nil {
		nodes = a.input.update.Nodes.Others
		if n := a.input.update.Nodes.Own; n != nil {
			own.Addresses = n.Addresses
		}
	}
	if len(own.Addresses) == 0 {
		own.Addresses = a.applied.node.Addresses
	}
	return append([]source.Node{own}, nodes...), a.changed
}

// Identities implements api.Node.
func (a *Agent) Identities() []api.Identity {
	out := []api.Identity{}
	for _, r := range []struct {
		n    identity.Number
		name string
	}{{identity.Host, "host"}, {identity.RemoteNode, "remote-node"}, {identity.World, "world"}, {identity.Unmanaged, "unmanaged"}} {
		out = append(out, api.Identity{Number: uint32(r.n), Kind: "reserved", Name: r.name})
	}
	result := a.forPeople().result
	if result == nil {
		return out
	}
	a.live.RLock()
	defer a.live.RUnlock()
	for _, i := range result.Identities {
		out = append(out, api.Identity{Number: uint32(i.Number), Kind: "labels", Name: i.Labels.Namespace, Labels: i.Labels.Strings(), Pods: i.Pods})
	}
	var blocks []api.Identity
	for cidr, n := range result.Blocks {
		blocks = append(blocks, api.Identity{Number: uint32(n), Kind: "block", Name: cidr.String()})
	}
	slices.SortFunc(blocks, func(x, y api.Identity) int { return int(int64(x.Number) - int64(y.Number)) })
	return append(out, blocks...)
}

// Policies implements api.Node.
func (a *Agent) Policies() []api.Policy {
	out := []api.Policy{}
	result := a.forPeople().result
	if result == nil {
		return out
	}
	a.live.RLock()
	defer a.live.RUnlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range result.Policies {
		out = append(out, api.Policy{
			Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Types: p.Types,
			Selects: p.Selects, Ingress: p.Ingress, Egress: p.Egress, Revision: a.since[nameOf(p.Ref)].revision,
			Enforced: enforcedOf(result, nameOf(p.Ref)),
		})
	}
	return out
}

// PolicyRevisions are the policies in force, sorted, with their revisions and numbers of rules
// alone: what else Policies say takes a look at all pods. While none changes it is the same list,
// which is never changed.
func (a *Agent) PolicyRevisions() []api.Policy {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listed == nil {
		a.listed = make([]api.Policy, 0, len(a.since))
		for name, p := range a.since {
			a.listed = append(a.listed, api.Policy{
				Kind: policy.KindNetworkPolicy, Namespace: name.Namespace, Name: name.Name, Revision: p.revision,
				Ingress: len(p.policy.Spec.Ingress), Egress: len(p.policy.Spec.Egress),
			})
		}
		slices.SortFunc(a.listed, func(x, y api.Policy) int {
			return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
		})
	}
	return a.listed
}

func enforcedOf(r *policy.Result, name types.NamespacedName) string {
	switch {
	case r.Enforced.Refused[name]:
		return api.Isolates
	case r.Held[name]:
		return api.LastGood
	}
	return api.AsWritten
}
