package packet

import (
	"math/rand"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

// TestWideGroups asks rulesets of up to 256 ranges, names and whole protocols, few over each
// other or most, for ports at their edges, and compares verdict and rule with State.Judge:
// those that are asked one by one, and those that masks find.
func TestWideGroups(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	w := newWide(t)
	for round := range 60 {
		n := 1 + random.Intn(datapath.WideMax)
		switch {
		case round == 0:
			n = datapath.WideMax
		case round%3 == 0:
			n = 1 + random.Intn(2*datapath.ScanMax)
		}
		id := uint32(100 + round)
		r := randomWide(random, n, round%2 == 0)
		w.State.Rulesets[id] = r
		w.Set(w.b, open, id)
		w.Commit(t)
		for range 100 {
			g := r.Groups[random.Intn(len(r.Groups))]
			w.ask(t, id, random.Intn(len(w.peers)), []uint8{datapath.TCP, datapath.TCP, datapath.UDP, datapath.SCTP, 47, 0}[random.Intn(6)],
				[]uint16{g.Low, g.High, g.Low - 1, g.High + 1, 80, uint16(random.Intn(1 << 16))}[random.Intn(6)])
		}
		if t.Failed() {
			t.Fatalf("round %d, %d groups", round, len(r.Groups))
		}
	}
	if w.allowed*10 < w.asked || w.allowed*10 > 9*w.asked {
		t.Errorf("%d of %d allowed: too much alike to tell anything", w.allowed, w.asked)
	}
}

// wide is a scene whose b is asked by peers of all kinds.
type wide struct {
	*scene
	tables         *testnode.Tables
	peers          []asker
	port           uint16
	asked, allowed int
}

type asker struct {
	addr string
	peer datapath.Peer
	pod  *testnode.Pod // nil: outside
}

const (
	setBoth = 20 // pods and blocks, two members
	setName = 30 // and the next two: names of ports
)

func newWide(t *testing.T) *wide {
	t.Helper()
	w := &wide{scene: newScene(t, closed), port: 1023}
	w.State.Facts[datapath.Fact{Set: setBoth, Identity: idA}] = 1
	w.State.Facts[datapath.Fact{Set: setBoth, Identity: blockIn}] = 0
	for i := range uint32(2) { // a's ports; the third name is nobody's
		w.State.Facts[datapath.Fact{Set: setName + i, Identity: idA, Protocol: datapath.TCP, Port: 80 + uint16(i)}] = 0
		w.State.Facts[datapath.Fact{Set: setName + i, Identity: idA, Protocol: datapath.UDP, Port: 80}] = 0
	}
	w.peers = []asker{
		{w.a.Addr4, datapath.Peer{Identity: idA, Endpoint: w.a.Number}, &w.a},
		{w.c.Addr4, datapath.Peer{Identity: idC, Endpoint: w.c.Number}, &w.c},
		{outside, w.State.Peers[prefix("203.0.113.0/24")], nil},
		{"203.0.113.13", w.State.Peers[prefix("203.0.113.13/32")], nil},
	}
	var err error
	if w.tables, err = w.Tables(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.tables.Close() })
	return w
}

// ask sends the first packet of a flow and compares what becomes of it.
func (w *wide) ask(t *testing.T, ruleset uint32, who int, protocol uint8, port uint16) {
	t.Helper()
	p := w.peers[who]
	w.port++
	f := testnode.Frame{Src: p.addr, Dst: w.b.Addr4, Protocol: layers.IPProtocol(protocol), Sport: w.port, Dport: port, Flags: "S", Payload: []byte("x")}
	sport := w.port
	if protocol == 47 || protocol == 0 {
		port, sport = 0, 0
	}
	var got testnode.Result
	if p.pod != nil {
		got = w.FromPod(t, *p.pod, f)
	} else {
		got = w.ToPod(t, w.b, f, w.uplink, 0)
	}
	want, rule, _ := w.State.Judge(ruleset, p.peer, protocol, port)
	w.asked++
	if forwarded := got.Verdict != testnode.Drop; forwarded != want {
		t.Errorf("from %s, protocol %d port %d: forwarded %v, want %v", p.addr, protocol, port, forwarded, want)
		return
	}
	if !want {
		return
	}
	w.allowed++
	key, _ := testnode.FlowKey(netip.AddrPortFrom(mustAddr(p.addr), sport), netip.AddrPortFrom(mustAddr(w.b.Addr4), port), protocol)
	var flow bpf.WeirFlow
	if ok, err := w.tables.Flow(&key, &flow); err != nil || !ok || flow.Rule[datapath.Ingress] != rule {
		t.Errorf("from %s, protocol %d port %d: allowed by rule %d, want %d (%v, %v)", p.addr, protocol, port, flow.Rule[datapath.Ingress], rule, ok, err)
	}
}

// randomWide has n groups of ranges, few of which are for those who ask; over each other if
// they are to be.
func randomWide(random *rand.Rand, n int, over bool) datapath.Ruleset {
	r := datapath.Ruleset{Default: ruleDeny}
	longest := 3000
	if over {
		longest = 1 << 16
	}
	for i := range n {
		low := uint16(random.Intn(1<<16 - 1))
		high := low + 1 + uint16(random.Intn(min(1<<16-1-int(low), longest)))
		g := datapath.PortGroup{Protocol: datapath.TCP, Low: low, High: high, Set: setB, Labels: true, Rules: []uint32{uint32(400 + 2*i), uint32(401 + 2*i)}}
		if !over || random.Intn(20) == 0 {
			g.Set = []uint32{setA, setB, setWorld, setBoth}[random.Intn(4)]
			g.Labels, g.Blocks = g.Set != setWorld, g.Set == setWorld || g.Set == setBoth
		}
		switch random.Intn(12) {
		case 0, 1:
			g.Protocol = datapath.UDP
		case 2:
			g.Protocol = datapath.SCTP
		case 3:
			g.Low, g.High, g.PortName = 0, 65535, setName+uint32(random.Intn(3))
		case 4:
			g.Low, g.High = 0, 65535
		case 5:
			g.AllPods = random.Intn(8) == 0
		case 6:
			g.AnyPeer = random.Intn(8) == 0
		case 7:
			if random.Intn(30) == 0 {
				g.Protocol, g.Low, g.High = datapath.Any, 0, 65535
			}
		}
		r.Groups = append(r.Groups, g)
	}
	return r
}
