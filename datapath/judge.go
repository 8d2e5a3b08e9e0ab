package datapath

import "github.com/weirnet/weir/identity"

// Judge is what the kernel's ruleset walk computes, in Go: the verdict and rule id of
// ruleset id for a peer, a protocol and the destination port (host order; 0 for
// protocols without ports). ok is false when the ruleset is not there.
func (s *State) Judge(id uint32, peer Peer, protocol uint8, port uint16) (allow bool, rule uint32, ok bool) {
	r, ok := s.Rulesets[id]
	if !ok {
		return false, 0, false
	}
	for _, g := range r.Groups {
		if g.Exact() && g.Protocol == protocol && g.Low == port {
			if rule, hit := s.match(g, peer, protocol, port); hit {
				return true, rule, true
			}
		}
	}
	for _, g := range r.Groups {
		if g.Exact() || g.Protocol != Any && (g.Protocol != protocol || port < g.Low || port > g.High) {
			continue
		}
		if rule, hit := s.match(g, peer, protocol, port); hit {
			return true, rule, true
		}
	}
	return r.Allow, r.Default, true
}

func (s *State) match(g PortGroup, peer Peer, protocol uint8, port uint16) (uint32, bool) {
	if g.PortName != 0 {
		if _, ok := s.Facts[Fact{Set: g.PortName, Identity: peer.Identity, Protocol: protocol, Port: port}]; !ok {
			return 0, false
		}
	}
	if g.AnyPeer || g.AllPods && peer.Identity.IsPod() {
		return g.Rules[0], true
	}
	best, hit := uint32(0), false
	ask := func(want bool, n identity.Number) {
		if o, ok := s.Facts[Fact{Set: g.Set, Identity: n}]; want && n != 0 && ok && (!hit || o < best) {
			best, hit = o, true
		}
	}
	ask(g.Labels, peer.Identity)
	ask(g.Blocks, peer.Block)
	if !hit {
		return 0, false
	}
	return g.Rules[best], true
}
