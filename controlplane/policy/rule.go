package policy

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/datapath"
)

// Kinds of rules.
const (
	KindNetworkPolicy = "NetworkPolicy" // a rule of a policy: Index is its place in spec.ingress or spec.egress
	KindDefaultDeny   = "default-deny"  // IsolatedBy names every policy that isolates
	KindRefused       = "refused"       // default deny where one of IsolatedBy could not be enforced
	KindNotIsolated   = "not-isolated"  // no policy selects the pod in that direction
	KindNode          = "node"          // the node to its own pods
	KindSelf          = "self"          // a pod to itself
	KindNodeEgress    = "node-egress"   // a pod to its own node, where that is always allowed
)

// Rule is what a rule id stands for.
type Rule struct {
	ID         uint32             `json:"id"`
	Kind       string             `json:"kind"`
	Namespace  string             `json:"namespace,omitempty"`
	Name       string             `json:"name,omitempty"`
	UID        string             `json:"uid,omitempty"`
	Index      int                `json:"index"`
	Direction  datapath.Direction `json:"direction"`
	IsolatedBy []Ref              `json:"isolatedBy,omitempty"`
}

// String is how a rule is shown in one line: "shop/allow-web ingress[0]",
// "default-deny ingress of shop/a, shop/b", "not-isolated".
func (r Rule) String() string {
	switch r.Kind {
	case KindNetworkPolicy:
		return fmt.Sprintf("%s/%s %s[%d]", r.Namespace, r.Name, r.Direction, r.Index)
	case KindDefaultDeny, KindRefused:
		names := make([]string, len(r.IsolatedBy))
		for i, by := range r.IsolatedBy {
			names[i] = by.Namespace + "/" + by.Name
		}
		return fmt.Sprintf("%s %s of %s", r.Kind, r.Direction, strings.Join(names, ", "))
	}
	return r.Kind
}

// reserved rules are the same everywhere.
var reserved = map[uint32]Rule{
	datapath.RuleNode:        {ID: datapath.RuleNode, Kind: KindNode, Direction: datapath.Ingress},
	datapath.RuleSelf:        {ID: datapath.RuleSelf, Kind: KindSelf, Direction: datapath.None},
	datapath.RuleNotIsolated: {ID: datapath.RuleNotIsolated, Kind: KindNotIsolated, Direction: datapath.None},
	datapath.RuleNodeEgress:  {ID: datapath.RuleNodeEgress, Kind: KindNodeEgress, Direction: datapath.Egress},
}
