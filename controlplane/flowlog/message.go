package flowlog

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Cilium's numbers of event types (its pkg/monitor/api), by which the stock client
// names a flow.
const (
	eventTypeDrop  = 1
	eventTypeTrace = 4
	eventTypeL7    = 129 // of which there are no records
)

// response is the record as the stock client gets it.
func (l *Log) response(r *record) *observerpb.GetFlowsResponse {
	if r.lost > 0 {
		return l.lost(r.lost, r.cause, r.event.Time)
	}
	return &observerpb.GetFlowsResponse{
		ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: l.flow(r)},
		NodeName:      l.opts.Node,
		Time:          timestamppb.New(r.event.Time),
	}
}

// lost stands in a stream for n records: its reader was too slow for them, or, with a
// cause, they never came out of the kernel.
func (l *Log) lost(n uint64, cause string, at time.Time) *observerpb.GetFlowsResponse {
	return &observerpb.GetFlowsResponse{
		ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{LostEvents: &flowpb.LostEvent{
			Source:        lossSources[cause],
			NumEventsLost: n,
		}},
		NodeName: l.opts.Node,
		Time:     timestamppb.New(at),
	}
}

const emitterName = "Weir"

func (l *Log) flow(r *record) *flowpb.Flow {
	e := &r.event
	f := &flowpb.Flow{
		Time:             timestamppb.New(e.Time),
		Uuid:             r.uuid(l.opts.Node),
		Emitter:          &flowpb.Emitter{Name: emitterName, Version: l.opts.Version},
		Verdict:          verdict(e.Dropped),
		IP:               ip(r),
		L4:               layer4(r),
		Source:           endpoint(r, 0),
		Destination:      endpoint(r, 1),
		Type:             flowpb.FlowType_L3_L4,
		NodeName:         l.opts.Node,
		SourceNames:      nodeNames(r.parties[0]),
		DestinationNames: nodeNames(r.parties[1]),
		TrafficDirection: hubbleDirection(r.direction()),
		IsReply:          wrapperspb.Bool(false),
	}
	if e.Ifindex != 0 {
		f.Interface = &flowpb.NetworkInterface{Index: e.Ifindex, Name: r.ifname}
	}
	f.SourceService, f.DestinationService = service(r.services[source]), service(r.services[destination])
	//lint:ignore SA1019 stock clients print nothing else of layer 4
	f.Summary = summary(r)
	setEventType(f, e)
	setPolicies(f, r)
	f.Extensions = extension(r)
	return f
}

func hubbleDirection(d datapath.Direction) flowpb.TrafficDirection {
	switch d {
	case datapath.Egress:
		return flowpb.TrafficDirection_EGRESS
	case datapath.Ingress:
		return flowpb.TrafficDirection_INGRESS
	}
	return flowpb.TrafficDirection_TRAFFIC_DIRECTION_UNKNOWN
}

func verdict(dropped bool) flowpb.Verdict {
	if dropped {
		return flowpb.Verdict_DROPPED
	}
	return flowpb.Verdict_FORWARDED
}

// verdictName is its name; that of the generated code is looked for at every call.
func verdictName(dropped bool) string {
	if dropped {
		return "DROPPED"
	}
	return "FORWARDED"
}

func setEventType(f *flowpb.Flow, e *datapath.Event) {
	kind, sub := eventType(e)
	f.EventType = &flowpb.CiliumEventType{Type: kind, SubType: sub}
	if e.Dropped {
		f.DropReasonDesc = dropReason(e)
		return
	}
	f.TraceObservationPoint, f.TraceReason = observationPoint(e), traceReason(e)
}

func traceReason(e *datapath.Event) flowpb.TraceReason {
	if e.Kind == datapath.EventNew {
		return flowpb.TraceReason_NEW
	}
	return flowpb.TraceReason_ESTABLISHED
}

// eventType is the type and sub type of a CiliumEventType.
func eventType(e *datapath.Event) (kind, sub int32) {
	if e.Dropped {
		return eventTypeDrop, int32(dropReason(e))
	}
	point := observationPoint(e)
	if point == flowpb.TraceObservationPoint_TO_ENDPOINT {
		point = 0 // Cilium's own number of it
	}
	return eventTypeTrace, int32(point)
}

func observationPoint(e *datapath.Event) flowpb.TraceObservationPoint {
	if e.Path == pathBPF {
		return flowpb.TraceObservationPoint_TO_ENDPOINT
	}
	return flowpb.TraceObservationPoint_TO_STACK
}

func service(s *Ref) *flowpb.Service {
	if s == nil {
		return nil
	}
	return &flowpb.Service{Namespace: s.Namespace, Name: s.Name}
}

// setPolicies names the policies that decided, by direction.
func setPolicies(f *flowpb.Flow, r *record) {
	allowed := [2]*[]*flowpb.Policy{&f.EgressAllowedBy, &f.IngressAllowedBy}
	denied := [2]*[]*flowpb.Policy{&f.EgressDeniedBy, &f.IngressDeniedBy}
	for d, rule := range r.rules {
		if rule == nil {
			continue
		}
		if r.denied(datapath.Direction(d)) {
			*denied[d] = policiesOf(rule, r.event.Epoch)
		} else {
			*allowed[d] = policiesOf(rule, r.event.Epoch)
		}
	}
}

// policiesOf are a rule's policy, or those whose isolation is the rule; none for rules
// that belong to no policy. The revision is the epoch that judged.
func policiesOf(r *policy.Rule, epoch uint64) []*flowpb.Policy {
	if r.Name != "" {
		return []*flowpb.Policy{policyOf(r.Kind, r.Namespace, r.Name, r.UID, epoch)}
	}
	var out []*flowpb.Policy
	for _, by := range r.IsolatedBy {
		out = append(out, policyOf(by.Kind, by.Namespace, by.Name, "", epoch))
	}
	return out
}

// policyOf names a policy, also by the labels that Cilium gives what it derives from one.
func policyOf(kind, namespace, name, uid string, epoch uint64) *flowpb.Policy {
	var labels []string
	for _, l := range policyLabels(policy.Ref{Kind: kind, Namespace: namespace, Name: name}, uid) {
		if l.key != "" {
			labels = append(labels, labelPolicy+l.key+l.value)
		}
	}
	return &flowpb.Policy{Kind: kind, Namespace: namespace, Name: name, Labels: labels, Revision: epoch}
}

// policyLabel is one after labelPolicy; without a key it is none.
type policyLabel struct{ key, value string }

func policyLabels(p policy.Ref, uid string) [4]policyLabel {
	out := [4]policyLabel{{"derived-from=", p.Kind}, {"name=", p.Name}, {"namespace=", p.Namespace}}
	if uid != "" {
		out[3] = policyLabel{"uid=", uid}
	}
	return out
}

const labelPolicy = "k8s:io.cilium.k8s.policy."

// uuid is the same each time the record is asked for.
func (r *record) uuid(node string) string {
	var room [uuidSize]byte
	return string(r.appendUUID(room[:0], node))
}

const uuidSize = 36

func (r *record) appendUUID(to []byte, node string) []byte {
	e := &r.event
	var room [256]byte
	b := append(append(room[:0], node...), ' ')
	b = append(strconv.AppendUint(b, uint64(e.Kind), 10), ' ')
	b = append(strconv.AppendUint(b, e.Created, 10), ' ')
	b = append(strconv.AppendInt(b, e.Time.UnixNano(), 10), ' ')
	b = append(appendAddrPort(b, e.Source), ' ')
	b = append(appendAddrPort(b, e.Destination), ' ')
	b = strconv.AppendUint(b, uint64(e.Protocol), 10)
	h := sha256.Sum256(binary.BigEndian.AppendUint64(b, r.seq))
	h[6] = h[6]&0x0f | 0x80 // version 8: made by our own rule
	h[8] = h[8]&0x3f | 0x80
	for i, part := range [5][]byte{h[0:4], h[4:6], h[6:8], h[8:10], h[10:16]} {
		if i > 0 {
			to = append(to, '-')
		}
		to = hex.AppendEncode(to, part)
	}
	return to
}

// appendAddrPort adds what String says, which is not what AppendTo does where there is none.
func appendAddrPort(to []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(to, a.String()...)
	}
	return a.AppendTo(to)
}

// appendAddr is the same for an address.
func appendAddr(to []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(to, a.String()...)
	}
	return a.AppendTo(to)
}
