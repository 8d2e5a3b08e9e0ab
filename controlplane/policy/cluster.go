// Package policy turns Kubernetes objects into what a node enforces: Compile makes the
// desired datapath.State, Verdict is the reference that it must agree with. It is
// pure: no I/O, no clock, no goroutines; the numbers it gives out live in an Allocator
// that its caller keeps.
package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
)

// NamespaceLabel is the label that every namespace has, with its name.
const NamespaceLabel = corev1.LabelMetadataName

// Cluster is the objects that policy depends on, already validated and defaulted by
// their source. A namespace that is used and not there exists all the same. A Cluster
// handed over is not changed afterwards.
type Cluster struct {
	Namespaces      map[string]*corev1.Namespace
	Pods            map[types.NamespacedName]*Pod
	NetworkPolicies map[types.NamespacedName]*networkingv1.NetworkPolicy
	Services        map[types.NamespacedName]*corev1.Service
	EndpointSlices  map[types.NamespacedName]*discoveryv1.EndpointSlice

	// Refused policies could not be enforced and have no version that was: they isolate
	// the pods they select and allow nothing. Set by Compile in Result.Enforced.
	Refused map[types.NamespacedName]bool
}

// Node is the node that State is for.
type Node struct {
	Name            string       // compared with spec.nodeName where both are set
	Addresses       []netip.Addr // its own
	RemoteNodes     []netip.Addr // other nodes'
	ClusterCIDRs    []netip.Prefix
	NodeEgressAllow bool // a pod may always reach its own node
	Limits          datapath.Limits
}

// Before is what is in force when a compilation begins: what it falls back to where
// something of the cluster cannot be enforced.
type Before struct {
	// Policies are the versions in force, nil for one that isolates and allows nothing.
	Policies map[types.NamespacedName]*networkingv1.NetworkPolicy
	// Names are the addresses of pods that are known.
	Names map[netip.Addr]types.NamespacedName

	refusals map[types.NamespacedName]refusal
	services map[types.NamespacedName]*compiledService
}

// Retry makes the next compilation try again whether what was refused fits now. Else an
// object that did not fit stays refused as long as it is the same, so that others'
// changes do not wait for that to be found out again.
func (b *Before) Retry() { b.refusals = nil }

// Local is a pod's interface on this node: the facts about the interface are filled
// in, the rulesets are Compile's to set.
type Local struct {
	Pod      types.NamespacedName
	Number   uint32
	Endpoint datapath.Endpoint
}

// Addresses of the interface, IPv4 first.
func (l Local) Addresses() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{l.Endpoint.Addr4, l.Endpoint.Addr6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// Ref names an object.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func podRef(name types.NamespacedName) Ref {
	return Ref{Kind: "Pod", Namespace: name.Namespace, Name: name.Name}
}

func (r Ref) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// Problem is something about an object that its owner should know.
type Problem struct {
	Ref
	Field   string // spec.ingress[0].ports[1].port; may be empty
	Message string // what is wrong and what to do
}

func (p Problem) String() string {
	if p.Field == "" {
		return p.Ref.String() + ": " + p.Message
	}
	return p.Ref.String() + ": " + p.Field + ": " + p.Message
}

func namespaceLabels(c *Cluster, name string) map[string]string {
	labels := map[string]string{}
	if ns := c.Namespaces[name]; ns != nil {
		maps.Copy(labels, ns.Labels)
	}
	labels[NamespaceLabel] = name
	return labels
}

func compareNames(a, b types.NamespacedName) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func sortedNames[V any](m map[types.NamespacedName]V) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(m), compareNames)
}

// protocolNumber of a port; an empty protocol is TCP, as the API defaults it.
func protocolNumber(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return datapath.TCP, true
	case corev1.ProtocolUDP:
		return datapath.UDP, true
	case corev1.ProtocolSCTP:
		return datapath.SCTP, true
	}
	return 0, false
}
