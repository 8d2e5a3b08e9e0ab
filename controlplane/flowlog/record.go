package flowlog

import (
	"net/netip"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// record is an event with its names. It is not changed once it is in the ring; queries
// read it without a lock.
type record struct {
	seq        uint64
	event      datapath.Event
	parties    [2]*Party       // by end
	rules      [2]*policy.Rule // by direction
	services   [2]*Ref         // by end: whose address it is; the destination's also: which the initiator's socket asked for
	ifname     string          // of event.Ifindex
	suppressed uint64          // stands for so many denials of the endpoint, without addresses
	lost       uint64          // stands for so many events that the kernel had no room for; has a time and nothing else
	cause      string          // where they were lost
	read       uint64          // events that the log had read by then, this one included
	denials    uint64          // how many of those were denials
	unnamed    uint64          // of lost: denials that the kernel's counts have, too; of suppressed: that were told as lost, further ones
	before     *losses         // what the records before this one in the ring tell
}

// namer resolves names and remembers those that stay true: a rule id never changes its
// meaning, an endpoint number keeps it while any flow can hold it.
type namer struct {
	names     Names
	rules     map[uint32]*policy.Rule
	endpoints map[uint32]*Party
	services  map[uint16]*Ref
}

// rulesMax bounds the memory of rules; past it all are asked for again.
const rulesMax = 1 << 16

func newNamer(n Names) *namer {
	return &namer{names: n, rules: map[uint32]*policy.Rule{}, endpoints: map[uint32]*Party{}, services: map[uint16]*Ref{}}
}

func (n *namer) record(e datapath.Event) *record {
	r := &record{event: e}
	r.parties[0] = n.party(e.Endpoint[0], e.Source.Addr(), e.Identity[0])
	r.parties[1] = n.party(e.Endpoint[1], e.Destination.Addr(), e.Identity[1])
	for end, a := range [2]netip.Addr{e.Source.Addr(), e.Destination.Addr()} {
		if a.IsValid() && !r.parties[end].IsPod() {
			r.services[end] = n.names.Service(a)
		}
	}
	if e.Service != 0 {
		r.services[1] = n.service(e.Service)
	}
	if e.Ifindex != 0 {
		r.ifname = n.names.Interface(e.Ifindex)
	}
	for d, id := range e.Rule {
		r.rules[d] = n.rule(id)
	}
	r.settle()
	return r
}

// settle gives the end of a revoked flow the verdict that it died of: the kernel reports
// the rules of its last judgement, and an end as such has no verdict.
func (r *record) settle() {
	if r.event.Kind != datapath.EventEnded || r.event.Dropped {
		return
	}
	for d, rule := range r.rules {
		if rule != nil && len(rule.IsolatedBy) > 0 {
			r.event.Dropped, r.event.Reason, r.event.Direction = true, datapath.ReasonPolicy, datapath.Direction(d)
			return
		}
	}
}

func (n *namer) party(endpoint uint32, addr netip.Addr, id identity.Number) *Party {
	switch {
	case endpoint != 0:
		return n.endpoint(endpoint)
	case addr.IsValid():
		return n.names.Peer(addr, id)
	}
	return nil
}

func (n *namer) endpoint(number uint32) *Party {
	if p := n.names.Endpoint(number); p != nil {
		n.endpoints[number] = p
		return p
	}
	return n.endpoints[number]
}

func (n *namer) service(number uint16) *Ref {
	if s := n.services[number]; s != nil {
		return s
	}
	s := n.names.ServiceNumbered(number)
	if s != nil {
		n.services[number] = s
	}
	return s
}

func (n *namer) rule(id uint32) *policy.Rule {
	if id == datapath.RuleNone {
		return nil
	}
	if r, ok := n.rules[id]; ok {
		return r
	}
	r, ok := n.names.Rule(id)
	if !ok {
		return nil
	}
	if len(n.rules) >= rulesMax {
		clear(n.rules)
	}
	n.rules[id] = &r
	return &r
}

// isDenial reports whether it is the record of a denial of its own.
func (r *record) isDenial() bool {
	return r.lost == 0 && r.suppressed == 0 && r.event.Kind == datapath.EventDenied
}

// hasEnd reports whether anything is known of an end: a record of suppressed denials has
// but the endpoint that they were counted for.
func (r *record) hasEnd(end int) bool { return r.suppressed == 0 || r.event.Endpoint[end] != 0 }

// addr is an end's address, not valid where there is none.
func (r *record) addr(end int) netip.Addr {
	if end == source {
		return r.event.Source.Addr()
	}
	return r.event.Destination.Addr()
}

// labels are an end's, as messages have them.
func (r *record) labels(end int) []string {
	party := r.parties[end]
	switch {
	case !r.hasEnd(end):
		return nil
	case party.IsPod():
		return party.hubbleLabels()
	}
	return reservedLabels[r.event.Identity[end]]
}

// judged reports whether this node judged the record in a direction: a rule did, or the
// packet was dropped on that side before any could.
func (r *record) judged(d datapath.Direction) bool {
	return r.event.Rule[d] != datapath.RuleNone || r.denied(d)
}

// denied reports whether the record was dropped on a side.
func (r *record) denied(d datapath.Direction) bool {
	return r.event.Dropped && r.event.Direction == d
}

// direction is the side that denied, else egress if this node judged it, else ingress;
// for a packet that no ruleset saw, the side of the pod it belongs to.
func (r *record) direction() datapath.Direction {
	switch {
	case r.denied(datapath.Egress), r.denied(datapath.Ingress):
		return r.event.Direction
	case r.judged(datapath.Egress):
		return datapath.Egress
	case r.judged(datapath.Ingress):
		return datapath.Ingress
	case r.event.Endpoint[0] != 0:
		return datapath.Egress
	case r.event.Endpoint[1] != 0:
		return datapath.Ingress
	}
	return datapath.None
}

// reservedLabels are Hubble's words for the reserved identities.
var reservedLabels = map[identity.Number][]string{
	identity.Unknown:    {"reserved:unknown"},
	identity.Host:       {"reserved:host"},
	identity.RemoteNode: {"reserved:remote-node"},
	identity.World:      {"reserved:world"},
	identity.Unmanaged:  {"reserved:unmanaged"},
}
