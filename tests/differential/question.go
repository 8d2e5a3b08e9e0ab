package differential

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/randomcluster"
	"github.com/weirnet/weir/tests/testnode"
)

// question is a flow: may it begin, may it go on?
type question struct {
	tuple    policy.Tuple
	from, to randomcluster.Place
	port     uint16 // source port, or ICMP's id
	way      way
	key      bpf.WeirFlowKey
	side     int             // of from in key
	sent     *policy.Cluster // in force when its first packet went
}

// way is the hook that a flow's packets from its initiator come to.
type way int

const (
	fromPod   way = iota // as a pod sends them
	toPod                // from outside, or from the node
	toService            // from a pod, at the receiver's door: what from_pod left to the node's NAT
	toNetwork            // from a pod, at the uplink, likewise
)

func (w way) String() string { return [...]string{"from_pod", "to_pod", "to_pod", "to_network"}[w] }

func (r *rig) question(t policy.Tuple, from, to randomcluster.Place) *question {
	q := &question{tuple: t, from: from, to: to, port: r.freshPort()}
	switch {
	case from.Local == 0:
		q.way = toPod
	case to.Local != 0 && from.Local != to.Local && r.rand.Intn(4) == 0:
		q.way = toService
	case to.Local == 0 && !to.Node && r.rand.Intn(4) == 0:
		q.way = toNetwork
	}
	q.key, q.side = keyOf(q)
	return q
}

func keyOf(q *question) (bpf.WeirFlowKey, int) { return testnode.FlowKey(q.ends()) }

// reversed is the flow that a packet of the question's is an answer of.
func (q *question) reversed() *question {
	r := *q
	if randomcluster.HasPorts(q.tuple.Protocol) {
		r.port, r.tuple.Port = q.tuple.Port, q.port
	}
	r.tuple.From, r.tuple.To = q.tuple.To, q.tuple.From
	r.from, r.to = q.to, q.from
	r.way = fromPod
	if r.from.Local == 0 {
		r.way = toPod
	}
	r.key, r.side = keyOf(&r)
	return &r
}

func (q *question) icmp() bool {
	return q.tuple.Protocol == randomcluster.ICMP || q.tuple.Protocol == randomcluster.ICMPv6
}

func (q *question) ends() (from, to netip.AddrPort, protocol uint8) {
	sport, dport := q.port, q.tuple.Port
	if !q.icmp() && !randomcluster.HasPorts(q.tuple.Protocol) {
		sport = 0
	}
	return netip.AddrPortFrom(q.tuple.From.Addr, sport), netip.AddrPortFrom(q.tuple.To.Addr, dport), q.tuple.Protocol
}

func (q *question) String() string {
	from, to, protocol := q.ends()
	return fmt.Sprintf("%s %s to %s %s, protocol %d, at %s", q.from.Pod, from, q.to.Pod, to, protocol, q.way)
}

// packet is one of a flow's.
type packet struct {
	*question
	reply bool
	first bool   // there is no entry yet
	flags string // TCP: other than those that fit
}

// stray packets belong to flows and make none.
func (p packet) stray() bool { return p.first && p.flags != "" && p.flags != "A" }

// arrival is where a packet comes to a hook.
type arrival struct {
	hook             string
	ifindex, ingress int
	mark             uint16
}

// flow is its entry, of which a first packet has none.
func (r *rig) arrival(p packet, flow *bpf.WeirFlow) arrival {
	from, to, w := p.from, p.to, p.way
	if p.reply {
		from, to, w = p.to, p.from, fromPod
		if from.Local == 0 {
			w = toPod
		}
	}
	switch w {
	case toService:
		return arrival{"to_pod", r.ifindex(to), r.ifindex(from), uint16(from.Local)}
	case toNetwork:
		return arrival{"to_network", r.uplink, r.ifindex(from), uint16(from.Local)}
	case fromPod:
		return arrival{"from_pod", r.ifindex(from), r.ifindex(from), 0}
	}
	if from.Node {
		return arrival{"to_pod", r.ifindex(to), 0, 0}
	}
	pastStack := p.first && !p.reply && r.mayPassStack(p) || !p.first && flow.State&uint32(bpf.WeirFlowStateFLOW_PATH_NODES) != 0
	if p.reply && !p.first && r.rand.Intn(2) == 0 || pastStack && p.port%2 == 0 {
		return arrival{"from_network", r.uplink, r.uplink, 0} // enforces an entry that it hits, or makes one past the stack
	}
	return arrival{"to_pod", r.ifindex(to), r.uplink, 0}
}

// template is what frames have in common but for their ports.
type template struct {
	from, to netip.Addr
	protocol uint8
	flags    string
	reply    bool
}

// frame is good until the next call.
func (r *rig) frame(p packet) ([]byte, error) {
	from, to, _ := p.ends()
	t := template{from: from.Addr(), to: to.Addr(), protocol: p.tuple.Protocol, reply: p.reply}
	if p.reply {
		from, to = to, from
		t.from, t.to = t.to, t.from
	}
	if p.tuple.Protocol == datapath.TCP {
		t.flags = p.tcpFlags(r.rand.Intn(2) == 0)
	}
	b := r.templates[t]
	if b == nil {
		var err error
		if b, err = t.serialize(); err != nil {
			return nil, err
		}
		r.templates[t] = b
	}
	l4 := b[14+20:]
	if from.Addr().Is6() {
		l4 = b[14+40:]
	}
	if p.icmp() {
		binary.BigEndian.PutUint16(l4[4:], p.port)
	} else if randomcluster.HasPorts(p.tuple.Protocol) {
		binary.BigEndian.PutUint16(l4, from.Port())
		binary.BigEndian.PutUint16(l4[2:], to.Port())
	}
	return b, nil
}

func (p packet) tcpFlags(plain bool) string {
	switch {
	case p.flags != "":
		return p.flags
	case !p.first && plain:
		return "A"
	case p.reply:
		return "SA"
	}
	return "S"
}

func (t template) serialize() ([]byte, error) {
	f := testnode.Frame{Src: t.from.String(), Dst: t.to.String(), Protocol: layers.IPProtocol(t.protocol), Flags: t.flags, Payload: []byte("ping")}
	if t.protocol == randomcluster.ICMP || t.protocol == randomcluster.ICMPv6 {
		f = testnode.Echo(f.Src, f.Dst, 0, t.reply)
	}
	b, err := f.Serialize()
	return append([]byte(nil), b...), err
}
