package flowlog

import (
	"slices"
	"strconv"
	"strings"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// filter says whether a record is asked for.
type filter func(*record) bool

// compile makes one filter of a query's; q was checked by api.ParseFlowQuery.
func compile(q api.FlowQuery) filter {
	var all []filter
	for _, f := range []filter{
		anyOf(q.Verdicts, verdictIs),
		anyOf(q.Kinds, kindIs),
		anyOf(q.Pods, hasPod),
		anyOf(q.Addresses, hasAddress),
		anyOf(q.Policies, hasPolicy),
		anyOf(q.Protocols, protocolIs),
		anyOf(q.Ports, hasPort),
		anyOf(q.Directions, judgedOn),
		anyOf(q.Reasons, reasonIs),
	} {
		if f != nil {
			all = append(all, f)
		}
	}
	return func(r *record) bool {
		for _, f := range all {
			if !f(r) {
				return false
			}
		}
		return true
	}
}

// anyOf is the filter that one of several values is enough for, nil when there is none.
func anyOf(values []string, of func(string) filter) filter {
	if len(values) == 0 {
		return nil
	}
	var filters []filter
	for _, v := range values {
		filters = append(filters, of(v))
	}
	return func(r *record) bool {
		return slices.ContainsFunc(filters, func(f filter) bool { return f(r) })
	}
}

func verdictIs(v string) filter {
	dropped := strings.EqualFold(v, "dropped")
	return func(r *record) bool { return r.event.Dropped == dropped }
}

func kindIs(v string) filter {
	v = strings.ToLower(v)
	return func(r *record) bool { return kindNames[r.event.Kind] == v }
}

func hasPod(v string) filter {
	namespace, name, _ := strings.Cut(v, "/")
	is := func(p *Party) bool {
		return p.IsPod() && p.Namespace == namespace && (name == "" || p.Name == name)
	}
	return func(r *record) bool { return is(r.parties[0]) || is(r.parties[1]) }
}

func hasAddress(v string) filter {
	block, err := api.ParseBlock(v)
	return func(r *record) bool {
		return err == nil && (block.Contains(r.event.Source.Addr()) || block.Contains(r.event.Destination.Addr()))
	}
}

func hasPolicy(v string) filter {
	namespace, name, _ := strings.Cut(v, "/")
	is := func(p *policy.Rule) bool {
		return p != nil && (p.Namespace == namespace && p.Name == name ||
			slices.ContainsFunc(p.IsolatedBy, func(by policy.Ref) bool { return by.Namespace == namespace && by.Name == name }))
	}
	return func(r *record) bool { return is(r.rules[0]) || is(r.rules[1]) }
}

func protocolIs(v string) filter {
	protocols := api.FlowProtocols(v)
	return func(r *record) bool { return r.suppressed == 0 && slices.Contains(protocols, r.event.Protocol) }
}

func hasPort(v string) filter {
	n, err := strconv.ParseUint(v, 10, 16)
	port := uint16(n)
	return func(r *record) bool {
		return err == nil && hasPorts(r.event.Protocol) && (r.event.Source.Port() == port || r.event.Destination.Port() == port)
	}
}

func judgedOn(v string) filter {
	d := datapath.Egress
	if strings.EqualFold(v, datapath.Ingress.String()) {
		d = datapath.Ingress
	}
	return func(r *record) bool { return r.judged(d) }
}

func reasonIs(v string) filter {
	v = api.ReasonText(v)
	return func(r *record) bool { return r.event.Dropped && r.event.Reason.String() == v }
}

func hasPorts(protocol uint8) bool {
	return protocol == datapath.TCP || protocol == datapath.UDP || protocol == datapath.SCTP
}
