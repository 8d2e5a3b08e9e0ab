package packetfuzz

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/testnode"
)

// Places where packets begin and end. The pods' numbers are their endpoint numbers.
type place int

const (
	nowhere place = iota
	podA
	podB
	podC
	podD // has no IPv6
	host
	outside // in the block that policies name
	service // translated by nobody here: the kernel's hooks leave it undecided
	stranger
	places
)

// addresses of the places, IPv4 and IPv6.
var addresses = [places][2]netip.Addr{
	podA:     {addr("10.0.0.1"), addr("fd00::1")},
	podB:     {addr("10.0.0.2"), addr("fd00::2")},
	podC:     {addr("10.0.0.3"), addr("fd00::3")},
	podD:     {addr("10.0.0.4"), {}},
	host:     {addr("192.0.2.1"), addr("2001:db8:1::1")},
	outside:  {addr("203.0.113.9"), addr("2001:db8::9")},
	service:  {addr("10.96.0.1"), addr("fd96::1")},
	stranger: {addr("10.0.9.9"), addr("fd00::9:9")}, // in the cluster's ranges, not shown to the node
}

var gateways = [2]netip.Addr{addr("169.254.1.1"), addr("fe80::ecee:eeff:feee:eeee")}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func isPod(p place) bool { return p >= podA && p <= podD }

func placeOf(a netip.Addr) place {
	for p, pair := range addresses {
		if a.IsValid() && (pair[0] == a || pair[1] == a) {
			return place(p)
		}
	}
	return nowhere
}

// Protocols by number.
const (
	icmp4 = 1
	ipip  = 4
	tcp   = 6
	udp   = 17
	gre   = 47
	esp   = 50
	icmp6 = 58
	sctp  = 132
)

// port is a protocol and a destination port.
type port struct {
	protocol uint8
	number   uint16
}

// talk is what policy lets begin; anything = every protocol and port.
type talk struct {
	from, to place
	ports    []port
	anything bool
}

// The whole policy, by half: what a pod may send, what a pod may get. Everything else is
// denied, so that a packet that was taken for another than it is shows as a pass.
var (
	egress = []talk{
		{from: podA, to: podB, ports: []port{{tcp, 80}, {udp, 53}, {sctp, 9}}},
		{from: podA, to: outside, ports: []port{{tcp, 443}}},
		{from: podA, to: podC, anything: true},
	}
	ingress = []talk{
		{from: podA, to: podB, ports: []port{{tcp, 80}, {udp, 53}, {sctp, 9}}},
		{from: outside, to: podB, ports: []port{{tcp, 80}, {udp, 53}}},
		{from: podA, to: podC, anything: true},
		{from: outside, to: podC, anything: true},
	}
	services = []port{{tcp, 80}, {udp, 53}}
)

// scene is a node that enforces them.
type scene struct {
	*testnode.Node
	pods     [places]testnode.Pod
	uplink   int
	tables   *testnode.Tables
	hooks    map[string]*testnode.Hook
	counters *ebpf.Map
	sets     uint32
}

const (
	denyRule  = 300
	allowRule = 400
	block     = identity.Block | 1
)

func identityOf(p place) identity.Number { return identity.Number(1000 + p) }

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{Node: testnode.New(t, loader.Config{}), hooks: map[string]*testnode.Hook{}}
	prefixes := map[string]datapath.Peer{
		"10.0.0.0/16": {Identity: identity.Unmanaged}, "fd00::/64": {Identity: identity.Unmanaged},
		"203.0.113.9/32": {Identity: identity.World, Block: block}, "2001:db8::9/128": {Identity: identity.World, Block: block},
		"192.0.2.1/32": {Identity: identity.Host}, "2001:db8:1::1/128": {Identity: identity.Host},
	}
	for p, peer := range prefixes {
		s.State.Peers[netip.MustParsePrefix(p)] = peer
	}
	for p := podA; p <= podD; p++ {
		s.State.Rulesets[out(p)] = s.ruleset(egress, func(t talk) place { return either(t.from == p, t.to) })
		s.State.Rulesets[in(p)] = s.ruleset(ingress, func(t talk) place { return either(t.to == p, t.from) })
		v6 := ""
		if addresses[p][1].IsValid() {
			v6 = addresses[p][1].String()
		}
		s.pods[p] = s.AddPod(t, addresses[p][0].String(), v6, identityOf(p), out(p), in(p))
	}
	for _, a := range addresses[service] {
		for _, p := range services {
			s.State.Frontends[datapath.Frontend{Addr: a, Protocol: p.protocol, Port: p.number}] = struct{}{}
		}
	}
	s.uplink = s.AddDevice(t, "uplink")
	s.lead(t)
	s.Commit(t)
	s.open(t)
	return s
}

// lead has the outside be another node's pod, with a way to it by the uplink, which has the hardware
// address that frames have.
func (s *scene) lead(t *testing.T) {
	t.Helper()
	err := s.Do(func() error {
		link, err := netlink.LinkByIndex(s.uplink)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee})
	})
	if err != nil {
		t.Fatal(err)
	}
	s.State.Origins, s.State.Ways = map[netip.Prefix]datapath.Origin{}, map[datapath.WayKey]datapath.Way{}
	for i, a := range addresses[outside] {
		s.State.Origins[netip.PrefixFrom(a, a.BitLen())] = datapath.Origin{Node: 2}
		s.State.Ways[datapath.WayKey{Node: 2, V6: i == 1}] = datapath.Way{Ifindex: uint32(s.uplink), MTU: 1500, Addr: netip.MustParseAddr("192.0.2.2")}
	}
}

func (s *scene) open(t *testing.T) {
	t.Helper()
	var err error
	if s.tables, err = s.Tables(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.tables.Close() })
	if s.counters, err = ebpf.LoadPinnedMap(maps.Path(s.Config.BPFFSDir, bpf.WeirMapCounters), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.counters.Close() })
	for _, name := range []string{"from_pod", "to_pod", "to_network", "from_network"} {
		h, err := s.Hook(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		h.Out = make([]byte, largest+64)
		s.hooks[name] = h
	}
}

// either is p, or nowhere.
func either(is bool, p place) place {
	if is {
		return p
	}
	return nowhere
}

func out(p place) uint32 { return uint32(10 + p) }
func in(p place) uint32  { return uint32(20 + p) }

// ruleset is the part of a half that concerns a pod: peers gives the other end of its talks.
// A port's group has one set, whose members are all that may use it.
func (s *scene) ruleset(half []talk, peer func(talk) place) datapath.Ruleset {
	rs := datapath.Ruleset{Default: denyRule}
	byPort := map[port][]place{}
	for _, t := range half {
		p := peer(t)
		if p == nowhere {
			continue
		}
		for _, at := range t.ports {
			byPort[at] = append(byPort[at], p)
		}
		if t.anything {
			rs.Groups = append(rs.Groups, s.group([]place{p}, datapath.PortGroup{High: 65535}))
		}
	}
	for at, peers := range byPort {
		g := datapath.PortGroup{Protocol: at.protocol, Low: at.number, High: at.number}
		rs.Groups = append(rs.Groups, s.group(peers, g))
	}
	return rs
}

// group gives g a new set of the peers.
func (s *scene) group(peers []place, g datapath.PortGroup) datapath.PortGroup {
	s.sets++
	g.Set = s.sets
	for i, p := range peers {
		id := block
		if isPod(p) {
			id, g.Labels = identityOf(p), true
		} else {
			g.Blocks = true
		}
		s.State.Facts[datapath.Fact{Set: g.Set, Identity: id}] = uint32(i)
		g.Rules = append(g.Rules, allowRule+uint32(i))
	}
	return g
}

// says is one half's answer, asked of the policy itself.
func says(half []talk, from, to place, p port) bool {
	return slices.ContainsFunc(half, func(t talk) bool {
		return t.from == from && t.to == to && (t.anything || slices.Contains(t.ports, p))
	})
}
