package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// groupKey is what a packet's port must meet; rules with equal keys merge. Keys in
// canonical order: exact ports, ranges, names, a whole protocol, everything.
type groupKey struct {
	class     groupClass
	protocol  uint8
	low, high uint16
	name      string
}

type groupClass uint8

const (
	exactPort groupClass = iota
	portRange
	namedPort
	wholeProtocol
	everything
)

func compareGroups(a, b groupKey) int {
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.protocol, b.protocol),
		cmp.Compare(a.low, b.low), cmp.Compare(a.high, b.high), cmp.Compare(a.name, b.name))
}

// groupsOf a port in a rule: an ingress name is the numbers that the subject's own
// containers give it, perhaps none; an egress name stays a name.
func groupsOf(p parsedPort, d datapath.Direction, own []identity.NamedPort) []groupKey {
	switch {
	case p.protocol == datapath.Any:
		return []groupKey{{class: everything, high: 65535}}
	case p.name != "" && d == datapath.Egress:
		return []groupKey{{class: namedPort, protocol: p.protocol, high: 65535, name: p.name}}
	case p.name != "":
		var out []groupKey
		for _, o := range own {
			if o.Name == p.name && o.Protocol == p.protocol {
				out = append(out, groupKey{class: exactPort, protocol: p.protocol, low: o.Port, high: o.Port})
			}
		}
		return out
	case p.low == 0 && p.high == 65535:
		return []groupKey{{class: wholeProtocol, protocol: p.protocol, high: 65535}}
	case p.low == p.high:
		return []groupKey{{class: exactPort, protocol: p.protocol, low: p.low, high: p.high}}
	}
	return []groupKey{{class: portRange, protocol: p.protocol, low: p.low, high: p.high}}
}

// isolating returns the policies that isolate pods with labels l in a direction.
func (w *compiler) isolating(l *identity.Labels, d datapath.Direction) []*parsed {
	var out []*parsed
	for _, p := range w.byNS[l.Namespace] {
		if p.isolates[d] && p.subject.Matches(l.PodLabels) {
			out = append(out, p)
		}
	}
	return out
}

// grouped sorts the rules of policies under the port groups they speak of, each rule
// once a group, in the order of the policies.
func grouped(policies []*parsed, d datapath.Direction, own []identity.NamedPort) map[groupKey][]*parsedRule {
	groups := map[groupKey][]*parsedRule{}
	for _, p := range policies {
		for _, r := range p.rules[d] {
			for _, port := range r.ports {
				for _, k := range groupsOf(port, d, own) {
					if in := groups[k]; len(in) == 0 || in[len(in)-1] != r {
						groups[k] = append(in, r)
					}
				}
			}
		}
	}
	return groups
}

func wide(groups map[groupKey][]*parsedRule) int {
	n := 0
	for k := range groups {
		if k.class != exactPort {
			n++
		}
	}
	return n
}

// rulesets makes the endpoints with the rulesets of their identities.
func (w *compiler) rulesets() {
	done := map[identity.Number]EndpointView{}
	for _, l := range w.locals {
		n := w.podID[l.Pod]
		view, ok := done[n]
		if !ok && n != 0 {
			view = w.view(n)
			done[n] = view
		}
		view.Pod = l.Pod
		ep := l.Endpoint
		ep.Egress, ep.Ingress = view.Sides[datapath.Egress].Ruleset, view.Sides[datapath.Ingress].Ruleset
		w.result.Endpoints[l.Number] = view
		w.state.Endpoints[l.Number] = ep
	}
}

func (w *compiler) view(n identity.Number) EndpointView {
	labels := w.inUse[n].Labels
	v := EndpointView{Known: true, Identity: n, Labels: labels.Strings()}
	for d := range v.Sides {
		v.Sides[d] = w.side(&labels, datapath.Direction(d))
	}
	return v
}

func (w *compiler) side(l *identity.Labels, d datapath.Direction) SideView {
	return w.sideOf(l, d, w.isolating(l, d))
}

// sideOf is the side of pods with labels l that policies isolate.
func (w *compiler) sideOf(l *identity.Labels, d datapath.Direction, policies []*parsed) SideView {
	if len(policies) == 0 {
		return SideView{Ruleset: w.publish(datapath.Ruleset{Default: datapath.RuleNotIsolated, Allow: true})}
	}
	var v SideView
	deny := Rule{Kind: KindDefaultDeny, Namespace: l.Namespace, Direction: d}
	var uids []string
	for _, p := range policies {
		v.IsolatedBy = append(v.IsolatedBy, p.ref)
		uids = append(uids, p.uid)
		if p.refused {
			deny.Kind = KindRefused
		}
	}
	deny.IsolatedBy = v.IsolatedBy
	v.Ruleset = w.publish(datapath.Ruleset{
		Default: w.ids.rule(deny, strings.Join(uids, ",")),
		Groups:  w.groups(grouped(policies, d, l.Ports)),
	})
	return v
}

// union is the peers of several rules in one set, with the first rule of each.
type union struct {
	set   identity.PeerSet
	id    uint32
	rules []uint32 // by ordinal
}

func (w *compiler) groups(groups map[groupKey][]*parsedRule) []datapath.PortGroup {
	var out []datapath.PortGroup
	unions := map[string]*union{} // the ports of one list of rules share it
	for _, k := range slices.SortedFunc(maps.Keys(groups), compareGroups) {
		list := fmt.Sprint(groups[k]) // the rules' addresses
		u := unions[list]
		if u == nil {
			u = w.union(groups[k])
			unions[list] = u
		}
		if len(u.rules) > 0 {
			out = append(out, w.group(k, u))
		}
	}
	return out
}

func (w *compiler) group(k groupKey, u *union) datapath.PortGroup {
	g := datapath.PortGroup{
		Protocol: k.protocol, Low: k.low, High: k.high,
		Set:     u.id,
		AnyPeer: u.set.Has(identity.AnyPeer), AllPods: u.set.Has(identity.AllPods),
		Labels: u.set.Has(identity.ByLabels), Blocks: u.set.Has(identity.ByAddress),
		Rules: u.rules,
	}
	if k.class == namedPort {
		g.PortName = w.ids.set(fmt.Sprintf("port %s/%d", k.name, k.protocol))
		w.names[g.PortName] = portName{k.name, k.protocol}
	}
	return g
}

func (w *compiler) union(rules []*parsedRule) *union {
	first := map[string]*parsedRule{}
	var peers []identity.Peer
	for _, r := range rules {
		for _, p := range r.peers {
			if first[p.String()] == nil {
				first[p.String()] = r
				peers = append(peers, p)
			}
		}
	}
	u := &union{set: identity.NewPeerSet(peers)}
	for _, p := range u.set.Members() {
		u.rules = append(u.rules, w.ruleID(first[p.String()]))
	}
	if u.set.Has(identity.ByLabels) || u.set.Has(identity.ByAddress) {
		u.id = w.ids.set(u.set.Text())
		w.used[u.id] = u.set
	}
	return u
}

func (w *compiler) ruleID(r *parsedRule) uint32 {
	rule := Rule{
		Kind: KindNetworkPolicy, Namespace: r.owner.name.Namespace, Name: r.owner.name.Name,
		UID: r.owner.uid, Index: r.index, Direction: r.direction,
	}
	if r.key == "" {
		content, _ := json.Marshal(r.spec) // cannot fail: plain API types
		r.key = ruleKey(rule, string(content))
	}
	return w.ids.keyedRule(rule, r.key)
}

// publish numbers a ruleset by its content.
func (w *compiler) publish(r datapath.Ruleset) uint32 {
	id := w.ids.ruleset(fmt.Sprintf("%+v", r))
	w.state.Rulesets[id] = r
	return id
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
}
