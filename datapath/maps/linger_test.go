package maps

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weirnet/weir/datapath"
)

// Pods elsewhere that come and go share a grace; what may soon be staged again has its own at once.
func TestPodsElsewhereShareAGrace(t *testing.T) {
	waits := make(chan struct{}, 1000)
	k, err := open(pinMaps(t, nil), InForce, func() error { waits <- struct{}{}; return nil })
	must(t, err)
	defer k.Close()
	k.linger = time.Hour
	s := state()
	commitState(t, k, s)
	must(t, k.Settle())
	k.collectNow()
	k.background.Wait() // the first commit's
	for len(k.hurry) > 0 {
		<-k.hurry
	}
	for len(waits) > 0 {
		<-waits
	}
	change := func(address string, identity int) {
		next := *s
		x := prefix(address + "/32")
		next.Peers = peersOf()
		for p, peer := range s.Peers {
			next.Peers[p] = peer
		}
		if delete(next.Peers, x); identity != 0 {
			next.Peers[x] = peersOf(address, identity)[x]
		}
		s = &next
		_, err := k.CommitDelta(s, &datapath.Delta{Peers: []netip.Prefix{x}})
		must(t, err)
	}
	for i := range 100 {
		change(fmt.Sprintf("10.0.0.%d", i), 256)
		if i >= 10 {
			change(fmt.Sprintf("10.0.0.%d", i-10), 0)
		}
	}
	if n := len(waits); n > 0 {
		t.Errorf("190 commits of pods elsewhere: %d graces", n)
	}
	change("10.0.0.99", 257)
	k.background.Wait()
	if len(waits) == 0 || k.garbage() || len(k.peers.addresses.applied) != 10 {
		t.Errorf("a pod has another identity: %d graces, %d addresses are left of 10", len(waits), len(k.peers.addresses.applied))
	}
	change("10.0.0.99", 258)
}
