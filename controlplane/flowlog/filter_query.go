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

// queryTest is the test of a filter of an api.FlowQuery for one value. Those of an end hold
// at either of them unless the name says at which.
func queryTest(name, value string) (test, error) {
	if of, ok := recordTests[name]; ok {
		return of(value)
	}
	name, from := strings.CutPrefix(name, api.FromEnd)
	name, to := strings.CutPrefix(name, api.ToEnd)
	of, ok := endTests[name]
	if !ok {
		return nil, fmt.Errorf("no such filter")
	}
	at, err := of(value)
	switch {
	case err != nil:
		return nil, err
	case from:
		return at(source), nil
	case to:
		return at(destination), nil
	}
	return either(at(source), at(destination)), nil
}

var recordTests = map[string]func(string) (test, error){
	"verdict": verdictIs, "kind": kindIs, "policy": hasPolicy, "protocol": protocolIs, "direction": judgedOn, "reason": reasonIs,
}

// endTest is a test of an end.
type endTest func(end int) test

var endTests = map[string]func(string) (endTest, error){
	"pod": isPod, "namespace": inNamespace, "label": hasLabels, "workload": inWorkload, "service": isService,
	"identity": hasIdentity, "address": hasAddress, "port": hasPort, "process": isProcess,
}

func verdictIs(v string) (test, error) {
	dropped := strings.EqualFold(v, "dropped")
	return func(r *record) bool { return r.event.Dropped == dropped }, nil
}

func kindIs(v string) (test, error) {
	v = strings.ToLower(v)
	return func(r *record) bool { return kindName(r.event.Kind) == v }, nil
}

func isPod(v string) (endTest, error) {
	namespace, name, _ := strings.Cut(v, "/")
	return func(end int) test {
		return func(r *record) bool {
			p := r.parties[end]
			return p.IsPod() && p.Namespace == namespace && (name == "" || p.Name == name)
		}
	}, nil
}

func inNamespace(v string) (endTest, error) { return isPod(v + "/") }

func hasLabels(v string) (endTest, error) {
	selector, err := parseSelector(v)
	return func(end int) test { return labelsMatch(end, selector) }, err
}

func inWorkload(v string) (endTest, error) {
	kind, name, found := strings.Cut(v, "/")
	if !found {
		kind, name = "", v
	}
	want := []*flowpb.Workload{{Kind: kind, Name: name}}
	return func(end int) test { return workloadIs(end, want) }, nil
}

func isService(v string) (endTest, error) {
	namespace, name, _ := strings.Cut(v, "/")
	return func(end int) test {
		return func(r *record) bool {
			s := r.services[end]
			return s != nil && s.Namespace == namespace && (name == "" || s.Name == name)
		}
	}, nil
}

func hasIdentity(v string) (endTest, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%q is not an identity number", v)
	}
	return func(end int) test { return identityIs(end, []uint32{uint32(n)}) }, nil
}

func hasAddress(v string) (endTest, error) {
	block, err := api.ParseBlock(v)
	return func(end int) test {
		return func(r *record) bool { return block.Contains(r.addr(end)) }
	}, err
}

func hasPort(v string) (endTest, error) {
	ports, err := parsePorts([]string{v})
	return func(end int) test { return oneOf(ports, portOf(end)) }, err
}

// isProcess knows a process by its name, its executable or the end of that path, its
// container (as much of the id as people write) or its pid.
func isProcess(v string) (endTest, error) {
	pid, err := strconv.ParseUint(v, 10, 32)
	isPID := err == nil
	const shortID = 12
	return func(end int) test {
		return func(r *record) bool {
			p := r.event.Process
			if end == destination {
				p = r.event.Listener
			}
			return p != nil && (p.Name == v || p.Executable == v || strings.HasSuffix(p.Executable, "/"+v) ||
				isPID && p.PID == uint32(pid) || len(v) >= shortID && strings.HasPrefix(p.ContainerID(), v))
		}
	}, nil
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
