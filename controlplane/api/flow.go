package api

import "time"

// Kinds of flow records.
const (
	FlowNew     = "new"     // a flow began: its first packet was let through
	FlowEnded   = "ended"   // it is over: packets, bytes and duration are final
	FlowRevoked = "revoked" // a policy change forbade a live flow; the counters are up to there
	FlowDenied  = "denied"  // a packet was dropped
	FlowUpdate  = "update"  // it goes on: packets, bytes and duration up to now, from its beginning
)

// Ways of a packet through the node.
const (
	PathStack = "stack" // the kernel's network stack forwards it
	PathBPF   = "bpf"   // redirected past the stack
)

// FlowExtension is what a flow record says and Hubble's flow message has no field for.
// It travels in Flow.extensions as an Any of google.protobuf.StringValue whose value is
// this struct as JSON. Fields are only ever added.
type FlowExtension struct {
	Kind   string `json:"kind"`  // new, update, ended, revoked, denied
	Epoch  uint64 `json:"epoch"` // of the policy that judged: status shows the present one
	Path   string `json:"path,omitempty"`
	Reason string `json:"reason,omitempty"` // why it was dropped, in Weir's words ("policy", "spoofed source")
	// KernelReason is the kernel's own word for why it dropped the packet ("TCP_CSUM"),
	// when Reason is "kernel".
	KernelReason string `json:"kernel_reason,omitempty"`

	// The rule that decided in each direction, null where this node did not judge.
	Egress  *FlowRule `json:"egress"`
	Ingress *FlowRule `json:"ingress"`

	// Counters of layer 3, in the initiator's orientation.
	Packets *FlowCount `json:"packets,omitempty"`
	Bytes   *FlowCount `json:"bytes,omitempty"`

	// Process is whose socket the initiator opened, Listener who opened the socket that its
	// packets are for. Absent: not known, or no process of a pod of this node.
	Process  *FlowProcess `json:"process,omitempty"`
	Listener *FlowProcess `json:"listener,omitempty"`

	// A TCP connection as the sockets of this node's pods had it at its end.
	TCPSource      *FlowTCP `json:"tcp_source,omitempty"`
	TCPDestination *FlowTCP `json:"tcp_destination,omitempty"`

	Duration  float64 `json:"duration_seconds,omitempty"` // from the first packet to this record
	End       string  `json:"end,omitempty"`              // how it ended: fin, rst, timeout, revoked, gone (a pod of it was detached)
	FlagsSent string  `json:"flags_sent,omitempty"`       // TCP flags the initiator sent, ended flows only
	FlagsBack string  `json:"flags_back,omitempty"`       // and those it got
	PickedUp  bool    `json:"picked_up,omitempty"`        // TCP that was already going on when it was first seen

	// Suppressed, when not 0, makes the record stand for that many denied packets of
	// the endpoint that were counted but not recorded one by one; it has no addresses.
	Suppressed uint64 `json:"suppressed,omitempty"`

	Interface uint32 `json:"ifindex,omitempty"` // where it was seen
}

// FlowRule is a rule and what it did.
type FlowRule struct {
	ID        uint32 `json:"id"`
	Verdict   string `json:"verdict"`             // FORWARDED or DROPPED
	Kind      string `json:"kind"`                // NetworkPolicy, default-deny, refused, not-isolated, node, self, node-egress
	Namespace string `json:"namespace,omitempty"` // of the policy
	Name      string `json:"name,omitempty"`
	Index     *int   `json:"index,omitempty"` // place in spec.egress or spec.ingress
	// IsolatedBy names the policies that isolate the pod, for default-deny and refused.
	IsolatedBy []Ref `json:"isolated_by,omitempty"`
}

// FlowCount is a number for each way.
type FlowCount struct {
	Sent     uint64 `json:"sent"`     // by the initiator
	Received uint64 `json:"received"` // by the initiator
}

// FlowProcess is a process as it was when it opened the socket. Fields that are absent are
// not known.
type FlowProcess struct {
	PID         uint32 `json:"pid"` // as the node's initial PID namespace has it
	Name        string `json:"name,omitempty"`
	Executable  string `json:"executable,omitempty"` // path in the process's mount namespace
	ContainerID string `json:"container_id,omitempty"`
	// Held: the socket is older than Weir's notes, and this is the oldest process that held it.
	Held  bool       `json:"held,omitempty"`
	Start *time.Time `json:"start,omitempty"` // of the process: tells processes of one PID apart
}

// FlowTCP is how a connection went for one of its ends.
type FlowTCP struct {
	RTT         float64 `json:"rtt_seconds,omitempty"` // smoothed round-trip time
	Retransmits uint64  `json:"retransmits"`           // segments it sent again
}
