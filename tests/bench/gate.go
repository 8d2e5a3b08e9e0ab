package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/testnode"
)

const (
	establishedRow = "established"
	firstRow       = "first packet"
	deniedRow      = "denied, again and again"

	firstRepeat = 3000
	mostRounds  = ports/firstRepeat - 1
	ports       = 60000 // of the feeder
)

// Gates are some 1.3 times what docs/benchmarks.md has.
const (
	gateEstablished = 3   // x 1H
	gateDenied      = 5   // x 1H
	gateFirst       = 1.4 // x the floor's
	gateMore        = 1.3 // x fewer rules
)

// row is a shot, held to a gate by its ratio to another row (0: to none).
type row struct {
	*shot
	to   int
	gate float64
}

const oneHash = 1 // its row

// gate prints what a packet costs in the real programs, by BPF_PROG_TEST_RUN, as a ratio to
// a program with one hash lookup (1H), all net of an empty program, and what changes have the
// kernel's maps written; it fails where a row is past its gate.
func gate(rounds, repeat int) error {
	runtime.LockOSThread()
	n, err := newNode(loader.Config{Sizes: loader.Sizes{bpf.WeirMapFlows: 1 << 20}})
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.receivers(); err != nil {
		return err
	}
	rows := n.rows(repeat)
	if err := realtime(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: no real-time priority, figures will be noisy:", err)
	}
	var shots []*shot
	for _, r := range rows {
		shots = append(shots, r.shot)
	}
	samples, err := n.rounds(rounds, shots)
	if err != nil {
		return err
	}
	return errors.Join(printRows(rows, samples), n.gateWrites())
}

// realtime pins the thread to the last CPU at SCHED_RR 20.
func realtime() error {
	var set unix.CPUSet
	set.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 20}, 0)
}

// rows: the empty program, 1H, and what is measured.
func (n *node) rows(repeat int) []row {
	var rows []row
	for _, s := range n.base(4, repeat) {
		rows = append(rows, row{shot: s})
	}
	add := func(name string, s *shot, to int, gate float64) {
		s.name = name
		rows = append(rows, row{s, to, gate})
	}
	for _, family := range []int{4, 6} {
		in := fmt.Sprintf(", IPv%d", family)
		denied := testnode.TCP(address(1, family), 1000, address(3, family), 80, "S")
		add(establishedRow+in, n.established(family, repeat), oneHash, gateEstablished)
		add(deniedRow+in, n.shot("", denied, 1, repeat/4, drop), oneHash, gateDenied)
		add("floor, "+firstRow+in, n.floor(n.first(1, 2, family, 90, false)), 0, 0)
		add(firstRow+in, n.first(1, 2, family, 80, false), len(rows)-1, gateFirst)
	}
	for i, r := range receivers {
		if r.name == "" {
			continue
		}
		from, to, what := 1, i+2, firstRow+", "
		if r.egress {
			from, to = i+2, 1
		}
		if r.denied {
			from, what = 3, "denied on a new port, "
		}
		s := n.first(from, to, 4, r.port, r.denied)
		if r.rules > 10 { // the row before has 10
			add(what+r.name, s, len(rows)-1, gateMore)
		} else {
			add(what+r.name, s, 0, 0)
		}
	}
	return rows
}

// data is a packet of an open connection of pod 1 to pod 2.
func data(family int) testnode.Frame {
	return testnode.TCP(address(1, family), 1000, address(2, family), 80, "A")
}

// shot is a packet that a pod sends.
func (n *node) shot(name string, f testnode.Frame, from, repeat, want int) *shot {
	return &shot{name: name, program: n.stub, ifindex: n.veths[from], frame: f, repeat: repeat, want: want}
}

// established is a packet of a connection that is opened now.
func (n *node) established(family, repeat int) *shot {
	s := n.shot(fmt.Sprintf("established IPv%d", family), data(family), 1, repeat, redirect)
	s.opened = n.shot("SYN", testnode.TCP(address(1, family), 1000, address(2, family), 80, "S"), 1, 1, redirect)
	return s
}

// first opens a flow with every packet, by another source port each time; denied: it is
// denied, by another destination port each time.
func (n *node) first(from, to, family int, port uint16, denied bool) *shot {
	s := n.shot("first", testnode.TCP(address(from, family), 1000, address(to, family), port, "S"), from, firstRepeat, redirect)
	s.mode, s.port, s.drain = next, port, true
	if denied {
		s.want, s.swap, s.port = drop, true, 1000
	}
	return s
}

// printRows prints each row net of the empty program, as a ratio to 1H and, where it has a
// gate, to the row that it is held against; paired by round.
func printRows(rows []row, samples [][]float64) error {
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "packet\tns net of empty\tx 1H\tspread\tgate\tmeasured\t")
	fmt.Fprintf(w, "%s\t%.0f (gross)\t\t\t\t\t\n", rows[0].name, median(samples[0]))
	var errs []error
	of := func(i int) []float64 { return less(samples[i], samples[0]) }
	for i, r := range rows[1:] {
		i++
		all, held, measured := report.Ratios(of(i), of(oneHash)), "", ""
		if r.to > 0 {
			ratio := median(report.Ratios(of(i), of(r.to)))
			held, measured = fmt.Sprintf("%.1f x %s", r.gate, rows[r.to].name), fmt.Sprintf("%.2f", ratio)
			if ratio > r.gate {
				errs = append(errs, fmt.Errorf("%s costs %.2f x %s, the gate is %.2f", r.name, ratio, rows[r.to].name, r.gate))
			}
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f-%.2f\t%s\t%s\t\n", r.name, median(of(i)), median(all), slices.Min(all), slices.Max(all), held, measured)
	}
	return errors.Join(append(errs, w.Flush())...)
}

func median(samples []float64) float64 { return report.Quantile(samples, .5) }
