package flowlog

import (
	"net/netip"
	"time"
	"unicode/utf8"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// AppendMessage adds r to to as proto.Marshal does its message, to the byte, without making the
// message: most of what a follower costs would be that, reflection on it, and the garbage.
func (m *Encoder) AppendMessage(to []byte, r *Record) ([]byte, error) {
	if r.lost > 0 {
		return proto.MarshalOptions{Deterministic: true}.MarshalAppend(to, m.log.response(r))
	}
	o := wire(to)
	o.string(1000, m.log.opts.Node)
	o.time(1001, r.event.Time)
	flow := o.open(1, 2) // what is one of several comes last
	m.wireFlow(&o, r)
	o.close(flow)
	return o, nil
}

// wireFlow is flow in the order of its fields' numbers.
func (m *Encoder) wireFlow(o *wire, r *record) {
	e := &r.event
	o.time(1, e.Time)
	o.number(2, uint64(verdict(e.Dropped)))
	if r.suppressed > 0 {
		o.close(o.open(5, 1))
	} else if v := ipVersion(e); v != flowpb.IPVersion_IP_NOT_USED {
		at := o.open(5, 1)
		o.address(1, e.Source.Addr())
		o.address(2, e.Destination.Addr())
		o.number(3, uint64(v))
		o.close(at)
	}
	wireLayer4(o, r)
	wireEnd(o, 8, r, source)
	wireEnd(o, 9, r, destination)
	o.number(10, uint64(flowpb.FlowType_L3_L4))
	o.string(11, m.log.opts.Node)
	wireNodeName(o, 13, r.parties[source])
	wireNodeName(o, 14, r.parties[destination])
	at := o.open(19, 1)
	kind, sub := eventType(e)
	o.number(1, uint64(kind))
	o.number(2, uint64(sub))
	o.close(at)
	wireService(o, 20, r.services[source])
	wireService(o, 21, r.services[destination])
	o.number(22, uint64(hubbleDirection(r.direction())))
	if e.Dropped {
		o.number(25, uint64(dropReason(e)))
	} else {
		o.number(24, uint64(observationPoint(e)))
	}
	o.close(o.open(26, 1)) // no reply, but said to be none
	if e.Ifindex != 0 {
		at := o.open(28, 1)
		o.number(1, uint64(e.Ifindex))
		o.string(2, r.ifname)
		o.close(at)
	}
	o.tag(34, protowire.BytesType)
	*o = append(*o, uuidSize)
	*o = r.appendUUID(*o, m.log.opts.Node)
	if !e.Dropped {
		o.number(36, uint64(traceReason(e)))
	}
	*o = append(*o, m.log.emitter...)
	m.wirePolicies(o, 21001, r, datapath.Egress, false)
	m.wirePolicies(o, 21002, r, datapath.Ingress, false)
	m.wirePolicies(o, 21004, r, datapath.Egress, true)
	m.wirePolicies(o, 21005, r, datapath.Ingress, true)
	at = o.open(100000, 1)
	*o = appendSummary(*o, r)
	o.close(at)
	at = o.open(150000, 2)
	o.string(1, extensionType)
	value := o.open(2, 2)
	text := o.open(1, 2)
	*o = m.appendExtension(*o, r)
	o.close(text)
	o.close(value)
	o.close(at)
}

// wireEmitter is the same in all messages.
func wireEmitter(version string) []byte {
	var o wire
	at := o.open(41, 1)
	o.string(1, emitterName)
	o.string(2, version)
	o.close(at)
	return o
}

// wireFlags are the field of a TCP's TCPFlags, by the flags' byte.
var wireFlags = func() (forms [256]string) {
	for b := range forms {
		var o wire
		at := o.open(3, 1)
		for i := range tcpFlagNames {
			o.number(protowire.Number(i+1), uint64(b>>i&1))
		}
		o.close(at)
		forms[b] = string(o)
	}
	return forms
}()

func wireLayer4(o *wire, r *record) {
	e := &r.event
	field := protowire.Number(0)
	switch {
	case r.suppressed > 0:
	case e.Protocol == datapath.TCP:
		field = 1
	case e.Protocol == datapath.UDP:
		field = 2
	case e.Protocol == protocolICMPv4:
		field = 3
	case e.Protocol == protocolICMPv6:
		field = 4
	case e.Protocol == datapath.SCTP:
		field = 5
	}
	if field == 0 {
		return
	}
	l4 := o.open(6, 1)
	at := o.open(field, 1)
	if hasPorts(e.Protocol) {
		o.number(1, uint64(e.Source.Port()))
		o.number(2, uint64(e.Destination.Port()))
	} else {
		o.number(1, uint64(e.ICMPType))
		o.number(2, uint64(e.ICMPCode))
	}
	if e.Protocol == datapath.TCP {
		*o = append(*o, wireFlags[uint8(e.TCPFlags)]...)
	}
	o.close(at)
	o.close(l4)
}

func wireEnd(o *wire, field protowire.Number, r *record, end int) {
	if !r.hasEnd(end) {
		return
	}
	at := o.open(field, 2)
	o.number(1, uint64(r.event.Endpoint[end]))
	o.number(2, uint64(r.event.Identity[end]))
	if party := r.parties[end]; party.IsPod() {
		*o = append(*o, party.wireForm()...)
	} else {
		for _, label := range r.labels(end) {
			o.bytes(4, label)
		}
	}
	o.close(at)
}

// wirePod is what a pod's Endpoints have in common.
func wirePod(p *Party) []byte {
	var o wire
	o.string(3, p.Namespace)
	for _, label := range p.hubbleLabels() {
		o.bytes(4, label)
	}
	o.string(5, p.Name)
	if w := p.Workload; w.Name != "" {
		at := o.open(6, 1)
		o.string(1, w.Name)
		o.string(2, w.Kind)
		o.close(at)
	}
	o.string(7, clusterName)
	return o
}

func wireNodeName(o *wire, field protowire.Number, p *Party) {
	if isNode(p) {
		o.string(field, p.Name)
	}
}

func wireService(o *wire, field protowire.Number, s *Ref) {
	if s == nil {
		return
	}
	at := o.open(field, 1)
	o.string(1, s.Name)
	o.string(2, s.Namespace)
	o.close(at)
}

// wirePolicies are setPolicies' of one direction.
func (m *Encoder) wirePolicies(o *wire, field protowire.Number, r *record, d datapath.Direction, denied bool) {
	if !r.decides(d, denied) {
		return
	}
	rule := r.rules[d]
	*o = m.again(*o, &m.forms(rule).wire[d][bit(denied)], r.event.Epoch, func(to []byte) []byte {
		o := wire(to)
		if rule.Name != "" {
			wirePolicy(&o, field, policy.Ref{Kind: rule.Kind, Namespace: rule.Namespace, Name: rule.Name}, rule.UID, r.event.Epoch)
			return o
		}
		for _, by := range rule.IsolatedBy {
			wirePolicy(&o, field, by, "", r.event.Epoch)
		}
		return o
	})
}

func wirePolicy(o *wire, field protowire.Number, p policy.Ref, uid string, epoch uint64) {
	at := o.open(field, 2)
	o.string(1, p.Name)
	o.string(2, p.Namespace)
	for _, label := range policyLabels(p, uid) {
		if label.key == "" {
			continue
		}
		l := o.open(3, 1)
		*o = append(append(*o, labelPolicy...), label.key...)
		*o = append(*o, valid(label.value)...)
		o.close(l)
	}
	o.number(4, epoch)
	o.string(5, p.Kind)
	o.close(at)
}

// wire is a protobuf message on its way. Its methods leave out a value that is zero, as proto3
// does for what is neither repeated nor one of several.
type wire []byte

func (o *wire) tag(field protowire.Number, kind protowire.Type) {
	switch n := uint32(field)<<3 | uint32(kind); {
	case n < 1<<7:
		*o = append(*o, byte(n))
	case n < 1<<14:
		*o = append(*o, byte(n)|0x80, byte(n>>7))
	default:
		*o = protowire.AppendVarint(*o, uint64(n))
	}
}

// opened is where a message within the message began, and how much room its length has there.
type opened struct{ start, room int }

// open begins one, whose length takes so many bytes if all is as it mostly is.
func (o *wire) open(field protowire.Number, room int) opened {
	o.tag(field, protowire.BytesType)
	for range room {
		*o = append(*o, 0)
	}
	return opened{len(*o), room}
}

func (o *wire) close(at opened) {
	b := *o
	n := len(b) - at.start
	if n < 1<<7 && at.room == 1 {
		b[at.start-1] = byte(n)
		return
	}
	if size := protowire.SizeVarint(uint64(n)); size != at.room {
		for range max(0, size-at.room) {
			b = append(b, 0)
		}
		start := at.start + size - at.room
		copy(b[start:start+n], b[at.start:at.start+n])
		b = b[:start+n]
	}
	protowire.AppendVarint(b[:at.start-at.room], uint64(n))
	*o = b
}

func (o *wire) number(field protowire.Number, n uint64) {
	if n != 0 {
		o.tag(field, protowire.VarintType)
		o.varint(n)
	}
}

func (o *wire) string(field protowire.Number, s string) {
	if s != "" {
		o.bytes(field, s)
	}
}

func (o *wire) varint(n uint64) {
	if n < 1<<7 {
		*o = append(*o, byte(n))
		return
	}
	*o = protowire.AppendVarint(*o, n)
}

// bytes is a string that is there even if it is empty.
func (o *wire) bytes(field protowire.Number, s string) {
	o.tag(field, protowire.BytesType)
	s = valid(s)
	o.varint(uint64(len(s)))
	*o = append(*o, s...)
}

// valid is s; bytes that are no UTF-8, over which proto.Marshal fails, are U+FFFD.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

func (o *wire) address(field protowire.Number, a netip.Addr) {
	at := o.open(field, 1)
	*o = appendAddr(*o, a)
	o.close(at)
}

func (o *wire) time(field protowire.Number, t time.Time) {
	at := o.open(field, 1)
	o.number(1, uint64(t.Unix()))
	o.number(2, uint64(t.Nanosecond()))
	o.close(at)
}
