// Package api is what the agent and its clients (the CLI, the CNI plugin) say to each
// other: HTTP with JSON bodies over the unix socket STATE_DIR/agent.sock (0600, root).
package api

import "time"

// SocketName is the agent's socket below the state directory.
const SocketName = "agent.sock"

// Paths of the API. Errors are answered with an HTTP status >= 400 and an Error body.
const (
	PathStatus     = "/v1/status"     // GET ?wait=10s -> Status
	PathEndpoints  = "/v1/endpoints"  // GET -> []Endpoint; POST AddRequest -> Endpoint; DELETE ?container=ID&ifname=IF
	PathIdentities = "/v1/identities" // GET -> []Identity
	PathPolicies   = "/v1/policies"   // GET -> []Policy
	PathExplain    = "/v1/explain"    // GET ?from&to&port&family -> Explanation
	PathFlows      = "/v1/flows"      // GET FlowQuery as parameters -> Hubble GetFlowsResponse JSON, one a line
	PathGC         = "/v1/gc"         // POST GCRequest: endpoints not listed are removed
	PathProfile    = "/v1/profile"    // GET ?kind=heap, goroutine ...; kind=cpu&seconds=10 -> as pprof reads it; text=1: as text
	PathPing       = "/v1/ping"       // GET -> Ping: the agent is there, and what it runs with
)

// CNI error codes that the agent's answers carry (CNI specification 1.1, section "Error").
const (
	CodeTryLater = 11 // the pod, or the agent, is not there yet
	CodeInvalid  = 7  // invalid network config
	CodeIncompat = 1  // incompatible CNI version
	CodeNotReady = 50 // STATUS: the plugin cannot service ADD
	CodeInternal = 999
	AddWaitMax   = 10 * time.Second           // an ADD waits this long for its pod by default
	AddAnswerMax = AddWaitMax + 2*time.Second // and weir-cni for the answer: the agent's own bound comes first and says more
)

// Error is the body of a failed call.
type Error struct {
	Code    int    `json:"code,omitempty"` // a CNI code where the caller is the plugin
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Ping says what the agent runs with.
type Ping struct {
	Version    string `json:"version"`
	NodeName   string `json:"nodeName"`
	BPFFSDir   string `json:"bpffsDir"`
	NetnsInode uint64 `json:"netnsInode"`    // of the agent's network namespace
	MTU        int    `json:"mtu,omitempty"` // that pods' packets may have at most; 0 = that of the node's way out
}

// AddRequest asks for an endpoint: the interface exists, its programs are attached
// (they drop everything until the answer), both ends may be up.
type AddRequest struct {
	ContainerID  string   `json:"containerID"`
	IfName       string   `json:"ifName"` // in the pod
	HostIfName   string   `json:"hostIfName"`
	HostIfindex  uint32   `json:"hostIfindex"` // in the node's network namespace
	MAC          string   `json:"mac"`         // pod side
	Addresses    []string `json:"addresses"`   // without prefix length
	Netns        string   `json:"netns"`       // path the runtime gave
	NetnsCookie  uint64   `json:"netnsCookie"`
	PodNamespace string   `json:"podNamespace"`
	PodName      string   `json:"podName"`
	PodUID       string   `json:"podUID,omitempty"`
	NoRedirect   bool     `json:"noRedirect,omitempty"`
	Network      string   `json:"network,omitempty"` // name of the CNI configuration
	Chained      bool     `json:"chained,omitempty"` // another plugin made the interface
	Pins         string   `json:"pins,omitempty"`    // what its links are pinned below; "" = HostIfName
}

// GCRequest names what is still in use; every other endpoint is removed.
type GCRequest struct {
	Valid []Attachment `json:"valid"`
}

// Attachment is a container's interface, as CNI names it.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Endpoint is a pod's interface on this node.
type Endpoint struct {
	Number       uint32         `json:"number"`
	PodNamespace string         `json:"namespace"`
	PodName      string         `json:"pod"`
	PodUID       string         `json:"podUID,omitempty"`
	Identity     uint32         `json:"identity"`
	Labels       []string       `json:"labels"` // those that make the identity, "k=v", sorted
	Addresses    []string       `json:"addresses"`
	ContainerID  string         `json:"containerID"`
	IfName       string         `json:"ifName"`
	HostIfName   string         `json:"hostIfName"`
	HostIfindex  uint32         `json:"hostIfindex"`
	MAC          string         `json:"mac"`
	Network      string         `json:"network,omitempty"` // name of its CNI configuration
	Chained      bool           `json:"chained,omitempty"` // another plugin made the interface
	Ready        bool           `json:"ready"`             // its policy is enforced
	Ingress      EndpointPolicy `json:"ingress"`
	Egress       EndpointPolicy `json:"egress"`
}

// EndpointPolicy is one direction of an endpoint.
type EndpointPolicy struct {
	Isolated bool     `json:"isolated"`
	By       []string `json:"by,omitempty"` // isolating policies, "namespace/name"
	Ruleset  uint32   `json:"ruleset"`
}

// Identity is a number and what it stands for on this node.
type Identity struct {
	Number uint32   `json:"number"`
	Kind   string   `json:"kind"` // reserved, labels, block
	Name   string   `json:"name"` // reserved name, CIDR, or namespace
	Labels []string `json:"labels,omitempty"`
	Pods   int      `json:"pods"`
}

// Policy is one policy object as it is enforced.
type Policy struct {
	Kind      string   `json:"kind"`
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Types     []string `json:"types"`   // Ingress, Egress
	Selects   int      `json:"selects"` // pods in the cluster
	Ingress   int      `json:"ingressRules"`
	Egress    int      `json:"egressRules"`
	Revision  uint64   `json:"revision"` // first revision that holds this content
	Enforced  string   `json:"enforced"` // AsWritten, LastGood or Isolates
}

// What is enforced of a policy; of all but AsWritten Status.Errors has the reason.
const (
	AsWritten = "as-written"
	LastGood  = "last-good" // an earlier version
	Isolates  = "isolates"  // it isolates the pods it selects and allows nothing
)

// Status is the agent's state.
type Status struct {
	Node        string             `json:"node"`
	Version     string             `json:"version"`
	Started     time.Time          `json:"started"`
	Revision    Revision           `json:"revision"`
	Epoch       uint64             `json:"epoch"`
	Degraded    bool               `json:"degraded"` // Errors has the causes
	Endpoints   int                `json:"endpoints"`
	Chained     int                `json:"chained"`     // of these, on interfaces that another plugin made
	Unprotected int                `json:"unprotected"` // pods of this node, as an API server has them, that have no endpoint
	Flows       FlowStatus         `json:"flows"`
	Services    ServiceStatus      `json:"services"`
	HostRouting *HostRoutingStatus `json:"hostRouting,omitempty"` // nil: the way to other nodes' pods is somebody else's matter
	Shield      *ShieldStatus      `json:"shield,omitempty"`      // nil: it has no list
	Errors      []ObjectError      `json:"errors"`                // empty, not null, when all is well
	Drops       map[string]uint64  `json:"drops"`                 // packets by reason since the maps were made
	Hooks       []string           `json:"hooks"`                 // what is attached, e.g. "to_network eth0 (tcx)"
	Maps        []MapUse           `json:"maps"`                  // how full the kernel's maps are
	Warnings    []string           `json:"warnings"`              // not errors: things the user should know
	Unready     []string           `json:"unready,omitempty"`     // why the container runtime does not hand new pods to us
	Exports     []ExportStatus     `json:"exports,omitempty"`
}

// ExportStatus is what became of the flows that were meant for one export's target:
// taken = exported + queued + lost, save for those lost as "behind", which nobody has read.
type ExportStatus struct {
	Export   string            `json:"export"` // file, otlp
	Target   string            `json:"target"` // its path or URL
	Taken    uint64            `json:"taken"`  // flows that its filter let through
	Exported uint64            `json:"exported"`
	Queued   uint64            `json:"queued"`          // or being sent
	Lost     map[string]uint64 `json:"lost"`            // by cause: queue, refused, end; behind: skipped in the flow log, matching or not
	Failures uint64            `json:"failures"`        // attempts that failed
	Error    string            `json:"error,omitempty"` // why the target takes nothing just now
	Since    *time.Time        `json:"since,omitempty"` // when that began
}

// HostRoutingStatus is how new flows between this node's pods and other nodes' cross this node:
// past its stack (bpf), or by it.
type HostRoutingStatus struct {
	Path   string   `json:"path"`          // bpf: to some nodes at least
	Nodes  int      `json:"nodes"`         // whose pods are all reached by BPF
	Others int      `json:"others"`        // nodes there are that have pods
	Why    []string `json:"why,omitempty"` // they are not all
}

// ShieldStatus is what the shield drops at the uplinks by the source's address.
type ShieldStatus struct {
	File     string `json:"file"` // that lists it
	Denied   int    `json:"denied"`
	Most     int    `json:"most"`     // there can be
	Dropped  uint64 `json:"dropped"`  // packets
	Attached bool   `json:"attached"` // to an uplink at least
}

// ServiceStatus is how pods reach Services.
type ServiceStatus struct {
	Translated bool   `json:"translated"`           // at pods' sockets; else by the node's NAT
	CgroupRoot string `json:"cgroupRoot,omitempty"` // whose processes' sockets
	Addresses  int    `json:"addresses"`            // addresses and ports known
}

// MapUse is how much of a kernel map is in use. What a commit replaces stays a while
// beside what it brings, so most is half of what the map holds; of the flow table and the
// shield's list all.
type MapUse struct {
	Name string `json:"name"`
	Used int    `json:"used"`
	Most int    `json:"most"`
}

// Nearly reports whether four fifths are used.
func (m MapUse) Nearly() bool { return m.Most > 0 && m.Used >= m.Most-m.Most/5 }

// Revision counts inputs: what the sources say (desired) and what is enforced (applied).
type Revision struct {
	Desired uint64 `json:"desired"`
	Applied uint64 `json:"applied"`
}

// FlowStatus is the log's account: produced = emitted + lost.
type FlowStatus struct {
	Off        bool   `json:"off,omitempty"` // no records are written
	Active     uint64 `json:"active"`        // entries in the table
	Emitted    uint64 `json:"emitted"`
	Lost       uint64 `json:"lost"`
	Suppressed uint64 `json:"suppressed"` // denials counted but not recorded one by one
	Parked     uint64 `json:"parked"`     // first packets of pods not known yet, dropped and kept
	Resent     uint64 `json:"resent"`     // of those, how many were judged again once the pod was known
	// LostBy is Lost by cause: flow_events and denial_events are the kernel's rings.
	LostBy map[string]uint64 `json:"lostBy,omitempty"`
	// EmittedBy is Emitted likewise. Made are the events that flow_events' are: of flows that are
	// new, updated, ended, revoked. With records on, their sum is EmittedBy + LostBy of flow_events.
	EmittedBy map[string]uint64 `json:"emittedBy,omitempty"`
	Made      map[string]uint64 `json:"made,omitempty"`
	Log       *FlowLogStatus    `json:"log,omitempty"`
}

// FlowLogStatus is what became of the events since the agent began. Of the records that
// came while a reader read, it took some and lost the others: Taken + Lost, exactly.
type FlowLogStatus struct {
	Read    uint64       `json:"read"`    // events from the kernel
	Records uint64       `json:"records"` // put into the ring: those, and the records that stand for many
	Kept    uint64       `json:"kept"`    // of those, in the ring now
	Size    uint64       `json:"size"`    // how many it keeps
	Readers []FlowReader `json:"readers"` // by name; an entry stays when its reader has gone
	// Spill is the past on disk, where there is one.
	Spill *FlowSpillStatus `json:"spill,omitempty"`
}

// FlowSpillStatus is the account of what is spilled to disk; its reader is "spill".
type FlowSpillStatus struct {
	Bytes   int64      `json:"bytes"`
	Oldest  *time.Time `json:"oldest,omitempty"` // record
	Written uint64     `json:"written"`          // records, by this agent
	Lost    uint64     `json:"lost"`             // records that could not be written
	Corrupt uint64     `json:"corrupt"`          // damaged places found in files of earlier agents, skipped
	Error   string     `json:"error,omitempty"`  // why the last write failed
	Missing uint64     `json:"missing"`          // events that an earlier agent had read and not spilled when it was killed
}

// FlowReader is the account of the readers of one name.
type FlowReader struct {
	Name  string `json:"name"` // flows (weir flows -f), hubble, an export
	Open  int    `json:"open"` // how many read now
	Taken uint64 `json:"taken"`
	Lost  uint64 `json:"lost"` // overwritten before they were taken: the reader was too slow
	Cut   uint64 `json:"cut"`  // how many were cut off because they took nothing for 30 s
}

// ObjectError is one thing that cannot be enforced as it is written.
type ObjectError struct {
	File     string `json:"file"`
	Document int    `json:"document"` // 1-based, within File
	Object   string `json:"object"`   // "NetworkPolicy ns/name"
	Field    string `json:"field"`    // spec.ingress[0].from[1].ipBlock.cidr
	Message  string `json:"message"`  // what is wrong and what to do
}

// String is the one line that logs and the CLI print.
func (e ObjectError) String() string {
	s := ""
	if e.File != "" {
		s = e.File
		if e.Document > 0 {
			s += " document " + itoa(e.Document)
		}
		s += ": "
	}
	if e.Object != "" {
		s += e.Object + ": "
	}
	if e.Field != "" {
		s += e.Field + ": "
	}
	return s + e.Message
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// Explanation is the reference verdict on one tuple and its reasons.
type Explanation struct {
	Verdict string `json:"verdict"` // FORWARDED or DROPPED
	Family  int    `json:"family"`
	Egress  *Side  `json:"egress"`         // null: the sender is no pod of ours
	Ingress *Side  `json:"ingress"`        // null: the receiver is no pod of ours
	Note    string `json:"note,omitempty"` // e.g. that IPv6 differs
	// LastGood are those of the policies named here that are enforced in an earlier version
	// than the one that is written now.
	LastGood []Ref `json:"last_good,omitempty"`
}

// Side is one direction's part of an Explanation.
type Side struct {
	Verdict    string     `json:"verdict"`
	Rules      []RuleRef  `json:"rules"` // all that allow; the first is the one the kernel names
	IsolatedBy []Ref      `json:"isolated_by"`
	NearMisses []NearMiss `json:"near_misses"`
}

// Ref names an object.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// RuleRef names a rule of an object; Index is its place in spec.ingress or spec.egress.
type RuleRef struct {
	Ref
	Index int `json:"index"`
}

// NearMiss is a rule that nearly matched, and what differed.
type NearMiss struct {
	RuleRef
	Reason string `json:"reason"`
}
