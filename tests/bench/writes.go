package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"text/tabwriter"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// writeCases are changes of a node in a cluster of 1,000 pods and what each has to write:
// entries that are put or deleted, those of what it replaces included, and words of memory.
// A change says what of the state is another now.
var writeCases = []struct {
	name        string
	change      func(*datapath.State) *datapath.Delta
	want, again string // again: the words of all times but the first, as slots that are used again hold what they held; "": as want
	allocations uint64
	collects    bool // the commit starts a collection in the background, of which some allocations may count
}{
	{"nothing", nothing, "0 + 0 words", "", 6, false},
	{"a pod elsewhere, like others", func(s *datapath.State) *datapath.Delta {
		s.Peers[elsewhere] = datapath.Peer{Identity: farAway}
		return &datapath.Delta{Peers: []netip.Prefix{elsewhere}}
	}, "1 + 4 words", "1 + 5 words", 12, true},
	{"the pod goes", func(s *datapath.State) *datapath.Delta {
		delete(s.Peers, elsewhere)
		return &datapath.Delta{Peers: []netip.Prefix{elsewhere}}
	}, "1 + 3 words", "", 9, false},
	{"a pod elsewhere, unlike others, whom a rule lets in", func(s *datapath.State) *datapath.Delta {
		s.Peers[elsewhere] = datapath.Peer{Identity: newcomer.Identity}
		s.Facts[newcomer] = 0
		return &datapath.Delta{Peers: []netip.Prefix{elsewhere}, Facts: []datapath.Fact{newcomer}}
	}, "2 + 5 words", "", 17, true},
	{"the pod goes", func(s *datapath.State) *datapath.Delta {
		delete(s.Peers, elsewhere)
		delete(s.Facts, newcomer)
		return &datapath.Delta{Peers: []netip.Prefix{elsewhere}, Facts: []datapath.Fact{newcomer}}
	}, "2 + 3 words", "", 10, false},
	{"a pod's policy has another port", func(s *datapath.State) *datapath.Delta { return swapRuleset(s, 2, 5000, 81) }, "4 + 4 words", "4 + 2 words", 58, false},
	{"and that of before", func(s *datapath.State) *datapath.Delta { return swapRuleset(s, 5000, 2, 80) }, "4 + 2 words", "", 57, false},
}

func nothing(*datapath.State) *datapath.Delta { return &datapath.Delta{} }

// passes over all cases: what else allocates in the process, and a map of Go's that grows,
// does not in each of them, so that the fewest allocations are the commit's own.
const passes = 15

const ofCollection = 2 // allocations

const farAway identity.Number = 60000

var (
	elsewhere = netip.MustParsePrefix("10.9.9.9/32")
	newcomer  = datapath.Fact{Set: 20000, Identity: farAway + 5000}
)

// swapRuleset gives pod 2 another ruleset.
func swapRuleset(s *datapath.State, from, to uint32, port uint16) *datapath.Delta {
	r := s.Rulesets[from]
	r.Groups = append([]datapath.PortGroup(nil), r.Groups...)
	r.Groups[0].Low, r.Groups[0].High = port, port
	delete(s.Rulesets, from)
	s.Rulesets[to] = r
	e := s.Endpoints[2]
	e.Ingress = to
	s.Endpoints[2] = e
	return &datapath.Delta{Rulesets: []uint32{from, to}}
}

// gateWrites holds each change to what it has to write, exactly.
func (n *node) gateWrites() error {
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		n.state.Peers[netip.PrefixFrom(a, 32)] = datapath.Peer{Identity: farAway + identity.Number(i%100)}
	}
	o, err := observeAt(n.root(), os.Getpid())
	if err != nil {
		return err
	}
	defer o.close()
	fewest := make([]uint64, len(writeCases))
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nchange\tentries + words written\tallocations\t")
	var errs []error
	if err := n.commit(); err != nil { // of the pods
		return err
	}
	if _, _, err := n.counted(o, nothing); err != nil {
		return err
	}
	for pass := range passes {
		for i, c := range writeCases {
			if n.ctx.Err() != nil {
				return n.ctx.Err()
			}
			got, allocations, err := n.counted(o, c.change)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			want := c.want
			if pass > 0 && c.again != "" {
				want = c.again
			}
			if got.String() != want {
				errs = append(errs, fmt.Errorf("%s, pass %d: it writes %s, and has to write %s", c.name, pass+1, got, want))
			}
			if pass == 1 || pass > 1 && allocations < fewest[i] {
				fewest[i] = allocations
			}
			if pass < passes-1 {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t\n", c.name, got, fewest[i])
			most := c.allocations
			if c.collects {
				most += ofCollection
			}
			if fewest[i] < c.allocations || fewest[i] > most {
				errs = append(errs, fmt.Errorf("%s: a commit makes %d allocations, it was %d to %d: if that has to be, write it down (writeCases)", c.name, fewest[i], c.allocations, most))
			}
		}
	}
	return errors.Join(append([]error{w.Flush()}, errs...)...)
}

// counted commits a change and removes what it replaced.
func (n *node) counted(o *observer, change func(*datapath.State) *datapath.Delta) (w writes, allocations uint64, err error) {
	pages := o.snapshot()
	before, err := o.counted()
	if err != nil {
		return w, 0, err
	}
	delta := change(n.state)
	var was, is runtime.MemStats
	runtime.ReadMemStats(&was)
	if _, err := n.kernel.CommitDelta(n.state, delta); err != nil {
		return w, 0, err
	}
	runtime.ReadMemStats(&is)
	if err := n.kernel.Settle(); err != nil {
		return w, 0, err
	}
	after, err := o.counted()
	return writes{calls: after.calls - before.calls, entries: after.entries - before.entries, words: o.changed(pages)}, is.Mallocs - was.Mallocs, err
}
