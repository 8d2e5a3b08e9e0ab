package flowlog

import (
	"strconv"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Record is an event with its names, for readers in this process; it must not be changed.
type Record = record

// Event is what the kernel said; of lost events only its time means anything.
func (r *record) Event() *datapath.Event { return &r.event }

// Party is who the source (0) or the destination (1) was; nil for whoever has no name.
func (r *record) Party(end int) *Party { return r.parties[end] }

// Rule is what decided in a direction; nil where none did, or nobody knows it any more.
func (r *record) Rule(d datapath.Direction) *policy.Rule { return r.rules[d] }

// Suppressed is how many denied packets without records of their own it stands for.
func (r *record) Suppressed() uint64 { return r.suppressed }

// Lost is how many events it stands for that the kernel had no room for, and where.
func (r *record) Lost() (n uint64, cause string) { return r.lost, r.cause }

// Message is the record as the API gives it.
func (l *Log) Message(r *Record) *observerpb.GetFlowsResponse { return l.response(r) }

// LostRecord stands for n records that were lost between a reader and whom it read for.
func LostRecord(n uint64, cause string, at time.Time) *Record {
	return &record{lost: n, cause: cause, event: datapath.Event{Time: at}}
}

// Wants reports whether a record is asked for. Lost events always are: they may have been.
func (f Filter) Wants(r *Record) bool { return r.lost > 0 || f.match(r) }

// KindName is the record's kind as the API has it.
func (r *record) KindName() string { return kindName(r.event.Kind) }

// EndName is how the flow ended, as the API has it; "" while it goes on.
func (r *record) EndName() string { return endName(r.event.End) }

// Extension is what Hubble's message has no field for.
func (r *record) Extension() *api.FlowExtension { return extensionOf(r) }

// Denied reports whether it was denied in that direction.
func (r *record) Denied(d datapath.Direction) bool { return r.denied(d) }

// Service is the Service whose address an end is, or that was asked for and led to the destination;
// nil if there is none.
func (r *record) Service(end int) *Ref { return r.services[end] }

// InterfaceName is where it was seen.
func (r *record) InterfaceName() string { return r.ifname }

// UUID is the same each time it is asked for, and in the message.
func (r *record) UUID(node string) string { return r.uuid(node) }

// ProtocolName is tcp, udp, sctp, icmp, or another's number.
func (r *record) ProtocolName() string {
	switch p := r.event.Protocol; p {
	case datapath.TCP:
		return "tcp"
	case datapath.UDP:
		return "udp"
	case datapath.SCTP:
		return "sctp"
	case protocolICMPv4, protocolICMPv6:
		return "icmp"
	default:
		return strconv.Itoa(int(p))
	}
}

// HasPorts reports whether the ends' ports mean anything.
func (r *record) HasPorts() bool { return hasPorts(r.event.Protocol) }

// ICMP is its type and code, if it is ICMP of either family.
func (r *record) ICMP() (kind, code uint8, ok bool) {
	p := r.event.Protocol
	return r.event.ICMPType, r.event.ICMPCode, p == protocolICMPv4 || p == protocolICMPv6
}
