// Package packet judges single frames by the real programs on real maps: every promise
// about a packet's verdict that one packet, or a few, can show.
package packet

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/testnode"
)

// Rulesets of the scene.
const (
	open      = 1 // not isolated
	closed    = 2 // isolated, nothing allowed
	fromA80   = 3 // TCP 80 from a's identity
	toWorld   = 4 // any protocol to 203.0.113.0/24 except .13
	fromAUDP  = 5 // UDP 53 from a
	fromAAny  = 6 // anything from a
	toB       = 7 // anything to b
	ruleDeny  = 300
	ruleA80   = 301
	ruleWorld = 302
	ruleAUDP  = 303
	ruleAAny  = 304
	ruleToB   = 305
	setA      = 10
	setWorld  = 11
	setB      = 12
	idA       = identity.Number(1001)
	idB       = identity.Number(1002)
	idC       = identity.Number(1003)
	blockIn   = identity.Block | 1
	blockOut  = identity.Block | 2
	outside   = "203.0.113.9"
	nodeAddr  = "192.0.2.1"
)

// scene is a node with three pods of both families. a and c are not isolated unless a test
// says so; b begins with the ruleset given.
type scene struct {
	*testnode.Node
	a, b, c testnode.Pod
	uplink  int
}

func newScene(t *testing.T, bIngress uint32) *scene {
	return newSceneWith(t, bIngress, loader.Config{})
}

func newSceneWith(t *testing.T, bIngress uint32, cfg loader.Config) *scene {
	t.Helper()
	s := &scene{Node: testnode.New(t, cfg)}
	s.State.Rulesets = rulesets()
	for f := range facts() {
		s.State.Facts[f] = 0
	}
	peer := func(prefix string, p datapath.Peer) { s.State.Peers[netip.MustParsePrefix(prefix)] = p }
	peer("10.0.0.0/16", datapath.Peer{Identity: identity.Unmanaged})
	peer("fd00::/64", datapath.Peer{Identity: identity.Unmanaged})
	peer("203.0.113.0/24", datapath.Peer{Identity: identity.World, Block: blockIn})
	peer("203.0.113.13/32", datapath.Peer{Identity: identity.World, Block: blockOut})
	peer(nodeAddr+"/32", datapath.Peer{Identity: identity.Host})
	s.a = s.AddPod(t, "10.0.0.1", "fd00::1", idA, open, open)
	s.b = s.AddPod(t, "10.0.0.2", "fd00::2", idB, open, bIngress)
	s.c = s.AddPod(t, "10.0.0.3", "fd00::3", idC, open, open)
	s.uplink = s.AddDevice(t, "uplink")
	s.Commit(t)
	return s
}

func rulesets() map[uint32]datapath.Ruleset {
	group := func(g datapath.PortGroup) datapath.Ruleset {
		return datapath.Ruleset{Default: ruleDeny, Groups: []datapath.PortGroup{g}}
	}
	any := func(g datapath.PortGroup) datapath.Ruleset {
		g.Protocol, g.Low, g.High = datapath.Any, 0, 65535
		return group(g)
	}
	return map[uint32]datapath.Ruleset{
		open:     {Default: datapath.RuleNotIsolated, Allow: true},
		closed:   {Default: ruleDeny},
		fromA80:  group(datapath.PortGroup{Protocol: datapath.TCP, Low: 80, High: 80, Set: setA, Labels: true, Rules: []uint32{ruleA80}}),
		fromAUDP: group(datapath.PortGroup{Protocol: datapath.UDP, Low: 53, High: 53, Set: setA, Labels: true, Rules: []uint32{ruleAUDP}}),
		fromAAny: any(datapath.PortGroup{Set: setA, Labels: true, Rules: []uint32{ruleAAny}}),
		toB:      any(datapath.PortGroup{Set: setB, Labels: true, Rules: []uint32{ruleToB}}),
		toWorld:  any(datapath.PortGroup{Set: setWorld, Blocks: true, Rules: []uint32{ruleWorld}}),
	}
}

func facts() map[datapath.Fact]bool {
	return map[datapath.Fact]bool{
		{Set: setA, Identity: idA}:         true,
		{Set: setB, Identity: idB}:         true,
		{Set: setWorld, Identity: blockIn}: true,
	}
}

// expect runs f and holds the verdict and, for a drop, that exactly its reason was counted.
func (s *scene) expect(t *testing.T, what string, want outcome, f func() testnode.Result) testnode.Result {
	t.Helper()
	before := s.Drops(t)
	got := f()
	if got.Verdict != want.verdict {
		t.Errorf("%s: verdict %d, want %d (drops: %v)", what, got.Verdict, want.verdict, diff(before, s.Drops(t)))
		return got
	}
	d := diff(before, s.Drops(t))
	if want.verdict != testnode.Drop {
		if len(d) != 0 {
			t.Errorf("%s: passed and counted as dropped: %v", what, d)
		}
		return got
	}
	if len(d) != 1 || d[want.reason] != 1 {
		t.Errorf("%s: dropped for %v, want one %v", what, d, want.reason)
	}
	return got
}

type outcome struct {
	verdict int
	reason  datapath.Reason
}

var (
	redirected = outcome{verdict: testnode.Redirect}
	next       = outcome{verdict: testnode.Next}
)

func dropped(r bpf.WeirDropReason) outcome {
	return outcome{verdict: testnode.Drop, reason: datapath.Reason(r)}
}

func diff(a, b map[datapath.Reason]uint64) map[datapath.Reason]uint64 {
	out := map[datapath.Reason]uint64{}
	for r, n := range b {
		if n != a[r] {
			out[r] = n - a[r]
		}
	}
	return out
}

func (s *scene) from(t *testing.T, what string, p testnode.Pod, f testnode.Frame, want outcome) testnode.Result {
	t.Helper()
	return s.expect(t, what, want, func() testnode.Result { return s.FromPod(t, p, f) })
}

// to hands f to p's to_pod. ingress: 0 the node, s.uplink the outside; mark: our bits.
func (s *scene) to(t *testing.T, what string, p testnode.Pod, f testnode.Frame, ingress int, mark uint16, want outcome) testnode.Result {
	t.Helper()
	return s.expect(t, what, want, func() testnode.Result { return s.ToPod(t, p, f, ingress, mark) })
}

func (s *scene) network(t *testing.T, what, hook string, f testnode.Frame, ingress int, mark uint16, want outcome) testnode.Result {
	t.Helper()
	return s.expect(t, what, want, func() testnode.Result {
		return s.Run(t, hook, f.Bytes(t), s.uplink, ingress, mark)
	})
}
