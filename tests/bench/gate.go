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

	firstRepeat = 3000
	mostRounds  = ports/firstRepeat - 1
	ports       = 60000 // of the feeder
)

type gates struct{ established, more float64 }

// gatesOff measures without a gate.
var gatesOff gates

// row is a shot; more: it is the row before with more rules, and is compared with it.
type row struct {
	*shot
	more bool
}

// gate prints what a packet costs in the real programs, by BPF_PROG_TEST_RUN, as a ratio to
// a program with one hash lookup (1H), both net of an empty program, and fails where that is
// past its gate.
func gate(rounds, repeat int, gates gates) error {
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
	return errors.Join(printRows(rows, samples, gates), n.gateWrites())
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
	rows := []row{
		{shot: &shot{name: "empty", program: n.yard.Empty, ifindex: n.veths[1], frame: data(4), repeat: repeat, want: pass}},
		{shot: &shot{name: "one hash lookup (1H)", program: n.yard.Onehash, ifindex: n.veths[1], frame: data(4), repeat: repeat, want: pass}},
		{shot: n.established(4, repeat)},
		{shot: n.established(6, repeat)},
		{shot: n.shot("denied, again and again", testnode.TCP(address(1, 4), 1000, address(3, 4), 80, "S"), 1, repeat/4, drop)},
		{shot: n.first(1, 2, 4, 80, false)},
	}
	rows[2].name, rows[3].name, rows[5].name = establishedRow, establishedRow+" IPv6", firstRow
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
		s.name = what + r.name
		rows = append(rows, row{s, r.rules > 10})
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

// printRows prints each row net of the empty program, as a ratio to 1H and, where it has more
// rules than the row before, to that; paired by round.
func printRows(rows []row, samples [][]float64, gates gates) error {
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "packet\tns net of empty\tx 1H\tspread\tx fewer rules\t")
	fmt.Fprintf(w, "%s\t%.0f (gross)\t\t\t\t\n", rows[0].name, median(samples[0]))
	var errs []error
	of := func(i int) []float64 { return less(samples[i], samples[0]) }
	for i, r := range rows[1:] {
		i++
		all, toFewer := report.Ratios(of(i), of(1)), ""
		to1H := median(all)
		if r.more {
			ratio := median(report.Ratios(of(i), of(i-1)))
			toFewer = fmt.Sprintf("%.2f", ratio)
			if gates.more > 0 && ratio > gates.more {
				errs = append(errs, fmt.Errorf("%s: %.2f times as dear as with fewer rules, the gate is %.2f", r.name, ratio, gates.more))
			}
		}
		if r.name == establishedRow && gates.established > 0 && to1H > gates.established {
			errs = append(errs, fmt.Errorf("an established packet costs %.2f x 1H, the gate is %.2f", to1H, gates.established))
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f-%.2f\t%s\t\n", r.name, median(of(i)), to1H, slices.Min(all), slices.Max(all), toFewer)
	}
	return errors.Join(append(errs, w.Flush())...)
}

func median(samples []float64) float64 { return report.Quantile(samples, .5) }
