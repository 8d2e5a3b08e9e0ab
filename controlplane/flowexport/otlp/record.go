package otlp

import (
	"net/netip"
	"path"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/datapath"
)

// Names of events.
const (
	EventFlow = "weir.flow"
	EventLost = "weir.lost" // records that are missing here
)

// logRecord is a flow as OpenTelemetry has it: semantic conventions where there are such,
// weir.* for the rest. What is not known, or not among fields, is not there.
func logRecord(r *flowlog.Record, node string, fields Fields, now time.Time) log.Record {
	var out log.Record
	out.SetTimestamp(r.Event().Time)
	out.SetObservedTimestamp(now)
	if n, cause := r.Lost(); n > 0 {
		out.SetEventName(EventLost)
		out.SetSeverity(log.SeverityError)
		out.SetSeverityText("ERROR")
		out.SetBody(attribute.StringValue("flow records were lost here"))
		out.AddAttributes(attribute.Int64("weir.lost.records", int64(n)), attribute.String("weir.lost.cause", lostCause(cause)))
		return out
	}
	x := r.Extension()
	out.SetEventName(EventFlow)
	out.SetSeverity(log.SeverityInfo)
	out.SetSeverityText("INFO")
	if r.Event().Dropped {
		out.SetSeverity(log.SeverityWarn)
		out.SetSeverityText("WARN")
	}
	if fields.want(fieldBody) {
		out.SetBody(attribute.StringValue(body(r, x)))
	}
	a := make(attributes, 0, 48)
	a.text(semconv.LogRecordUIDKey, r.UUID(node))
	a.network(r)
	for end, name := range [2]string{"source", "destination"} {
		a.end(r, end, name)
	}
	a.story(r, x)
	a.process(x)
	out.AddAttributes(fields.of(a)...)
	return out
}

func lostCause(cause string) string {
	if cause == "" {
		return "flow_log"
	}
	return cause
}

// body is for people who read logs.
func body(r *flowlog.Record, x *api.FlowExtension) string {
	e := r.Event()
	verdict := "FORWARDED "
	if e.Dropped {
		verdict = "DROPPED "
	}
	text := verdict + party(r, 0, e.Source) + " -> " + party(r, 1, e.Destination) + " " + r.ProtocolName() + " " + x.Kind
	if x.Reason != "" {
		text += ": " + x.Reason
	}
	return text
}

func party(r *flowlog.Record, end int, at netip.AddrPort) string {
	name := at.Addr().String()
	p := r.Party(end)
	switch {
	case p.IsPod():
		name = p.Namespace + "/" + p.Name
	case !at.Addr().IsValid():
		return "?"
	case at.Addr().Is6() && r.HasPorts():
		name = "[" + name + "]"
	}
	if r.HasPorts() && at.Addr().IsValid() {
		name += ":" + strconv.Itoa(int(at.Port()))
	}
	return name
}

// attributes leave out what is empty.
type attributes []attribute.KeyValue

func (a *attributes) text(k attribute.Key, v string) {
	if v != "" {
		*a = append(*a, k.String(v))
	}
}

func (a *attributes) number(k attribute.Key, v int64) { *a = append(*a, k.Int64(v)) }

func (a *attributes) network(r *flowlog.Record) {
	e := r.Event()
	if !e.Source.Addr().IsValid() {
		return
	}
	if e.Source.Addr().Is4() {
		a.text(semconv.NetworkTypeKey, "ipv4")
	} else {
		a.text(semconv.NetworkTypeKey, "ipv6")
	}
	a.text(semconv.NetworkTransportKey, r.ProtocolName())
	a.text(semconv.NetworkInterfaceNameKey, r.InterfaceName())
	a.text(semconv.SourceAddressKey, e.Source.Addr().String())
	a.text(semconv.DestinationAddressKey, e.Destination.Addr().String())
	if r.HasPorts() {
		a.number(semconv.SourcePortKey, int64(e.Source.Port()))
		a.number(semconv.DestinationPortKey, int64(e.Destination.Port()))
	}
	if kind, code, ok := r.ICMP(); ok {
		a.number("weir.icmp.type", int64(kind))
		a.number("weir.icmp.code", int64(code))
	}
}

// end is who a flow is from or for: Kubernetes' names, after which end it is.
func (a *attributes) end(r *flowlog.Record, end int, name string) {
	k := func(key attribute.Key) attribute.Key { return attribute.Key(name + "." + string(key)) }
	p := r.Party(end)
	switch {
	case p.IsPod():
		a.text(k(semconv.K8SNamespaceNameKey), p.Namespace)
		a.text(k(semconv.K8SPodNameKey), p.Name)
		a.text(k("k8s.workload.kind"), p.Workload.Kind)
		a.text(k("k8s.workload.name"), p.Workload.Name)
	case p != nil:
		a.text(k(semconv.K8SNodeNameKey), p.Name)
	}
	if s := r.Service(end); s != nil {
		a.text(k("k8s.service.namespace"), s.Namespace)
		a.text(k(semconv.K8SServiceNameKey), s.Name)
	}
}

// story is what became of the flow, and by which rules.
func (a *attributes) story(r *flowlog.Record, x *api.FlowExtension) {
	e := r.Event()
	verdict := "FORWARDED"
	if e.Dropped {
		verdict = "DROPPED"
	}
	a.text("weir.kind", x.Kind)
	a.text("weir.verdict", verdict)
	a.text("weir.reason", x.Reason)
	a.text("weir.kernel_reason", x.KernelReason)
	a.text("weir.path", x.Path)
	a.number("weir.epoch", int64(x.Epoch))
	for d, rule := range [2]*api.FlowRule{x.Egress, x.Ingress} {
		a.rule("weir."+datapath.Direction(d).String(), rule)
	}
	if x.Packets != nil {
		a.number("weir.packets.sent", int64(x.Packets.Sent))
		a.number("weir.packets.received", int64(x.Packets.Received))
		a.number("weir.bytes.sent", int64(x.Bytes.Sent))
		a.number("weir.bytes.received", int64(x.Bytes.Received))
	}
	if e.Age > 0 {
		*a = append(*a, attribute.Float64("weir.duration", x.Duration))
	}
	a.text("weir.end", x.End)
	a.text("weir.tcp.flags.sent", x.FlagsSent)
	a.text("weir.tcp.flags.received", x.FlagsBack)
	for end, t := range [2]*api.FlowTCP{x.TCPSource, x.TCPDestination} {
		if t != nil {
			name := [2]string{"weir.tcp.source", "weir.tcp.destination"}[end]
			*a = append(*a, attribute.Float64(name+".rtt", t.RTT), attribute.Int64(name+".retransmits", int64(t.Retransmits)))
		}
	}
	if x.PickedUp {
		*a = append(*a, attribute.Bool("weir.picked_up", true))
	}
	if x.Suppressed > 0 {
		a.number("weir.suppressed", int64(x.Suppressed))
	}
}

func (a *attributes) rule(name string, r *api.FlowRule) {
	if r == nil {
		return
	}
	a.text(attribute.Key(name+".verdict"), r.Verdict)
	a.text(attribute.Key(name+".rule.kind"), r.Kind)
	a.text(attribute.Key(name+".rule.namespace"), r.Namespace)
	a.text(attribute.Key(name+".rule.name"), r.Name)
	if r.Index != nil {
		a.number(attribute.Key(name+".rule.index"), int64(*r.Index))
	}
	if len(r.IsolatedBy) > 0 {
		var by []string
		for _, p := range r.IsolatedBy {
			by = append(by, p.Namespace+"/"+p.Name)
		}
		*a = append(*a, attribute.StringSlice(name+".isolated_by", by))
	}
}

// process has the conventions' names for whose socket sent the flow; whose socket it is
// for has them after weir.listener.
func (a *attributes) process(x *api.FlowExtension) {
	for i, p := range [2]*api.FlowProcess{x.Process, x.Listener} {
		if p == nil {
			continue
		}
		k := func(key attribute.Key) attribute.Key {
			if i == 1 {
				return "weir.listener." + key
			}
			return key
		}
		a.number(k(semconv.ProcessPIDKey), int64(p.PID))
		a.text(k("process.comm"), p.Name)
		a.text(k(semconv.ProcessExecutablePathKey), p.Executable)
		if p.Executable != "" {
			a.text(k(semconv.ProcessExecutableNameKey), path.Base(p.Executable))
		}
		if p.Start != nil {
			a.text(k(semconv.ProcessCreationTimeKey), p.Start.UTC().Format(time.RFC3339Nano))
		}
		a.text(k(semconv.ContainerIDKey), p.ContainerID)
	}
}
