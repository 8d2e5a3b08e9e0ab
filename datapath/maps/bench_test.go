package maps

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// BenchmarkCommit is one pod's policy change on a node of 200 pods in a cluster of 10,000
// addresses, 400 rulesets and 20,000 facts.
func BenchmarkCommit(b *testing.B) {
	k, err := Open(pinMaps(b, nil))
	must(b, err)
	defer k.Close()
	s := state()
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		s.Peers[netip.PrefixFrom(a, 32)] = datapath.Peer{Identity: identity.Number(256 + i%500)}
	}
	for i := range 20000 {
		s.Facts[datapath.Fact{Set: uint32(1 + i/500), Identity: identity.Number(256 + i%500)}] = 0
	}
	for id := range uint32(401) {
		r := datapath.Ruleset{Default: 300}
		for port := range uint16(5) {
			r.Groups = append(r.Groups, datapath.PortGroup{Protocol: 6, Low: port, High: port, Set: 1, Labels: true, Rules: []uint32{400}})
		}
		s.Rulesets[1+id] = r
	}
	for n := range uint32(200) {
		s.Endpoints[1+n] = datapath.Endpoint{Ifindex: 10 + n, Egress: 1 + n, Ingress: 201 + n}
	}
	commitState(b, k, s)
	must(b, k.Settle())
	i := uint32(0)
	for b.Loop() {
		next := *s
		next.Endpoints = maps.Clone(s.Endpoints)
		ep := next.Endpoints[1+i%200]
		ep.Egress = 1 + (ep.Egress+i)%400
		next.Endpoints[1+i%200] = ep
		i++
		commitState(b, k, &next)
		s = &next
	}
	b.ReportMetric(float64(k.Epoch()), "epochs")
}
