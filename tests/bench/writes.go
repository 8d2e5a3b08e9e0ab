package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// writeCases are changes of a node in a cluster of 1,000 pods and what each has to write:
// entries that are put or deleted, those of what it replaces included, and words of memory.
var writeCases = []struct {
	name   string
	change func(*datapath.State)
	want   string
}{
	{"nothing", func(*datapath.State) {}, "0 + 0 words"},
	{"a pod elsewhere, like others", func(s *datapath.State) { s.Peers[elsewhere] = datapath.Peer{Identity: farAway} }, "1 + 3 words"},
	{"the pod goes", func(s *datapath.State) { delete(s.Peers, elsewhere) }, "1 + 3 words"},
	{"a pod elsewhere, unlike others, whom a rule lets in", func(s *datapath.State) {
		s.Peers[elsewhere] = datapath.Peer{Identity: farAway + 5000}
		s.Facts[datapath.Fact{Set: 20000, Identity: farAway + 5000}] = 0
	}, "2 + 4 words"},
	{"the pod goes", func(s *datapath.State) {
		delete(s.Peers, elsewhere)
		delete(s.Facts, datapath.Fact{Set: 20000, Identity: farAway + 5000})
	}, "2 + 3 words"},
	{"a pod's policy has another port", func(s *datapath.State) { swapRuleset(s, 2, 5000, 81) }, "4 + 4 words"},
	{"and that of before", func(s *datapath.State) { swapRuleset(s, 5000, 2, 80) }, "4 + 2 words"},
}

// mostAllocations of a commit of any of them.
const mostAllocations = 2700

const farAway identity.Number = 60000

var elsewhere = netip.MustParsePrefix("10.9.9.9/32")

// swapRuleset gives pod 2 another ruleset.
func swapRuleset(s *datapath.State, from, to uint32, port uint16) {
	r := s.Rulesets[from]
	r.Groups = append([]datapath.PortGroup(nil), r.Groups...)
	r.Groups[0].Low, r.Groups[0].High = port, port
	delete(s.Rulesets, from)
	s.Rulesets[to] = r
	e := s.Endpoints[2]
	e.Ingress = to
	s.Endpoints[2] = e
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
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nchange\tentries + words written\tallocations\t")
	var errs []error
	for i, c := range writeCases {
		if i == 0 {
			if _, _, err := n.counted(o, func(*datapath.State) {}); err != nil {
				return err
			}
		}
		got, allocations, err := n.counted(o, c.change)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t\n", c.name, got, allocations)
		if allocations > mostAllocations {
			errs = append(errs, fmt.Errorf("%s: a commit makes %d allocations, the gate is %d", c.name, allocations, mostAllocations))
		}
		if got.String() != c.want {
			errs = append(errs, fmt.Errorf("%s: it writes %s, and has to write %s", c.name, got, c.want))
		}
	}
	return errors.Join(append([]error{w.Flush()}, errs...)...)
}

// counted commits a change and waits until what it replaced is removed.
func (n *node) counted(o *observer, change func(*datapath.State)) (w writes, allocations uint64, err error) {
	s := *n.state
	s.Endpoints, s.Peers, s.Facts, s.Rulesets = maps.Clone(s.Endpoints), maps.Clone(s.Peers), maps.Clone(s.Facts), maps.Clone(s.Rulesets)
	n.state = &s
	change(n.state)
	pages := o.snapshot()
	before, err := o.counted()
	if err != nil {
		return w, 0, err
	}
	var was, is runtime.MemStats
	runtime.ReadMemStats(&was)
	if err := n.commit(); err != nil {
		return w, 0, err
	}
	runtime.ReadMemStats(&is)
	time.Sleep(300 * time.Millisecond)
	after, err := o.counted()
	return writes{calls: after.calls - before.calls, entries: after.entries - before.entries, words: o.changed(pages)}, is.Mallocs - was.Mallocs, err
}
