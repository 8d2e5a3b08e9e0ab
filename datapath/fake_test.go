package datapath

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/identity"
)

func TestTextIsDeterministicAndWhole(t *testing.T) {
	s := &State{
		Endpoints: map[uint32]Endpoint{
			2: {Ifindex: 8, MAC: [6]byte{2, 0, 0, 0, 0, 2}, Addr6: netip.MustParseAddr("fd00::2"), Egress: 1, Ingress: 1, NoRedirect: true, NetnsCookie: 5},
			1: {Ifindex: 7, MAC: [6]byte{2, 0, 0, 0, 0, 1}, Addr4: netip.MustParseAddr("10.0.0.1"), Egress: 1, Ingress: 2},
		},
		Peers: map[netip.Prefix]Peer{
			netip.MustParsePrefix("10.0.0.1/32"): {Identity: 256, Endpoint: 1},
			netip.MustParsePrefix("10.0.0.0/8"):  {Identity: identity.World, Block: identity.Block + 3},
		},
		Facts: map[Fact]uint32{{Set: 3, Identity: 256}: 0, {Set: 4, Identity: 256, Protocol: TCP, Port: 80}: 0},
		Rulesets: map[uint32]Ruleset{
			2: {Default: 300, Groups: []PortGroup{
				{Protocol: TCP, Low: 80, High: 80, Set: 3, Labels: true, Rules: []uint32{301, 302}},
				{Protocol: UDP, Low: 1, High: 9, AnyPeer: true, Rules: []uint32{303}},
				{Protocol: TCP, High: 65535, PortName: 4, AllPods: true, Rules: []uint32{304}},
				{High: 65535, Set: 3, Blocks: true, Rules: []uint32{305}},
			}},
			1: {Default: RuleNotIsolated, Allow: true},
		},
		Frontends: map[Frontend]struct{}{{Addr: netip.MustParseAddr("10.96.0.10"), Protocol: UDP, Port: 53}: {}},
		Origins: map[netip.Prefix]Origin{
			netip.MustParsePrefix("192.0.2.2/32"): {Node: 7, Address: true}, netip.MustParsePrefix("10.0.2.0/24"): {Node: 7},
		},
		Ways: map[WayKey]Way{
			{Node: 7, V6: true}: {Ifindex: 3, MTU: 1450, Addr: netip.MustParseAddr("192.0.2.2"), Tunnel: true},
			{Node: 7}:           {Ifindex: 3, MTU: 1500, Addr: netip.MustParseAddr("192.0.2.2")},
		},
	}
	const want = `endpoint 1 ifindex 7 mac 02:00:00:00:00:01 addr 10.0.0.1 egress 1 ingress 2
endpoint 2 ifindex 8 mac 02:00:00:00:00:02 addr fd00::2 netns 5 no redirect egress 1 ingress 1
peer 10.0.0.0/8 identity 2 block block:3
peer 10.0.0.1/32 identity 256 endpoint 1
fact set 3 identity 256 = 0
fact set 4 identity 256 tcp/80 = 0
ruleset 1 default allow rule 3
ruleset 2 default deny rule 300
  tcp/80 set 3 labels rules 301 302
  udp/1-9 any peer rules 303
  tcp/name 4 all pods rules 304
  any set 3 blocks rules 305
frontend 10.96.0.10 udp/53
origin 10.0.2.0/24 pods of node 7
origin 192.0.2.2/32 address of node 7
way to node 7 (IPv4) via 192.0.2.2 dev 3 mtu 1500
way to node 7 (IPv6) by tunnel to 192.0.2.2 dev 3 mtu 1450
`
	var f Fake
	if _, err := f.Commit(s); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if got := f.Text(); got != want {
			t.Fatalf("text is\n%s\nwant\n%s", got, want)
		}
	}
}

func TestFakeMovesTheEpochAsTheKernelDoes(t *testing.T) {
	var f Fake
	peers := func(pairs ...string) *State {
		s := &State{Peers: map[netip.Prefix]Peer{}}
		for _, x := range pairs {
			s.Peers[netip.MustParsePrefix(x)] = Peer{Identity: 256}
		}
		return s
	}
	for i, step := range []struct {
		s    *State
		want uint64
	}{
		{peers("10.0.0.0/8"), 1}, {peers("10.0.0.0/8"), 1}, {peers("10.0.0.0/8", "10.0.0.1/32"), 1},
		{peers("10.0.0.0/8"), 2}, {peers("10.0.0.0/8", "10.1.0.0/16"), 3},
	} {
		if got, err := f.Commit(step.s); err != nil || got != step.want {
			t.Errorf("step %d: epoch %d, %v, want %d", i, got, err, step.want)
		}
	}
	f.SetCommitErr(errors.New("map facts is full"))
	if got, err := f.Commit(peers()); err == nil || got != 3 || len(f.State().Peers) != 2 {
		t.Errorf("a failing commit: epoch %d, error %v, %d peers", got, err, len(f.State().Peers))
	}
}

func TestFakeTakesNoDeltaThatLacksWays(t *testing.T) {
	var f Fake
	if _, err := f.Commit(&State{}); err != nil {
		t.Fatal(err)
	}
	s := &State{Ways: map[WayKey]Way{{Node: 7}: {Ifindex: 3, Addr: netip.MustParseAddr("192.0.2.2")}}}
	if _, err := f.CommitDelta(s, &Delta{}); err == nil {
		t.Error("a delta that lacks ways was taken")
	}
	if _, err := f.CommitDelta(s, &Delta{Ways: true}); err != nil || len(f.State().Ways) != 1 {
		t.Errorf("%d ways, %v", len(f.State().Ways), err)
	}
}
