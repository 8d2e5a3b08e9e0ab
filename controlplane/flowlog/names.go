package flowlog

import (
	"net/netip"
	"sync/atomic"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/identity"
)

// Names says what the numbers and addresses of events mean at the moment of the call.
// The log asks when it reads an event, once for each end and rule, from one goroutine:
// numbers and addresses are given out again later. A method that knows nothing answers
// nil or false at once; it never waits.
type Names interface {
	// Endpoint names the pod that has an endpoint number of this node. For a number
	// that was just taken away it may still answer: the log remembers the last answer,
	// so nil is good enough too.
	Endpoint(number uint32) *Party
	// Peer names an end that is no endpoint of this node: a pod elsewhere or one without
	// endpoint here, a node, or nil for what has no name of its own (world, an address
	// in the cluster's ranges that nobody has shown). n is the identity the kernel judged
	// by; a Party of another identity is a later owner's and should not be answered.
	Peer(addr netip.Addr, n identity.Number) *Party
	// Service names the Service that has an address, nil for an address that is none's.
	Service(addr netip.Addr) *Ref
	// ServiceNumbered names the Service that a number stands for, one that is no more too; nil
	// for a number that is forgotten. A number never means another. (datapath.Event.Service.)
	ServiceNumbered(number uint16) *Ref
	// Interface is the name of a device of this node that pods' packets come by, "" if it
	// is not known.
	Interface(index uint32) string
	// Rule says what a rule id stands for, the reserved ones below datapath.RuleFirst
	// included; false for one never given out. (*policy.Allocator).Rule is this method.
	Rule(id uint32) (policy.Rule, bool)
}

// Party is who an end of a flow was. It is shared by the records that name it and never
// changed after it was handed over: a new label is a new Party.
type Party struct {
	Namespace string   // of a pod, else ""
	Name      string   // of the pod, or of the node
	Labels    []string // "key=value" of the pod and "namespace:key=value" of its namespace, as identity.Labels.Strings gives them or more
	Workload  Workload // that the pod is one of; zero if it stands alone

	labels     atomic.Pointer[[]string] // hubbleLabels
	wire, json atomic.Pointer[[]byte]   // wireForm, jsonForm
}

// Workload is what pods are made by.
type Workload struct{ Kind, Name string }

// Ref names an object.
type Ref struct{ Namespace, Name string }

func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// hubbleLabels are the labels of a pod as messages have them. Like its other forms they are
// made when they are first asked for, and serve all records that name it.
func (p *Party) hubbleLabels() []string { return once(&p.labels, p, podLabels) }

// wireForm is what all Endpoints of a pod have, as AppendMessage has it.
func (p *Party) wireForm() []byte { return once(&p.wire, p, wirePod) }

// jsonForm is the same as AppendRecord has it.
func (p *Party) jsonForm() []byte { return once(&p.json, p, jsonPod) }

func once[T any](at *atomic.Pointer[T], p *Party, of func(*Party) T) T {
	if made := at.Load(); made != nil {
		return *made
	}
	made := of(p) // twice at worst, to the same
	at.Store(&made)
	return made
}

// IsPod reports whether the party is a pod.
func (p *Party) IsPod() bool { return p != nil && p.Namespace != "" }
