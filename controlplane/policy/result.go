package policy

import (
	"maps"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Result is what Compile makes of a cluster for one node. Those of Incremental share maps that
// change with the next, all but Endpoints; Identities, Policies and Warnings are Whole's.
type Result struct {
	State      *datapath.State
	Endpoints  map[uint32]EndpointView // by endpoint number
	Identities []IdentityView          // that pods of the cluster have, by number
	Blocks     map[netip.Prefix]identity.Number
	Policies   []PolicyView                        // every policy, by namespace and name
	Names      map[netip.Addr]types.NamespacedName // whose address it is, as far as pods are known
	Enforced   *Cluster                            // the cluster with the policies' versions that are enforced, for Verdict
	Held       map[types.NamespacedName]bool       // policies of which an earlier version is enforced, see Errors
	Errors     []Problem                           // what is not enforced as it is written
	Warnings   []Problem                           // what is, and may not be meant

	refusals map[types.NamespacedName]refusal
	remember bool // some of them are from before
	services map[types.NamespacedName]*compiledService

	fates       fates
	incremental bool         // Incremental can go on from here
	from        *Incremental // whose it is; nil: Compile's
}

// Remembered reports whether something was refused because it did not fit before:
// perhaps it does now, see Before.Retry.
func (r *Result) Remembered() bool { return r.remember }

// EndpointView is what Compile found for an endpoint.
type EndpointView struct {
	Pod      types.NamespacedName
	Known    bool // the cluster has the pod; if not, the endpoint has no rulesets and all is dropped
	Identity identity.Number
	Labels   []string    // those that make the identity, sorted
	Sides    [2]SideView // by datapath.Direction
}

// SideView is one direction of an endpoint.
type SideView struct {
	IsolatedBy []Ref // empty: not isolated
	Ruleset    uint32
}

// IdentityView is a number that pods have.
type IdentityView struct {
	Number identity.Number
	Labels identity.Labels
	Pods   int
}

// PolicyView is a policy as it is enforced.
type PolicyView struct {
	Ref
	Types   []string // Ingress, Egress
	Selects int      // pods of the cluster, hostNetwork pods not counted
	Ingress int      // rules
	Egress  int
}

// Version is what is enforced of a policy, nil where it isolates and allows nothing.
func (r *Result) Version(name types.NamespacedName) *networkingv1.NetworkPolicy {
	if r.Enforced.Refused[name] {
		return nil
	}
	return r.Enforced.NetworkPolicies[name]
}

// InForce is what a compilation after r's commit begins with.
func (r *Result) InForce() Before {
	b := Before{Policies: r.Enforced.NetworkPolicies, Names: r.Names, refusals: r.refusals, services: r.services}
	if len(r.Enforced.Refused) > 0 {
		b.Policies = maps.Clone(b.Policies)
		for name := range r.Enforced.Refused {
			b.Policies[name] = nil
		}
	}
	return b
}
