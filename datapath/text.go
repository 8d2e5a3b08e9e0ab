package datapath

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
)

// Text renders the state for goldens and for reading: a line for each thing, sorted.
//
//	endpoint 1 ifindex 7 mac 02:00:00:00:00:01 addr 10.0.0.2 egress 1 ingress 2
//	peer 10.0.0.2/32 identity 256 endpoint 1
//	fact set 3 identity 256 = 0
//	ruleset 2 default deny rule 300
//	  tcp/80 set 3 labels rules 301
//	frontend 10.96.0.10 udp/53
//	service 10.96.0.10 udp/53 affinity 10800 to 10.0.0.2:5353
//	origin 192.0.2.2/32 address of node 7
//	origin 10.0.2.0/24 pods of node 7
//	way to node 7 (IPv4) via 192.0.2.2 dev 3 mtu 1500
func (s *State) Text() string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(s.Endpoints)) {
		fmt.Fprintf(&b, "endpoint %d %s\n", n, s.Endpoints[n].text())
	}
	for _, x := range slices.SortedFunc(maps.Keys(s.Peers), comparePrefixes) {
		fmt.Fprintf(&b, "peer %s %s\n", x, s.Peers[x].text())
	}
	for _, f := range slices.SortedFunc(maps.Keys(s.Facts), compareFacts) {
		fmt.Fprintf(&b, "fact %s = %d\n", f.text(), s.Facts[f])
	}
	for _, id := range slices.Sorted(maps.Keys(s.Rulesets)) {
		fmt.Fprintf(&b, "ruleset %d %s", id, s.Rulesets[id].text())
	}
	for _, f := range slices.SortedFunc(maps.Keys(s.Frontends), compareFrontends) {
		fmt.Fprintf(&b, "frontend %s %s/%d\n", f.Addr, protocolName(f.Protocol), f.Port)
	}
	for _, f := range slices.SortedFunc(maps.Keys(s.Services), compareFrontends) {
		fmt.Fprintf(&b, "service %s %s/%d %s\n", f.Addr, protocolName(f.Protocol), f.Port, s.Services[f].text())
	}
	for _, x := range slices.SortedFunc(maps.Keys(s.Origins), comparePrefixes) {
		what := "pods"
		if s.Origins[x].Address {
			what = "address"
		}
		fmt.Fprintf(&b, "origin %s %s of node %d\n", x, what, s.Origins[x].Node)
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.Ways), compareWays) {
		fmt.Fprintf(&b, "way to %s %s\n", k.text(), s.Ways[k].text())
	}
	return b.String()
}

func (k WayKey) text() string {
	if k.V6 {
		return fmt.Sprintf("node %d (IPv6)", k.Node)
	}
	return fmt.Sprintf("node %d (IPv4)", k.Node)
}

func (w Way) text() string {
	how := "via"
	if w.Tunnel {
		how = "by tunnel to"
	}
	return fmt.Sprintf("%s %s dev %d mtu %d", how, w.Addr, w.Ifindex, w.MTU)
}

func (s *Service) text() string {
	var words []string
	if s.Affinity != 0 {
		words = append(words, fmt.Sprintf("affinity %d", s.Affinity))
	}
	if len(s.Backends) == 0 {
		return strings.Join(append(words, "refused"), " ")
	}
	words = append(words, "to")
	for _, b := range s.Backends {
		words = append(words, b.String())
	}
	return strings.Join(words, " ")
}

func (e Endpoint) text() string {
	words := []string{fmt.Sprintf("ifindex %d mac %02x:%02x:%02x:%02x:%02x:%02x", e.Ifindex,
		e.MAC[0], e.MAC[1], e.MAC[2], e.MAC[3], e.MAC[4], e.MAC[5])}
	for _, a := range []netip.Addr{e.Addr4, e.Addr6} {
		if a.IsValid() {
			words = append(words, "addr "+a.String())
		}
	}
	if e.NetnsCookie != 0 {
		words = append(words, fmt.Sprintf("netns %d", e.NetnsCookie))
	}
	if e.NoRedirect {
		words = append(words, "no redirect")
	}
	if e.Shared {
		words = append(words, "shared link")
	}
	return strings.Join(append(words, fmt.Sprintf("egress %d ingress %d", e.Egress, e.Ingress)), " ")
}

func (p Peer) text() string {
	text := "identity " + numberText(p.Identity)
	if p.Block != 0 {
		text += " block " + numberText(p.Block)
	}
	if p.Endpoint != 0 {
		text += fmt.Sprintf(" endpoint %d", p.Endpoint)
	}
	return text
}

func (f Fact) text() string {
	text := fmt.Sprintf("set %d identity %s", f.Set, numberText(f.Identity))
	if f.Protocol != 0 || f.Port != 0 {
		text += fmt.Sprintf(" %s/%d", protocolName(f.Protocol), f.Port)
	}
	return text
}

func (r Ruleset) text() string {
	var b strings.Builder
	verdict := "deny"
	if r.Allow {
		verdict = "allow"
	}
	fmt.Fprintf(&b, "default %s rule %d\n", verdict, r.Default)
	for _, g := range r.Groups {
		fmt.Fprintf(&b, "  %s\n", g.text())
	}
	return b.String()
}

func (g PortGroup) text() string {
	words := []string{g.ports()}
	if g.Set != 0 {
		words = append(words, fmt.Sprintf("set %d", g.Set))
	}
	for _, flag := range []struct {
		on   bool
		name string
	}{{g.AnyPeer, "any peer"}, {g.AllPods, "all pods"}, {g.Labels, "labels"}, {g.Blocks, "blocks"}} {
		if flag.on {
			words = append(words, flag.name)
		}
	}
	return strings.Join(append(words, "rules "+strings.Trim(fmt.Sprint(g.Rules), "[]")), " ")
}

func (g PortGroup) ports() string {
	switch name := protocolName(g.Protocol); {
	case g.Protocol == Any:
		return name
	case g.PortName != 0:
		return fmt.Sprintf("%s/name %d", name, g.PortName)
	case g.Low == g.High:
		return fmt.Sprintf("%s/%d", name, g.Low)
	default:
		return fmt.Sprintf("%s/%d-%d", name, g.Low, g.High)
	}
}

func protocolName(p uint8) string {
	switch p {
	case Any:
		return "any"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

func numberText(n identity.Number) string {
	if n >= identity.Block {
		return fmt.Sprintf("block:%d", n-identity.Block)
	}
	return fmt.Sprint(uint32(n))
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func compareFacts(a, b Fact) int {
	return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.Identity, b.Identity),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func compareFrontends(a, b Frontend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func compareWays(a, b WayKey) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), strings.Compare(a.text(), b.text()))
}
