package flowlog

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

const pathBPF = 1 // datapath.Event.Path

func kindName(k datapath.EventKind) string {
	switch k {
	case datapath.EventNew:
		return api.FlowNew
	case datapath.EventEnded:
		return api.FlowEnded
	case datapath.EventRevoked:
		return api.FlowRevoked
	case datapath.EventDenied:
		return api.FlowDenied
	case datapath.EventUpdate:
		return api.FlowUpdate
	}
	return ""
}

// endNames are datapath.Event.End.
var endNames = [...]string{1: "fin", 2: "rst", 3: "timeout", 4: "revoked", 5: "gone"}

func endName(end uint8) string {
	if int(end) < len(endNames) {
		return endNames[end]
	}
	return ""
}

const extensionType = "type.googleapis.com/google.protobuf.StringValue"

func extension(r *record) *anypb.Any {
	x := forgetful.appendExtension(make([]byte, 0, 1024), r)
	value := make([]byte, 0, len(x)+8)
	value = protowire.AppendBytes(protowire.AppendTag(value, 1, protowire.BytesType), x) // a StringValue
	return &anypb.Any{TypeUrl: extensionType, Value: value}
}

func extensionOf(r *record) *api.FlowExtension {
	e := &r.event
	x := &api.FlowExtension{
		Kind:       kindName(e.Kind),
		Epoch:      e.Epoch,
		Path:       pathOf(e),
		Egress:     ruleOf(r, datapath.Egress),
		Ingress:    ruleOf(r, datapath.Ingress),
		Duration:   e.Age.Seconds(),
		PickedUp:   e.PickedUp,
		Suppressed: r.suppressed,
		Process:    processOf(e.Process),
		Listener:   processOf(e.Listener),
		TCPSource:  tcpOf(e.TCP[0]),

		TCPDestination: tcpOf(e.TCP[1]),
		KernelReason:   e.KernelReason,
	}
	if e.Dropped {
		x.Reason = e.Reason.String()
	}
	if r.suppressed == 0 {
		x.Packets = &api.FlowCount{Sent: e.Packets[0], Received: e.Packets[1]}
		x.Bytes = &api.FlowCount{Sent: e.Bytes[0], Received: e.Bytes[1]}
	}
	if e.Kind == datapath.EventEnded || e.Kind == datapath.EventRevoked {
		x.End = endName(e.End)
		if e.Protocol == datapath.TCP {
			x.FlagsSent, x.FlagsBack = flagText(uint8(e.TCPFlags)), flagText(uint8(e.TCPFlags>>8))
		}
	}
	return x
}

// pathOf is "" for what was denied.
func pathOf(e *datapath.Event) string {
	switch {
	case e.Kind == datapath.EventDenied:
		return ""
	case e.Path == pathBPF:
		return api.PathBPF
	}
	return api.PathStack
}

// ruleUnknown is the kind of a rule that nobody can name any more.
const ruleUnknown = "unknown"

// ruleOf is nil where this node did not judge. A rule id that nobody can name any more
// is given as its number.
func ruleOf(r *record, d datapath.Direction) *api.FlowRule {
	id := r.event.Rule[d]
	if id == datapath.RuleNone {
		return nil
	}
	out := &api.FlowRule{ID: id, Verdict: verdictName(r.denied(d)), Kind: ruleUnknown}
	rule := r.rules[d]
	if rule == nil {
		return out
	}
	out.Kind, out.Namespace, out.Name = rule.Kind, rule.Namespace, rule.Name
	if rule.Kind == policy.KindNetworkPolicy {
		out.Index = &rule.Index
	}
	for _, by := range rule.IsolatedBy {
		out.IsolatedBy = append(out.IsolatedBy, api.Ref{Kind: by.Kind, Namespace: by.Namespace, Name: by.Name})
	}
	return out
}

func processOf(p *datapath.Process) *api.FlowProcess {
	if p == nil {
		return nil
	}
	out := &api.FlowProcess{PID: p.PID, Name: p.Name, Executable: p.Executable, ContainerID: p.ContainerID(), Held: p.Held}
	if !p.Start.IsZero() {
		out.Start = &p.Start
	}
	return out
}

func tcpOf(t datapath.TCPEnd) *api.FlowTCP {
	if !t.Known {
		return nil
	}
	return &api.FlowTCP{RTT: t.RTT.Seconds(), Retransmits: t.Retransmits}
}
