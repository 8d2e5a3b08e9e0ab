// Package datapath is the vocabulary between the control plane and the kernel: what
// is to be enforced (State) and what was seen (Event), without any eBPF. Package
// datapath/maps writes a State, package datapath/reader reads Events.
package datapath

import (
	"net/netip"

	"github.com/weirnet/weir/identity"
)

// Direction as the pod sees it.
type Direction uint8

// Directions; an event that nobody denied has None.
const (
	Egress Direction = iota
	Ingress
	None
)

func (d Direction) String() string { return [...]string{"egress", "ingress", "none"}[d] }

// Protocols that policies name, by their IP protocol numbers; Any in a PortGroup
// stands for every protocol and every port.
const (
	Any  uint8 = 0
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// Rule ids that are the same everywhere (bpf/contract.h, enum rule_number).
const (
	RuleNone        uint32 = 0 // not judged here
	RuleNode        uint32 = 1 // this node to its own pods
	RuleSelf        uint32 = 2 // a pod to itself
	RuleNotIsolated uint32 = 3 // no policy isolates the pod in that direction
	RuleNodeEgress  uint32 = 4 // a pod to its own node under --node-egress=allow
	RuleFirst       uint32 = 256
)

// State is everything a node enforces. It is desired state: package datapath/maps
// compares it with what the kernel has and commits the difference in one epoch.
// A State handed over is not changed afterwards.
type State struct {
	Endpoints map[uint32]Endpoint   // by endpoint number, 1..1023
	Peers     map[netip.Prefix]Peer // single addresses (/32, /128) and prefixes, masked; the families are apart
	Facts     map[Fact]uint32       // value: ordinal of the first member of the set that matches
	Rulesets  map[uint32]Ruleset    // by ruleset id; immutable: another content has another id
	Frontends map[Frontend]struct{}
	Services  map[Frontend]*Service   // what sockets of endpoints get instead; one may stand behind several
	Origins   map[netip.Prefix]Origin // whose an address outside is; a tunnel's packets may come from nowhere else
	Ways      map[WayKey]Way          // how pods' packets get to other nodes' pods past this node's stack; without one: by it
}

// The tunnel between nodes: its number (VNI) and each node's device.
const (
	TunnelNetwork = 0x7765
	TunnelDevice  = "weir-vxlan"
)

// Origin is the other node that an address or range of pods is of.
type Origin struct {
	Node    uint64 // a number for it, not 0
	Address bool   // an address of its own, not of its pods
}

// WayKey names another node, by its Origins' number, and the family of what goes there.
type WayKey struct {
	Node uint64
	V6   bool
}

// Way is how packets get to another node's pods.
type Way struct {
	Ifindex uint32     // of the uplink, or of the tunnel's device
	MTU     uint16     // what a packet there may have
	Addr    netip.Addr // of the next hop; the far end's where there is a tunnel
	Tunnel  bool
}

// Endpoint is a pod's interface on this node.
type Endpoint struct {
	Ifindex     uint32     // of the host side of the veth, in the node's network namespace
	MAC         [6]byte    // of the pod's side
	Addr4       netip.Addr // zero = none
	Addr6       netip.Addr // zero = none
	NetnsCookie uint64     // of the pod's network namespace, 0 = not known
	NoRedirect  bool       // deliver by the stack, not by redirect_peer
	Shared      bool       // its link is another plugin's, and others may be on it; implies NoRedirect
	Egress      uint32     // ruleset ids; 0 = none: everything in that direction is dropped
	Ingress     uint32
}

// Peer is what an address or prefix means.
type Peer struct {
	Identity identity.Number // labels, or a reserved number
	Block    identity.Number // of the longest policy CIDR that contains it; 0 = none does
	Endpoint uint32          // endpoint number when it is a local pod's address, else 0
}

// Fact says that set S contains identity N. Protocol and Port are 0 but for sets that
// stand for a port's name.
type Fact struct {
	Set      uint32
	Identity identity.Number
	Protocol uint8
	Port     uint16
}

// Ruleset is the policy of one direction of a pod. Within it only allow rules exist;
// what no group matches gets the default.
type Ruleset struct {
	Default uint32 // rule id of the default
	Allow   bool   // the default's verdict: true = not isolated
	Groups  []PortGroup
}

// PortGroup allows the peers of one set on ports Low..High of a protocol. Exact ports
// (Low == High, a protocol, no PortName) are looked up, at most one such group for a
// (protocol, port); of the others, the wide ones, the first in their order that matches
// answers. There are at most WideMax of them.
type PortGroup struct {
	Protocol  uint8    // Any: every protocol; then Low..High is 0..65535
	Low, High uint16   // host order, inclusive
	PortName  uint32   // set id of the port's name (egress), 0 = ports are numbers
	Set       uint32   // peer set id; 0 with AnyPeer or AllPods alone
	AnyPeer   bool     // any address matches, as ordinal 0
	AllPods   bool     // every pod matches, as ordinal 0
	Labels    bool     // the set has members by label
	Blocks    bool     // the set has members by address
	Rules     []uint32 // rule id by ordinal
}

// Exact reports whether the group is found by its port alone.
func (g PortGroup) Exact() bool {
	return g.Low == g.High && g.Protocol != Any && g.PortName == 0
}

// Frontend is an address whose meaning only the node's NAT knows: a Service's, or,
// with an unspecified Addr, a NodePort or hostPort on any address of this node.
type Frontend struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
}

// Service is a port of a Service as pods on this node reach it by one kind of address.
type Service struct {
	ID       uint64           // of the Service's port and family: what affinity is kept by
	Number   uint16           // of the Service, for events about what pods asked for: never another's; 0 = none
	Affinity uint32           // seconds that a pod stays with its backend, 0 = it does not
	Backends []netip.AddrPort // by address and port, of the frontends' family; none: connections are refused
}
