package agent

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

// how an attempt is made.
type how int

const (
	changes how = iota // of what changed, where that will do
	all
	again // of everything, and what did not fit is tried again
)

// settle ends an attempt: what it compiled is in force, or as if it had never been.
func (a *Agent) settle(t *attempt) {
	if t.err == nil {
		a.inc = t.inc
		for _, r := range t.same {
			a.refreshed[r.record] = r.pod
		}
		if len(a.refreshed) > 2*len(t.locals)+64 { // of records that are no more
			clear(a.refreshed)
		}
	} else {
		if t.step != nil {
			a.inc.Undo(t.step)
		}
		a.names.hide()
		a.mu.Lock()
		t.pending.Add(&a.input.pending)
		a.input.pending = t.pending
		a.mu.Unlock()
	}
	if t.locked {
		a.live.Unlock()
	}
}

// compile makes an attempt of the present input, nil while something of it is missing. What
// changed since the last one is compiled where that will do; then a.live is locked until
// settle. whole compiles everything.
func (a *Agent) compile(how how, limits datapath.Limits) *attempt {
	a.knowWays()
	a.mu.Lock()
	in := a.input
	if in.update == nil || in.network == nil {
		a.mu.Unlock()
		return nil
	}
	a.input.pending = policy.Changes{}
	t := &attempt{change: in.change, revision: in.update.Revision, update: in.update, pending: in.pending, warnings: slices.Clone(a.notes)}
	a.addEndpoints(t, in.cluster)
	whole := how != changes || a.inc == nil
	if whole {
		t.cluster = in.cluster.Clone()
	}
	a.mu.Unlock()
	t.node = a.node(&in, limits)
	if !whole {
		if limits == a.limits {
			t.node.Limits = a.inc.Node().Limits // perhaps it was compiled for less
		}
		a.live.Lock()
		t.locked = true
		if t.step = a.inc.Apply(t.node, t.locals, a.lastSeen(t)); t.step != nil {
			t.inc, t.result = a.inc, t.step.Result
		} else {
			t.locked = false
			a.live.Unlock()
			t.node.Limits = limits
			a.mu.Lock()
			t.cluster = a.input.cluster.Clone() // perhaps newer by now: what is pending comes again
			a.mu.Unlock()
		}
	}
	if t.step == nil {
		a.addGone(t)
		before := a.before()
		if how == again {
			before.Retry()
		}
		a.limits = a.Kernel.Limits()
		a.inc = nil // it goes on from numbers that may be forgotten now
		t.inc, t.result = policy.NewIncremental(before, t.cluster, t.node, t.locals, a.ids)
	}
	t.origins = in.update.Nodes != a.applied.nodes || t.step == nil
	_, routed := a.Router.(wayfinder)
	if t.nodes = in.update.Nodes; routed && t.origins {
		t.result.State.Origins = origins(t.nodes)
	}
	ways := in.ways != a.applied.ways || t.step == nil
	if t.ways = in.ways; t.ways != nil && ways {
		t.result.State.Ways = *t.ways
	}
	if t.step != nil {
		t.step.Delta.Origins, t.step.Delta.Ways = t.origins, ways
	}
	t.cluster = t.result.Enforced
	t.sourceErrors = in.update.Errors
	for _, p := range t.result.Errors {
		t.errors = append(t.errors, objectError(in.update, p))
	}
	return t
}

func (a *Agent) node(in *input, limits datapath.Limits) policy.Node {
	n := policy.Node{
		Name:            a.NodeName,
		Addresses:       in.network.Addresses,
		ClusterCIDRs:    clusterCIDRs(a.ClusterCIDRs, in.update.Nodes),
		NodeEgressAllow: a.NodeEgressAllow,
		Limits:          limits,
	}
	if in.update.Nodes != nil {
		n.RemoteNodes = in.update.Nodes.OtherAddresses
	}
	return n
}

// clusterCIDRs are those that are given, and nodes' ranges that lie in none of them.
func clusterCIDRs(given []netip.Prefix, nodes *source.Nodes) []netip.Prefix {
	if nodes == nil {
		return given
	}
	out := slices.Clone(given)
	for _, p := range nodes.PodCIDRs {
		if !slices.ContainsFunc(given, func(g netip.Prefix) bool { return g.Bits() <= p.Bits() && g.Contains(p.Addr()) }) {
			out = append(out, p)
		}
	}
	return out
}

// addEndpoints takes the records. A pod that has an interface here and no object any
// more goes on as it was last seen, see endpoint.Record. a.mu is held.
func (a *Agent) addEndpoints(t *attempt, c *policy.Cluster) {
	t.pods = map[types.NamespacedName]*policy.Pod{}
	for _, l := range a.applied.locals {
		t.pods[l.Pod] = c.Pods[l.Pod]
	}
	var gone []api.ObjectError
	for _, r := range a.records.All() {
		t.locals = append(t.locals, r.Local())
		p := c.Pods[r.Pod()]
		if t.pods[r.Pod()] = p; p == nil {
			t.pods[r.Pod()] = r.LastPod
			gone = append(gone, api.ObjectError{Object: "Pod " + r.Pod().String(), Message: "is gone from " + a.SourceName +
				" and its interface is still there: it keeps the policy of its last labels until it is deleted"})
		} else if a.refreshed[r] != p {
			fresh := r.WithPod(p)
			if t.same = append(t.same, recorded{fresh, p}); fresh != r {
				t.refreshed = append(t.refreshed, fresh)
			}
		}
	}
	t.warnings = append(t.warnings, grouped(gone)...)
}

// recorded is a record that says of a pod what its object does.
type recorded struct {
	record *endpoint.Record
	pod    *policy.Pod
}

// lastSeen is what is pending, where pods here are as they were last seen if they are gone.
func (a *Agent) lastSeen(t *attempt) policy.Changes {
	out := t.pending
	out.Pods = maps.Clone(out.Pods)
	for name, pod := range t.pods {
		if _, pending := out.Pods[name]; pending || a.inc.Pod(name) != pod {
			if out.Pods == nil {
				out.Pods = map[types.NamespacedName]*policy.Pod{}
			}
			out.Pods[name] = pod
		}
	}
	return out
}

// addGone adds to a whole cluster the pods here that are gone from it.
func (a *Agent) addGone(t *attempt) {
	for _, l := range t.locals {
		if t.cluster.Pods[l.Pod] == nil && t.pods[l.Pod] != nil {
			if t.cluster.Pods == nil {
				t.cluster.Pods = map[types.NamespacedName]*policy.Pod{}
			}
			t.cluster.Pods[l.Pod] = t.pods[l.Pod]
		}
	}
}

// objectError is a problem at the place of its object in the source.
func objectError(u *source.Update, p policy.Problem) api.ObjectError {
	file, document, _ := u.Place(p.Kind, types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
	return api.ObjectError{File: file, Document: document, Object: p.Ref.String(), Field: p.Field, Message: p.Message}
}
