package packet

import (
	"math/rand"
	"testing"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

// TestScannedGroups asks rulesets of up to 256 ranges, names and whole protocols, whose
// order decides, for ports at their edges, and compares with State.Judge.
func TestScannedGroups(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	s := newScene(t, closed)
	asked, allowed := 0, 0
	for round := range 40 {
		id := uint32(100 + round)
		r := randomScan(random, 1+random.Intn(256))
		s.State.Rulesets[id] = r
		ep := s.State.Endpoints[s.b.Number]
		ep.Ingress = id
		s.State.Endpoints[s.b.Number] = ep
		s.Commit(t)
		for i := range 100 {
			g := r.Groups[random.Intn(len(r.Groups))]
			port := []uint16{g.Low, g.High, g.Low - 1, g.High + 1, uint16(random.Intn(1 << 16))}[random.Intn(5)]
			protocol, frame := datapath.TCP, tcp(s.a.Addr4, uint16(1024+100*round+i), s.b.Addr4, port, "S")
			if random.Intn(3) == 0 {
				protocol, frame = datapath.UDP, testnode.UDP(s.a.Addr4, uint16(1024+100*round+i), s.b.Addr4, port)
			}
			want, _, _ := s.State.Judge(id, datapath.Peer{Identity: idA, Endpoint: s.a.Number}, protocol, port)
			asked++
			if got := s.FromPod(t, s.a, frame).Verdict == testnode.Redirect; got != want {
				t.Fatalf("round %d, %d groups, protocol %d port %d: forwarded %v, want %v", round, len(r.Groups), protocol, port, got, want)
			}
			if want {
				allowed++
			}
		}
	}
	if allowed*10 < asked || allowed*10 > 9*asked {
		t.Errorf("%d of %d allowed: too much alike to tell anything", allowed, asked)
	}
}

// randomScan has n groups of ranges, few of which are for the one who asks.
func randomScan(random *rand.Rand, n int) datapath.Ruleset {
	r := datapath.Ruleset{Default: ruleDeny}
	for i := range n {
		low := uint16(random.Intn(1 << 16))
		high := low + uint16(random.Intn(min(1<<16-int(low), 1+random.Intn(3000))))
		g := datapath.PortGroup{Protocol: datapath.TCP, Low: low, High: max(high, low), Set: setB, Labels: true, Rules: []uint32{uint32(400 + i)}}
		if random.Intn(2) == 0 {
			g.Set = setA
		}
		switch random.Intn(12) {
		case 0:
			g.Protocol = datapath.UDP
		case 1:
			g.Low, g.High, g.PortName = 0, 65535, setB // the name of nobody's port
		case 2:
			g.Protocol, g.Low, g.High, g.Set = datapath.UDP, 0, 65535, setB
		}
		if g.Low == g.High {
			g.High = min(g.High, 65534) + 1
		}
		r.Groups = append(r.Groups, g)
	}
	return r
}
