package maps

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

var universe = []string{
	"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.4/30", "10.1.2.5/32", "10.1.2.6/32", "10.9.0.1/32",
	"::/0", "fd00::/8", "fd00:1::/32", "fd00:1::5/128", "::ffff:0:0/96",
}

var probes = []string{
	"10.1.2.5", "10.1.2.6", "10.1.2.7", "10.1.2.200", "10.1.9.9", "10.9.0.1", "11.0.0.1", "fd00:1::5", "fd00:1::6", "fd00:2::1", "2001:db8::1",
}

func randomPeers(r *rand.Rand) *datapath.State {
	s := state()
	for i, x := range universe {
		if r.IntN(2) == 0 {
			p := datapath.Peer{Identity: identity.Number(256 + r.IntN(4))}
			if r.IntN(3) == 0 {
				p.Block = identity.Block + identity.Number(r.IntN(2))
			}
			prefix := netip.MustParsePrefix(x)
			if prefix.IsSingleIP() && r.IntN(2) == 0 {
				p.Endpoint = uint32(i)
			}
			s.Peers[prefix] = p
		}
	}
	return s
}

type view map[string]meaning

func viewAt(t testing.TB, k *Kernel, epoch uint64) view {
	v := view{}
	for _, a := range probes {
		v[a] = lookup(t, k, netip.MustParseAddr(a), epoch)
	}
	return v
}

// checkView compares words (the endpoint beside them is not under the epoch).
func checkView(t testing.TB, what string, got, want view, endpoints bool) {
	t.Helper()
	for _, a := range probes {
		if got[a].word != want[a].word || endpoints && got[a].endpoint != want[a].endpoint {
			t.Fatalf("%s: %s is %+v, want %+v", what, a, got[a], want[a])
		}
	}
}

func viewOf(s *datapath.State) view {
	v := view{}
	for _, a := range probes {
		v[a] = expected(s, netip.MustParseAddr(a))
	}
	return v
}

// From a reader's point of view: one that read the old epoch sees the old state whole
// until the grace, one that reads the new epoch the new state, whatever prefixes and
// addresses come and go, with settling in between or without, and when writes fail.
func TestPeersChangeInOneEpoch(t *testing.T) {
	dir := pinMaps(t, nil)
	k, failed := openQuiet(t, dir), 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		before, old := k.Epoch(), viewAt(t, k, k.Epoch())
		s := randomPeers(r)
		what := fmt.Sprintf("round %d", seed)
		if r.IntN(4) == 0 {
			if failingCommit(t, k, s, r) {
				failed++
				checkView(t, what+", after a failed commit", viewAt(t, k, before), old, true)
				// Programs forget what they saw meanwhile by an epoch that says the same.
				checkView(t, what+", in the epoch after", viewAt(t, k, k.Epoch()), old, true)
				if k.Epoch() > before+1 {
					t.Fatalf("%s: a failed commit moved the epoch from %d to %d", what, before, k.Epoch())
				}
			}
			before, old = k.Epoch(), viewAt(t, k, k.Epoch())
			if r.IntN(2) == 0 {
				s = randomPeers(r)
			}
		}
		epoch := commitState(t, k, s)
		if epoch != before && epoch != before+1 {
			t.Fatalf("%s: epoch went from %d to %d", what, before, epoch)
		}
		if epoch > before {
			checkView(t, what+", old epoch", viewAt(t, k, before), old, false)
		}
		checkView(t, what+", new epoch", viewAt(t, k, epoch), viewOf(s), true)
		if r.IntN(2) == 0 {
			must(t, k.Settle())
			checkView(t, what+", settled", viewAt(t, k, epoch), viewOf(s), true)
			if got := len(k.peers.addresses.applied) + len(k.peers.prefixes.applied); got != len(s.Peers) {
				t.Fatalf("%s: %d keys after settling, want %d", what, got, len(s.Peers))
			}
		}
		if r.IntN(10) == 0 {
			must(t, k.Close())
			k = openQuiet(t, dir)
			checkView(t, what+", opened again", viewAt(t, k, epoch), viewOf(s), true)
		}
	}
	if failed < 20 {
		t.Errorf("only %d commits failed: this tests too little", failed)
	}
}

// failingCommit commits s with a map that cannot be written; false when s needed nothing of it.
func failingCommit(t testing.TB, k *Kernel, s *datapath.State, r *rand.Rand) bool {
	t.Helper()
	at := &k.peers.addresses.m
	if r.IntN(2) == 0 {
		at = &k.peers.prefixes.m
	}
	good := *at
	bad, err := good.Clone()
	must(t, err)
	must(t, bad.Close())
	*at = bad
	_, err = k.Commit(s)
	*at = good
	return err != nil
}

// A refusal is remembered by its address, a flow by what it was when it was judged: the epoch makes
// both be judged again by who the address is now.
func TestAddedAddressMovesTheEpoch(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	s := state()
	s.Peers = peersOf("10.0.0.0/8", 4)
	first := commitState(t, k, s)
	s = state()
	s.Peers = peersOf("10.0.0.0/8", 4, "10.0.0.7", 300)
	if epoch := commitState(t, k, s); epoch != first+1 {
		t.Errorf("epoch %d after adding an address, want %d", epoch, first+1)
	}
	if got := lookup(t, k, netip.MustParseAddr("10.0.0.7"), first+1); got.word != 300 {
		t.Errorf("added address is %+v, want 300", got)
	}
	s = state()
	s.Peers = peersOf("10.0.0.0/8", 4)
	if epoch := commitState(t, k, s); epoch != first+2 {
		t.Errorf("epoch %d after removing an address, want %d", epoch, first+2)
	}
	if again := commitState(t, k, s); again != first+2 {
		t.Errorf("epoch %d after a commit of the same, want %d", again, first+2)
	}
}

// A new prefix that says what its covering one says changes nothing.
func TestEqualPrefixNeedsNoEpoch(t *testing.T) {
	k := openQuiet(t, pinMaps(t, nil))
	s := state()
	s.Peers = peersOf("10.0.0.0/8", 4)
	first := commitState(t, k, s)
	s = state()
	s.Peers = peersOf("10.0.0.0/8", 4, "10.1.0.0/16", 4)
	if epoch := commitState(t, k, s); epoch != first {
		t.Errorf("epoch %d, want %d", epoch, first)
	}
}

// Readers that run while commits come one after another see one state each. Here the
// grace waits for them, as the kernel's waits for programs.
func TestReadersSeeOneEpoch(t *testing.T) {
	var running sync.RWMutex
	k, err := open(pinMaps(t, nil), InForce, func() error {
		running.Lock()
		defer running.Unlock()
		return nil
	})
	must(t, err)
	defer k.Close()
	var want sync.Map // epoch -> view
	s := randomPeers(rand.New(rand.NewPCG(1, 1)))
	want.Store(commitState(t, k, s), viewOf(s))
	var stop atomic.Bool
	var reads atomic.Uint64
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for !stop.Load() && !t.Failed() {
				running.RLock()
				epoch := k.Epoch()
				got := viewAt(t, k, epoch)
				running.RUnlock()
				v, ok := want.Load(epoch)
				if !ok {
					t.Errorf("epoch %d was never announced", epoch)
					return
				}
				for _, a := range probes {
					if w := v.(view)[a]; got[a].word != w.word {
						t.Errorf("epoch %d: %s is %+v, want %+v", epoch, a, got[a], w)
						return
					}
				}
				reads.Add(1)
			}
		})
	}
	r := rand.New(rand.NewPCG(2, 2))
	for i := 0; i < 3000 && !t.Failed(); i++ {
		s := randomPeers(r)
		s.Frontends[datapath.Frontend{Addr: netip.IPv4Unspecified(), Port: uint16(i + 1), Protocol: datapath.TCP}] = struct{}{} // always a new epoch
		want.Store(k.Epoch()+1, viewOf(s))
		commitState(t, k, s)
	}
	stop.Store(true)
	readers.Wait()
	if reads.Load() == 0 {
		t.Error("nothing was read")
	}
}

// An agent that died between staging and its epoch: the next one forgets what was staged,
// so that the epoch, when another commit brings it, brings nothing else.
func TestStagedButNeverCommitted(t *testing.T) {
	dir := pinMaps(t, nil)
	k := openQuiet(t, dir)
	s := state()
	s.Peers = peersOf("10.0.0.1", 256, "10.0.0.2", 257)
	s.Endpoints[1] = datapath.Endpoint{Ifindex: 7, Egress: 1, Ingress: 1}
	epoch := commitState(t, k, s)
	i, _ := k.peers.index(netip.MustParsePrefix("10.0.0.1/32"))
	slots{k.peers.memory.at(i)}.stage(epoch, 666, epoch+1)
	slots{k.endpoints.memory.at(1)}.stage(epoch, 667, epoch+1)
	must(t, k.Close())

	k = openQuiet(t, dir)
	s.Peers = peersOf("10.0.0.1", 256, "10.0.0.2", 258)
	if next := commitState(t, k, s); next != epoch+1 {
		t.Fatalf("epoch %d, want %d", next, epoch+1)
	}
	if got := lookup(t, k, netip.MustParseAddr("10.0.0.1"), epoch+1); got.word != 256 {
		t.Errorf("the address is %d, want 256 still", got.word)
	}
	if got := wordAt(k, 1, epoch+1); got != 1|1<<32 {
		t.Errorf("the endpoint's word is %#x, want %#x still", got, 1|1<<32)
	}
}
