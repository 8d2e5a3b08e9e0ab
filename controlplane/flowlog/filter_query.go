package flowlog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// The tests of an api.FlowQuery, by one value. Those of an end hold at either of them.

func atEitherEnd(of func(end int) test) test { return either(of(source), of(destination)) }

func verdictIs(v string) (test, error) {
	dropped := strings.EqualFold(v, "dropped")
	return func(r *record) bool { return r.event.Dropped == dropped }, nil
}

func kindIs(v string) (test, error) {
	v = strings.ToLower(v)
	return func(r *record) bool { return kindNames[r.event.Kind] == v }, nil
}

func hasPod(v string) (test, error) {
	namespace, name, _ := strings.Cut(v, "/")
	is := func(p *Party) bool {
		return p.IsPod() && p.Namespace == namespace && (name == "" || p.Name == name)
	}
	return func(r *record) bool { return is(r.parties[source]) || is(r.parties[destination]) }, nil
}

func hasNamespace(v string) (test, error) { return hasPod(v + "/") }

func hasLabels(v string) (test, error) {
	selector, err := parseSelector(v)
	return atEitherEnd(func(end int) test { return labelsMatch(end, selector) }), err
}

func hasWorkload(v string) (test, error) {
	kind, name, found := strings.Cut(v, "/")
	if !found {
		kind, name = "", v
	}
	want := []*flowpb.Workload{{Kind: kind, Name: name}}
	return atEitherEnd(func(end int) test { return workloadIs(end, want) }), nil
}

func hasIdentity(v string) (test, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%q is not an identity number", v)
	}
	return atEitherEnd(func(end int) test { return identityIs(end, []uint32{uint32(n)}) }), nil
}

func hasAddress(v string) (test, error) {
	block, err := api.ParseBlock(v)
	return func(r *record) bool {
		return block.Contains(r.event.Source.Addr()) || block.Contains(r.event.Destination.Addr())
	}, err
}

func hasPolicy(v string) (test, error) {
	namespace, name, _ := strings.Cut(v, "/")
	is := func(p *policy.Rule) bool {
		return p != nil && (p.Namespace == namespace && p.Name == name ||
			slices.ContainsFunc(p.IsolatedBy, func(by policy.Ref) bool { return by.Namespace == namespace && by.Name == name }))
	}
	return func(r *record) bool { return is(r.rules[0]) || is(r.rules[1]) }, nil
}

func protocolIs(v string) (test, error) {
	protocols := api.FlowProtocols(v)
	return func(r *record) bool { return r.suppressed == 0 && slices.Contains(protocols, r.event.Protocol) }, nil
}

func hasPort(v string) (test, error) {
	ports, err := parsePorts([]string{v})
	return atEitherEnd(func(end int) test { return oneOf(ports, portOf(end)) }), err
}

func judgedOn(v string) (test, error) {
	d := datapath.Egress
	if strings.EqualFold(v, datapath.Ingress.String()) {
		d = datapath.Ingress
	}
	return func(r *record) bool { return r.judged(d) }, nil
}

func reasonIs(v string) (test, error) {
	v = api.ReasonText(v)
	return func(r *record) bool { return r.event.Dropped && r.event.Reason.String() == v }, nil
}
