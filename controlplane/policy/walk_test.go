package policy

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// Judged is what a compiled state says of one direction.
type Judged struct {
	Allow bool
	Rule  uint32
}

// Walk is the kernel's slow path: who the ends are by their addresses, the rules that
// need no ruleset, then egress of a local sender and ingress of a local receiver.
func Walk(state *datapath.State, n Node, t Tuple) (egress, ingress *Judged) {
	from, to := lookup(state, t.From.Addr), lookup(state, t.To.Addr)
	if from.Endpoint != 0 && from.Endpoint == to.Endpoint {
		self := &Judged{true, datapath.RuleSelf}
		return self, self
	}
	port := t.Port
	if !slices.Contains([]uint8{datapath.TCP, datapath.UDP, datapath.SCTP}, t.Protocol) {
		port = 0
	}
	ask := func(ruleset uint32, peer datapath.Peer) *Judged {
		allow, rule, _ := state.Judge(ruleset, peer, t.Protocol, port)
		return &Judged{allow, rule}
	}
	if from.Endpoint != 0 {
		egress = ask(state.Endpoints[from.Endpoint].Egress, to)
		if n.NodeEgressAllow && to.Identity == identity.Host {
			egress = &Judged{true, datapath.RuleNodeEgress}
		}
	}
	if to.Endpoint != 0 {
		ingress = ask(state.Endpoints[to.Endpoint].Ingress, from)
		if from.Identity == identity.Host {
			ingress = &Judged{true, datapath.RuleNode}
		}
	}
	return egress, ingress
}

// lookup is the ipcache: the address itself, else the longest prefix over it.
func lookup(state *datapath.State, a netip.Addr) datapath.Peer {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p, ok := state.Peers[netip.PrefixFrom(a, bits).Masked()]; ok {
			return p
		}
	}
	return datapath.Peer{}
}

// SameRule reports whether the id's rule is the one that the reference names.
func SameRule(r Rule, s *Side) bool {
	if s.Verdict == Dropped {
		return (r.Kind == KindDefaultDeny || r.Kind == KindRefused) && reflect.DeepEqual(r.IsolatedBy, s.IsolatedBy)
	}
	want := s.Rules[0]
	return r.Kind == want.Kind && r.Name == want.Name && r.Index == want.Index &&
		(r.Kind != KindNetworkPolicy || r.Namespace == want.Namespace)
}
