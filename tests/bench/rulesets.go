package main

import (
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// receivers are pods that pod 1 sends to, by what is allowed to them on the port asked; or,
// by their egress, pods that send to pod 1. The first two are not rows of their own.
var receivers = []struct {
	name   string
	port   uint16
	rules  int
	kind   kind
	egress bool
	denied bool // it is pod 3 that asks, whom nobody allows, and on another port each time
}{
	{port: 80, rules: 1, kind: onePort},
	{port: 80, kind: nobody},
	{port: 80, rules: 10, kind: onePort, name: "10 rules for a port"},
	{port: 80, rules: 1000, kind: onePort, name: "1000 rules for a port"},
	{port: 10, rules: 10, kind: ownPort, name: "10 rules, a port each"},
	{port: 1000, rules: 1000, kind: ownPort, name: "1000 rules, a port each"},
	{port: 10, rules: 10, kind: ownRange, name: "10 rules, a range each"},
	{port: 256, rules: 256, kind: ownRange, name: "256 rules, a range each"},
	{port: 300, rules: 10, kind: wideRange, name: "10 rules, ranges over each other"},
	{port: 300, rules: 256, kind: wideRange, name: "256 rules, ranges over each other"},
	{port: 300, rules: 10, kind: wideRange, denied: true, name: "10 ranges over each other"},
	{port: 300, rules: 256, kind: wideRange, denied: true, name: "256 ranges over each other"},
	{port: 80, rules: 10, kind: allPorts, name: "10 rules for all ports"},
	{port: 80, rules: 1000, kind: allPorts, name: "1000 rules for all ports"},
	{port: 300, rules: 10, kind: ownName, egress: true, name: "10 egress rules, a port name each"},
	{port: 300, rules: 256, kind: ownName, egress: true, name: "256 egress rules, a port name each"},
}

type kind int

const (
	nobody    kind = iota // no group
	onePort               // one group, a member a rule
	allPorts              // likewise
	ownPort               // an exact group a rule
	ownRange              // a range a rule, none over another
	wideRange             // a range a rule, each over all that come after it
	ownName               // a port's name a rule, of which pod 1 gives the last to its port
)

const pod1 identity.Number = 1001 // of pod 1

// rules makes n of which the last is the one that allows pod 1; sets begin at set.
func rules(s *datapath.State, set uint32, n int, kind kind) (r datapath.Ruleset) {
	r.Default = 300
	if kind == nobody {
		return r
	}
	ids := make([]uint32, n)
	for i := range n {
		ids[i] = uint32(301 + i)
		group := datapath.PortGroup{Protocol: datapath.TCP, Low: uint16(i + 1), High: uint16(i + 1), Set: set + uint32(i), Labels: true, Rules: ids[i : i+1]}
		other := identity.Number(2000 + i)
		switch kind {
		case onePort, allPorts:
			s.Facts[datapath.Fact{Set: set, Identity: other}] = uint32(i)
			continue
		case ownRange:
			group.High++
		case wideRange:
			group.High = 65535
		case ownName:
			group.Low, group.High, group.PortName = 0, 65535, set+uint32(n+i)
			s.Facts[datapath.Fact{Set: group.PortName, Identity: other, Protocol: datapath.TCP, Port: 300}] = 0
		}
		s.Facts[datapath.Fact{Set: group.Set, Identity: other}] = 0
		r.Groups = append(r.Groups, group)
	}
	last := datapath.Fact{Set: set + uint32(n-1), Identity: pod1}
	switch kind {
	case onePort, allPorts:
		group := datapath.PortGroup{Protocol: datapath.TCP, Low: 80, High: 80, Set: set, Labels: true, Rules: ids}
		if kind == allPorts {
			group.Protocol, group.Low, group.High = datapath.Any, 0, 65535
		}
		r.Groups = []datapath.PortGroup{group}
		s.Facts[datapath.Fact{Set: set, Identity: pod1}] = uint32(n - 1)
		return r
	case ownName:
		s.Facts[datapath.Fact{Set: r.Groups[n-1].PortName, Identity: pod1, Protocol: datapath.TCP, Port: 300}] = 0
	}
	s.Facts[last] = 0
	return r
}
