package datapath

import (
	"math/bits"
	"math/rand"
	"testing"

	"github.com/weirnet/weir/identity"
)

// What spans and masks find is what State.Judge finds group by group.
func TestMasksFindWhatTheGroupsSay(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	found, none := 0, 0
	for range 200 {
		s := randomWide(random, ScanMax+1+random.Intn(WideMax-ScanMax))
		spans, masks, r := s.Rulesets[1].Spans(), s.Masks(), s.Rulesets[1]
		if most := 3 + 2*len(r.Groups); spans.Len() > most {
			t.Fatalf("%d elements for %d groups", spans.Len(), len(r.Groups))
		}
		for range 200 {
			peer := Peer{Identity: identity.Number(random.Intn(4)) + identity.First - 1, Block: []identity.Number{0, identity.Block | 1, identity.Block | 2}[random.Intn(3)]}
			protocol, port := []uint8{TCP, UDP, SCTP, 1}[random.Intn(4)], uint16(random.Intn(30))
			if protocol == 1 {
				port = 0
			}
			allow, rule, _ := s.Judge(1, peer, protocol, port)
			g, ok := first(spans, masks, peer, protocol, port)
			if ok != allow {
				t.Fatalf("%+v protocol %d port %d: masks say %v, %d groups %v", peer, protocol, port, ok, len(r.Groups), allow)
			}
			if !ok {
				none++
				continue
			}
			if got, _ := s.match(r.Groups[g], peer, protocol, port); got != rule {
				t.Fatalf("%+v protocol %d port %d: masks say group %d, rule %d; groups say %d", peer, protocol, port, g, got, rule)
			}
			found++
		}
	}
	if min(found, none)*10 < found+none {
		t.Errorf("%d found, %d not: too much alike to tell anything", found, none)
	}
}

// first is bpf/judge.h, masked_group.
func first(s *Spans, masks map[MaskKey]Mask, peer Peer, protocol uint8, port uint16) (group int, ok bool) {
	var has, at Mask
	for _, span := range s.Ports {
		if span.From <= uint32(protocol)<<16|uint32(port) {
			at = span.Groups
		}
	}
	pods := s.Pods
	if !peer.Identity.IsPod() {
		pods = Mask{}
	}
	people, block := masks[MaskKey{Ruleset: 1, Identity: peer.Identity}], masks[MaskKey{Ruleset: 1, Identity: peer.Block}]
	names := masks[MaskKey{1, peer.Identity, protocol, port}]
	if port == 0 {
		names = Mask{}
	}
	for i := range has {
		has[i] = s.Any[i] | pods[i] | people[i] | block[i]
		if both := has[i] & (at[i] | names[i]); both != 0 {
			return 64*i + bits.TrailingZeros64(both), true
		}
	}
	return 0, false
}

// randomWide has one ruleset of n wide groups of every kind, few of which match.
func randomWide(random *rand.Rand, n int) *State {
	s := &State{Facts: map[Fact]uint32{}, Rulesets: map[uint32]Ruleset{}}
	few := random.Intn(60) + 2
	r := Ruleset{Default: 300}
	for i := range n {
		set := uint32(10 + i)
		g := PortGroup{Protocol: []uint8{TCP, UDP, SCTP}[random.Intn(3)], Low: uint16(random.Intn(28)), Set: set, Labels: random.Intn(2) == 0,
			Rules: []uint32{uint32(1000 + 2*i), uint32(1001 + 2*i)}}
		g.High = g.Low + 1 + uint16(random.Intn(20))
		g.Blocks = !g.Labels
		switch random.Intn(few) {
		case 0:
			s.Facts[Fact{Set: set, Identity: identity.First + identity.Number(random.Intn(3))}] = uint32(random.Intn(2))
			s.Facts[Fact{Set: set, Identity: identity.Block | identity.Number(1+random.Intn(2))}] = uint32(random.Intn(2))
		case 1:
			g.AllPods = random.Intn(3) == 0
			g.AnyPeer = random.Intn(9) == 0
		}
		switch random.Intn(8) {
		case 0:
			g.Low, g.High, g.PortName = 0, 65535, uint32(5+random.Intn(3))
			s.Facts[Fact{Set: g.PortName, Identity: identity.First + identity.Number(random.Intn(3)), Protocol: g.Protocol, Port: uint16(1 + random.Intn(30))}] = 0
		case 1:
			g.Low, g.High = 0, 65535
		case 2:
			if random.Intn(8) == 0 {
				g.Protocol, g.Low, g.High = Any, 0, 65535
			}
		}
		r.Groups = append(r.Groups, g)
	}
	s.Rulesets[1] = r
	return s
}

// Few groups are asked one by one; policies' members and ranges add up in masks.
func TestMasksAreASum(t *testing.T) {
	state := func(groups, members int) *State {
		s := &State{Facts: map[Fact]uint32{}, Rulesets: map[uint32]Ruleset{}}
		var r Ruleset
		for i := range groups {
			r.Groups = append(r.Groups, PortGroup{Protocol: TCP, Low: uint16(i), High: 60000, Set: uint32(1 + i), Labels: true, Rules: []uint32{300}})
			for m := range members {
				s.Facts[Fact{Set: uint32(1 + i), Identity: identity.First + identity.Number(m)}] = 0
			}
		}
		s.Rulesets[1] = r
		return s
	}
	for _, c := range []struct{ groups, members, spans, masks int }{
		{ScanMax, 50, 0, 0},
		{ScanMax + 1, 50, 4 + ScanMax + 1, 50},
		{100, 50, 4 + 100, 50}, // they end together
		{100, 100, 4 + 100, 100},
		{200, 100, 4 + 200, 100},
	} {
		size := state(c.groups, c.members).Size()
		if size.Spans != c.spans || size.Masks != c.masks {
			t.Errorf("%d groups of %d members: %d spans, %d masks, want %d and %d", c.groups, c.members, size.Spans, size.Masks, c.spans, c.masks)
		}
	}
}

// BenchmarkMasks is as much as the default limits let a node have.
func BenchmarkMasks(b *testing.B) {
	s := &State{Facts: map[Fact]uint32{}, Rulesets: map[uint32]Ruleset{}}
	for i := range 256 {
		for m := range 256 {
			s.Facts[Fact{Set: uint32(1 + i), Identity: identity.First + identity.Number(m)}] = 0
		}
	}
	for id := range uint32(120) {
		var r Ruleset
		for i := range 256 {
			r.Groups = append(r.Groups, PortGroup{Protocol: TCP, Low: uint16(i), High: 60000, Set: uint32(1 + i), Labels: true, Rules: []uint32{300}})
		}
		s.Rulesets[1+id] = r
	}
	for b.Loop() {
		s.Size()
	}
}
