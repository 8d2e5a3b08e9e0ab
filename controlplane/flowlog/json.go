package flowlog

import (
	"bytes"
	"strconv"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// AppendRecord adds r to to as AppendLine adds its message, to the byte, without making the
// message: most of what a reader of JSON costs would be that and reflection on it.
func (m *Encoder) AppendRecord(to []byte, r *Record) ([]byte, error) {
	if r.lost > 0 {
		var line bytes.Buffer
		err := AppendLine(&line, m.log.response(r))
		return append(to, line.Bytes()...), err
	}
	o := text(to)
	o = append(o, `{"flow":`...)
	m.appendFlow(&o, r)
	o.string("node_name", m.log.opts.Node)
	o.time("time", r.event.Time)
	return append(o, '}', '\n'), nil
}

// appendFlow is flow in the order of its message's fields.
func (m *Encoder) appendFlow(o *text, r *record) {
	e := &r.event
	o.open('{')
	o.time("time", e.Time)
	o.key("uuid")
	*o = append(r.appendUUID(append(*o, '"'), m.log.opts.Node), '"')
	o.object("emitter")
	o.string("name", emitterName)
	o.string("version", m.log.opts.Version)
	o.close('}')
	o.string("verdict", verdictName(e.Dropped))
	if r.suppressed > 0 {
		o.object("IP")
		o.close('}')
	} else if v := ipVersion(e); v != flowpb.IPVersion_IP_NOT_USED {
		o.object("IP")
		o.address("source", e.Source.Addr())
		o.address("destination", e.Destination.Addr())
		o.string("ipVersion", v.String())
		o.close('}')
	}
	appendLayer4(o, r)
	appendEnd(o, "source", r, source)
	appendEnd(o, "destination", r, destination)
	o.string("Type", flowpb.FlowType_L3_L4.String())
	o.string("node_name", m.log.opts.Node)
	appendNodeName(o, "source_names", r.parties[source])
	appendNodeName(o, "destination_names", r.parties[destination])
	kind, sub := eventType(e)
	o.object("event_type")
	o.number("type", uint64(kind))
	o.number("sub_type", uint64(sub))
	o.close('}')
	appendService(o, "source_service", r.services[source])
	appendService(o, "destination_service", r.services[destination])
	if d := hubbleDirection(r.direction()); d != 0 {
		o.string("traffic_direction", d.String())
	}
	if reason := dropReason(e); e.Dropped && reason != 0 {
		o.string("drop_reason_desc", reason.String())
	}
	if !e.Dropped {
		o.string("trace_observation_point", observationPoint(e).String())
		o.string("trace_reason", traceReason(e).String())
	}
	o.key("is_reply")
	*o = append(*o, "false"...)
	if e.Ifindex != 0 {
		o.object("interface")
		o.number("index", uint64(e.Ifindex))
		o.string("name", r.ifname)
		o.close('}')
	}
	o.key("Summary")
	*o = append(appendSummary(append(*o, '"'), r), '"')
	o.object("extensions")
	o.string("@type", extensionType)
	o.key("value")
	start := len(*o)
	*o = m.appendExtension(*o, r)
	o.quote(start)
	o.close('}')
	m.appendPolicies(o, "egress_allowed_by", r, datapath.Egress, false)
	m.appendPolicies(o, "ingress_allowed_by", r, datapath.Ingress, false)
	m.appendPolicies(o, "egress_denied_by", r, datapath.Egress, true)
	m.appendPolicies(o, "ingress_denied_by", r, datapath.Ingress, true)
	o.close('}')
}

func appendLayer4(o *text, r *record) {
	e := &r.event
	name := ""
	switch {
	case r.suppressed > 0:
	case e.Protocol == datapath.TCP:
		name = "TCP"
	case e.Protocol == datapath.UDP:
		name = "UDP"
	case e.Protocol == datapath.SCTP:
		name = "SCTP"
	case e.Protocol == protocolICMPv4:
		name = "ICMPv4"
	case e.Protocol == protocolICMPv6:
		name = "ICMPv6"
	}
	if name == "" {
		return
	}
	o.object("l4")
	o.object(name)
	if hasPorts(e.Protocol) {
		o.number("source_port", uint64(e.Source.Port()))
		o.number("destination_port", uint64(e.Destination.Port()))
	} else {
		o.number("type", uint64(e.ICMPType))
		o.number("code", uint64(e.ICMPCode))
	}
	if e.Protocol == datapath.TCP {
		o.object("flags")
		for i, flag := range tcpFlagNames {
			if e.TCPFlags>>i&1 == 1 {
				o.key(flag)
				*o = append(*o, "true"...)
			}
		}
		o.close('}')
	}
	o.close('}')
	o.close('}')
}

func appendEnd(o *text, key string, r *record, end int) {
	if !r.hasEnd(end) {
		return
	}
	o.object(key)
	o.number("ID", uint64(r.event.Endpoint[end]))
	o.number("identity", uint64(r.event.Identity[end]))
	if party := r.parties[end]; party.IsPod() {
		o.separate()
		*o = append(*o, party.jsonForm()...)
	} else {
		o.strings("labels", r.labels(end))
	}
	o.close('}')
}

// jsonPod is what a pod's Endpoints have in common: fields, without the braces.
func jsonPod(p *Party) []byte {
	o := text{'{'}
	o.string("cluster_name", clusterName)
	o.string("namespace", p.Namespace)
	o.strings("labels", p.hubbleLabels())
	o.string("pod_name", p.Name)
	if w := p.Workload; w.Name != "" {
		o.key("workloads")
		o = append(o, "[{"...)
		o.string("name", w.Name)
		o.string("kind", w.Kind)
		o = append(o, "}]"...)
	}
	return o[1:]
}

func appendNodeName(o *text, key string, p *Party) {
	if isNode(p) {
		o.strings(key, []string{p.Name})
	}
}

func appendService(o *text, key string, s *Ref) {
	if s == nil {
		return
	}
	o.object(key)
	o.string("name", s.Name)
	o.string("namespace", s.Namespace)
	o.close('}')
}

// appendPolicies are setPolicies' of one direction.
func (m *Encoder) appendPolicies(o *text, key string, r *record, d datapath.Direction, denied bool) {
	if !r.decides(d, denied) {
		return
	}
	rule := r.rules[d]
	o.separate()
	*o = m.again(*o, &m.forms(rule).json[d][bit(denied)], r.event.Epoch, func(to []byte) []byte {
		o := text(append(append(append(to, '"'), key...), `":[`...))
		if rule.Name != "" {
			appendPolicy(&o, policy.Ref{Kind: rule.Kind, Namespace: rule.Namespace, Name: rule.Name}, rule.UID, r.event.Epoch)
			o.close(']')
			return o
		}
		for _, by := range rule.IsolatedBy {
			appendPolicy(&o, by, "", r.event.Epoch)
		}
		o.close(']')
		return o
	})
}

func appendPolicy(o *text, p policy.Ref, uid string, epoch uint64) {
	o.open('{')
	o.string("name", p.Name)
	o.string("namespace", p.Namespace)
	o.key("labels")
	o.open('[')
	for _, label := range policyLabels(p, uid) {
		if label.key == "" {
			continue
		}
		o.separate()
		*o = append(*o, '"')
		*o = append(append(*o, labelPolicy...), label.key...)
		o.escape(label.value)
		*o = append(*o, '"')
	}
	o.close(']')
	if epoch != 0 {
		o.key("revision")
		*o = append(strconv.AppendUint(append(*o, '"'), epoch, 10), '"')
	}
	o.string("kind", p.Kind)
	o.close('}')
}

// appendExtension adds what extensionOf has, as encoding/json would.
func (m *Encoder) appendExtension(to []byte, r *record) []byte {
	e := &r.event
	over := e.Kind == datapath.EventEnded || e.Kind == datapath.EventRevoked
	o := text(to)
	o.open('{')
	o.goString("kind", kindName(e.Kind), false)
	o.key("epoch")
	o = strconv.AppendUint(o, e.Epoch, 10)
	o.goString("path", pathOf(e), true)
	if e.Dropped {
		o.goString("reason", e.Reason.String(), true)
	}
	o.goString("kernel_reason", e.KernelReason, true)
	m.appendRule(&o, "egress", r, datapath.Egress)
	m.appendRule(&o, "ingress", r, datapath.Ingress)
	if r.suppressed == 0 {
		appendCount(&o, "packets", e.Packets)
		appendCount(&o, "bytes", e.Bytes)
	}
	appendProcess(&o, "process", e.Process)
	appendProcess(&o, "listener", e.Listener)
	appendTCP(&o, "tcp_source", e.TCP[0])
	appendTCP(&o, "tcp_destination", e.TCP[1])
	o.float("duration_seconds", e.Age.Seconds())
	if over {
		o.goString("end", endName(e.End), true)
	}
	if over && e.Protocol == datapath.TCP {
		o.goString("flags_sent", flagText(uint8(e.TCPFlags)), true)
		o.goString("flags_back", flagText(uint8(e.TCPFlags>>8)), true)
	}
	if e.PickedUp {
		o.key("picked_up")
		o = append(o, "true"...)
	}
	o.number("suppressed", r.suppressed)
	o.close('}')
	return o
}

func (m *Encoder) appendRule(o *text, key string, r *record, d datapath.Direction) {
	o.key(key)
	id, rule := r.event.Rule[d], r.rules[d]
	if id == datapath.RuleNone {
		*o = append(*o, "null"...)
		return
	}
	o.open('{')
	o.key("id")
	*o = strconv.AppendUint(*o, uint64(id), 10)
	denied := r.denied(d)
	if rule == nil {
		o.goString("verdict", verdictName(denied), false)
		o.goString("kind", ruleUnknown, false)
		o.close('}')
		return
	}
	*o = m.again(*o, &m.forms(rule).extension[bit(denied)], 0, func(to []byte) []byte { return ruleForm(to, rule, denied) })
}

// ruleForm is what follows the id of a rule that has a name.
func ruleForm(to []byte, rule *policy.Rule, denied bool) []byte {
	o := text(append(to, `,"verdict":"`...))
	o = append(append(o, verdictName(denied)...), '"')
	o.goString("kind", rule.Kind, false)
	o.goString("namespace", rule.Namespace, true)
	o.goString("name", rule.Name, true)
	if rule.Kind == policy.KindNetworkPolicy {
		o.key("index")
		o = strconv.AppendInt(o, int64(rule.Index), 10)
	}
	if len(rule.IsolatedBy) > 0 {
		o.key("isolated_by")
		o.open('[')
		for _, by := range rule.IsolatedBy {
			o.separate()
			o.open('{')
			o.goString("kind", by.Kind, false)
			o.goString("namespace", by.Namespace, false)
			o.goString("name", by.Name, false)
			o.close('}')
		}
		o.close(']')
	}
	o.close('}')
	return o
}

func appendCount(o *text, key string, n [2]uint64) {
	o.object(key)
	o.key("sent")
	*o = strconv.AppendUint(*o, n[0], 10)
	o.key("received")
	*o = strconv.AppendUint(*o, n[1], 10)
	o.close('}')
}

func appendProcess(o *text, key string, p *datapath.Process) {
	if p == nil {
		return
	}
	o.object(key)
	o.key("pid")
	*o = strconv.AppendUint(*o, uint64(p.PID), 10)
	o.goString("name", p.Name, true)
	o.goString("executable", p.Executable, true)
	o.goString("container_id", p.ContainerID(), true)
	if p.Held {
		o.key("held")
		*o = append(*o, "true"...)
	}
	if !p.Start.IsZero() {
		o.key("start")
		*o = append(p.Start.AppendFormat(append(*o, '"'), time.RFC3339Nano), '"')
	}
	o.close('}')
}

func appendTCP(o *text, key string, t datapath.TCPEnd) {
	if !t.Known {
		return
	}
	o.object(key)
	o.float("rtt_seconds", t.RTT.Seconds())
	o.key("retransmits")
	*o = strconv.AppendUint(*o, t.Retransmits, 10)
	o.close('}')
}
