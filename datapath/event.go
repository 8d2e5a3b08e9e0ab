package datapath

import (
	"net/netip"
	"time"

	"github.com/weirnet/weir/identity"
)

// EventKind tells flow events apart.
type EventKind uint8

// Kinds of events.
const (
	EventNew     EventKind = 1 // a flow began
	EventEnded   EventKind = 2 // a flow is over; counters are final
	EventRevoked EventKind = 3 // a commit forbade a live flow
	EventDenied  EventKind = 4 // one packet was dropped
	EventUpdate  EventKind = 5 // a flow goes on: the counters so far
)

// Bits of Event.Judged.
const (
	JudgedEgress  uint8 = 1
	JudgedIngress uint8 = 2
)

// Event is one record from the kernel. Arrays by end are (source, destination) in the
// initiator's orientation (for EventDenied: the packet's); arrays by direction are
// (egress, ingress).
type Event struct {
	Kind        EventKind
	Time        time.Time     // wall clock
	Created     uint64        // kernel clock, ns, of the flow's first packet: tells flows of one tuple apart
	Age         time.Duration // from the flow's first packet to the event; 0 for EventDenied
	Epoch       uint64
	Source      netip.AddrPort // ICMP echo: the id is the source port
	Destination netip.AddrPort
	Protocol    uint8
	Ifindex     uint32
	Endpoint    [2]uint32          // endpoint numbers, 0 = none on this node
	Identity    [2]identity.Number // as the kernel judged it
	Rule        [2]uint32          // rule ids by direction, 0 = not judged here
	Dropped     bool
	Reason      Reason    // why, when Dropped
	Direction   Direction // the side that denied, else None
	Judged      uint8     // sides that were judged by a ruleset of this node
	Path        uint8     // 0 stack, 1 BPF
	End         uint8     // 1 FIN, 2 RST, 3 timeout, 4 revoked
	ICMPType    uint8
	ICMPCode    uint8
	PickedUp    bool
	TCPFlags    uint16    // of the packet; EventEnded: union, source's in the low byte, destination's in the high
	Packets     [2]uint64 // by end
	Bytes       [2]uint64 // by end, layer 3

	// Process is whose socket the initiator sent from (for EventDenied: the packet was),
	// Listener whose socket its packets are for. nil = not known, or no process of this
	// node's pods. They are shared between events and never changed.
	Process, Listener *Process
	// TCP is what each end's socket found, by end; of ends that are sockets of this node's
	// pods, once their connection is over.
	TCP [2]TCPEnd
	// Service is the number of the Service that the initiator's socket had asked for and was
	// given the destination in its place (Service.Number); 0 = none, or it is not known.
	Service uint16
	// KernelReason is why the kernel itself dropped the packet, in its own word
	// ("TCP_CSUM"), when Reason is ReasonKernel.
	KernelReason string
}

// TCPEnd is a connection as one of its sockets had it.
type TCPEnd struct {
	Known       bool
	RTT         time.Duration // smoothed; 0 = never measured
	Retransmits uint64        // segments sent again
}

// Reader yields events in the order the kernel wrote them.
type Reader interface {
	// Read blocks for the next event; it returns os.ErrClosed once Close was called.
	Read() (Event, error)
	Close() error
}

// Counters are the kernel's own, summed over CPUs.
type Counters struct {
	FlowsNew, FlowsEnded, FlowsRevoked, FlowsRestamped, FlowsRejudged, FlowsPickedUp uint64
	EventsEmitted, EventsLost                                                        uint64
	DenialsEmitted, DenialsLost, DenialsSuppressed, DenialsUncounted, DenialsCached  uint64
	Parked                                                                           uint64 // dropped, and handed to the agent to send again
	Untracked                                                                        uint64 // forwarded without a flow entry
	FlowsUpdated                                                                     uint64 // periodic events
	Drops                                                                            map[Reason]uint64
	KernelDrops                                                                      map[string]uint64 // Drops[ReasonKernel] by the kernel's own reasons
}

// DenialCount is an exact count of denied packets.
type DenialCount struct {
	Endpoint  uint32
	Rule      uint32
	Direction Direction
	Reason    Reason
	Packets   uint64
	Bytes     uint64
}

// Kernel is what the control plane asks of a node's datapath. Package datapath/maps has
// the real one; Fake in this package keeps it in memory and renders it as text.
type Kernel interface {
	// Commit makes the node enforce s from one epoch on and returns that epoch (the
	// present one when nothing changed). On an error nothing changed; a *FullError names
	// the map that s does not fit.
	Commit(s *State) (epoch uint64, err error)
	// CommitDelta is Commit of an s that differs only where d says from the State that was
	// committed before, which may be the same maps as they were then.
	CommitDelta(s *State, d *Delta) (epoch uint64, err error)
	// Limits are how large a State may be to fit for sure.
	Limits() Limits
	// Epoch returns the one in force.
	Epoch() uint64
	// Grace returns when no program that ran before the call runs any more.
	Grace() error
	Counters() (Counters, error)
	Denials() ([]DenialCount, error)
	// FlowsOf returns how many flow entries are charged to an endpoint number; the
	// number may be given out again only when it is 0.
	FlowsOf(endpoint uint32) (uint64, error)
}
