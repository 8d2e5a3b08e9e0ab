package agent

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

// compile makes an attempt of the present input, nil while something of it is missing.
// Everything is compiled, whatever changed: the kernel's maps find the difference.
func (a *Agent) compile(before policy.Before, limits datapath.Limits) *attempt {
	a.mu.Lock()
	in := a.input
	a.mu.Unlock()
	if in.update == nil || in.network == nil {
		return nil
	}
	t := &attempt{change: in.change, revision: in.update.Revision, update: in.update, warnings: slices.Clone(a.notes)}
	a.addEndpoints(t, in.update.Cluster)
	t.node = policy.Node{
		Name:            a.NodeName,
		Addresses:       in.network.Addresses,
		ClusterCIDRs:    clusterCIDRs(a.ClusterCIDRs, in.update.Nodes),
		NodeEgressAllow: a.NodeEgressAllow,
		Limits:          limits,
	}
	if in.update.Nodes != nil {
		t.node.RemoteNodes = in.update.Nodes.OtherAddresses
	}
	t.result = policy.Recompile(before, t.cluster, t.node, t.locals, a.ids)
	if a.Tunnel {
		t.result.State.Origins = origins(in.update.Nodes)
	}
	t.cluster = t.result.Enforced
	t.sourceErrors = in.update.Errors
	for _, p := range t.result.Errors {
		t.errors = append(t.errors, objectError(in.update, p))
	}
	for _, p := range t.result.Warnings {
		t.warnings = append(t.warnings, objectError(in.update, p).String())
	}
	return t
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
// more goes on as it was last seen, see endpoint.Record.
func (a *Agent) addEndpoints(t *attempt, c *policy.Cluster) {
	cluster := *c
	cluster.Pods = maps.Clone(c.Pods)
	t.cluster = &cluster
	for _, r := range a.records.All() {
		t.locals = append(t.locals, r.Local())
		if p := c.Pods[r.Pod()]; p == nil {
			cluster.Pods[r.Pod()] = r.LastPod
			t.warnings = append(t.warnings, "Pod "+r.Pod().String()+": is gone from "+a.SourceName+
				" and its interface is still there: it keeps the policy of its last labels until it is deleted")
		} else if fresh := r.WithPod(p); fresh != r {
			t.refreshed = append(t.refreshed, fresh)
		}
	}
}

// objectError is a problem at the place of its object in the source.
func objectError(u *source.Update, p policy.Problem) api.ObjectError {
	file, document, _ := u.Place(p.Kind, types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
	return api.ObjectError{File: file, Document: document, Object: p.Ref.String(), Field: p.Field, Message: p.Message}
}
