package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/testnode"
)

// Kinds of packets.
const (
	emptyRow           = "empty program"
	hashRow            = "one hash lookup (1H)"
	floorRow           = "floor, established"
	establishedRow     = "established"
	replyRow           = "reply"
	floorFirstRow      = "floor, first packet"
	firstRow           = "first packet"
	deniedRow          = "denied, again and again"
	refusedRow         = "denied, a new port each time"
	forgedRow          = "dropped, a forged source"
	strangeRow         = "dropped, neither IP nor ARP"
	fragmentRow        = "a later fragment"
	toPodRow           = "to_pod, established"
	toPodFirstRow      = "to_pod, first packet"
	fromNetworkRow     = "from_network, established"
	fromNetworkSlowRow = "from_network, of no flow"
	toNetworkRow       = "to_network, established"
	toNetworkFirstRow  = "to_network, first packet"
	wayRow             = "established, to another node's pod"
	farRow             = "established, from another node's pod"
	farFirstRow        = "first packet, from another node's pod"
	wayTunnelRow       = "established, to another node's pod by the tunnel"
	farTunnelRow       = "established, from another node's pod by the tunnel"

	firstRepeat = 3000
	mostRounds  = ports/firstRepeat - 1
	ports       = 60000 // of the feeder
)

// gates are what each kind of packet cost when it was last looked at, and to what.
var gates = map[string]struct {
	to         string
	IPv4, IPv6 float64
}{
	establishedRow:     {hashRow, 2.26, 2.26},
	replyRow:           {hashRow, 2.26, 2.26},
	deniedRow:          {hashRow, 3.8, 3.8},
	forgedRow:          {hashRow, 5.2, 5.1},
	strangeRow:         {hashRow, 3.5, 3.4},
	fragmentRow:        {hashRow, 9.6, 9.6},
	toPodRow:           {hashRow, 1.9, 1.9},
	fromNetworkRow:     {hashRow, 1.95, 1.9},
	fromNetworkSlowRow: {hashRow, 3.3, 3.3},
	toNetworkRow:       {hashRow, 1.97, 1.95},
	wayRow:             {hashRow, 3.58, 3.58},
	farRow:             {hashRow, 3.38, 3.39},
	wayTunnelRow:       {hashRow, 4.88, 4.95},
	farTunnelRow:       {hashRow, 6.56, 7.08},
	firstRow:           {floorFirstRow, 1.07, 1.07},
	refusedRow:         {floorFirstRow, 1.07, 1.07},
	toPodFirstRow:      {floorFirstRow, 1.07, 1.07},
	toNetworkFirstRow:  {floorFirstRow, 1.07, 1.07},
	farFirstRow:        {floorFirstRow, 1.2, 1.2},
}

// more is what a change may add to that; also what more rules, identities and flows may.
const more = 1.3

const gateFlows = 100000

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
func gate(ctx context.Context, rounds, repeat int) error {
	runtime.LockOSThread()
	config := loader.Config{Sizes: loader.Sizes{bpf.WeirMapFlows: 1 << 20}, Timeouts: loader.Timeouts{SYN: time.Hour}}
	n, err := newNode(ctx, config)
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.receivers(); err != nil {
		return err
	}
	if err := realtime(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: no real-time priority, figures will be noisy:", err)
	}
	rows, err := n.rows(repeat)
	if err != nil {
		return err
	}
	config.Sizes = loader.Sizes{bpf.WeirMapAddresses: wide, bpf.WeirMapFacts: wide}
	crowd, err := beside(ctx, config)
	if err != nil {
		return err
	}
	defer crowd.close()
	most, err := crowd.crowd(100000, repeat)
	if err != nil {
		return err
	}
	for _, s := range most {
		s.on, s.name = crowd.rig, s.name+", 100,000 identities"
	}
	rows = append(rows, row{most[0], find(rows, establishedRow+inFamily(4)), more}, row{most[1], find(rows, firstRow+inFamily(4)), more},
		row{most[2], find(rows, deniedRow+inFamily(4)), more})
	samples, err := n.gateRounds(rounds, rows)
	if err != nil {
		return err
	}
	missed := printRows(rows, samples)
	// Flows are in a table of their own, and nothing else comes between their packets: what the
	// caches hold is most of what they cost.
	config.Sizes = loader.Sizes{bpf.WeirMapFlows: 1 << 18}
	full, err := beside(ctx, config)
	if err != nil {
		return err
	}
	defer full.close()
	if err := full.receivers(); err != nil {
		return err
	}
	flows, err := full.manyFlows(gateFlows, repeat)
	if err != nil {
		return err
	}
	idle := full.base(4, repeat)
	rows = []row{{idle[0], 0, 0}, {idle[1], 0, 0}, {flows[1], 0, 0}, {flows[0], 2, more}}
	if samples, err = full.gateRounds(rounds, rows); err != nil {
		return err
	}
	fmt.Println()
	return errors.Join(missed, printRows(rows, samples), n.gateWrites())
}

func (n *node) gateRounds(rounds int, rows []row) ([][]float64, error) {
	var shots []*shot
	for _, r := range rows {
		shots = append(shots, r.shot)
	}
	return n.rounds(rounds, shots)
}

func inFamily(family int) string { return fmt.Sprintf(", IPv%d", family) }

func find(rows []row, name string) int {
	return slices.IndexFunc(rows, func(r row) bool { return r.name == name })
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
func (n *node) rows(repeat int) ([]row, error) {
	var rows []row
	for _, s := range n.base(4, repeat) {
		rows = append(rows, row{shot: s})
	}
	for _, family := range []int{4, 6} {
		shots, err := n.kindShots(family, repeat)
		if err != nil {
			return nil, err
		}
		for _, s := range shots[len(n.base(family, repeat)):] {
			r := row{shot: s}
			if g, held := gates[s.name]; held {
				r.gate = more * map[int]float64{4: g.IPv4, 6: g.IPv6}[family]
				if r.to = oneHash; g.to != hashRow {
					r.to = find(rows, g.to+inFamily(family))
				}
			}
			s.name += inFamily(family)
			rows = append(rows, r)
		}
	}
	add := func(name string, s *shot, to int, gate float64) {
		s.name = name
		rows = append(rows, row{s, to, gate})
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
			add(what+r.name, s, len(rows)-1, more)
		} else {
			add(what+r.name, s, 0, 0)
		}
	}
	return rows, nil
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
			held, measured = fmt.Sprintf("%.2f x %s", r.gate, rows[r.to].name), fmt.Sprintf("%.2f", ratio)
			if ratio > r.gate {
				errs = append(errs, fmt.Errorf("%s costs %.2f x %s, the gate is %.2f", r.name, ratio, rows[r.to].name, r.gate))
			}
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f-%.2f\t%s\t%s\t\n", r.name, median(of(i)), median(all), slices.Min(all), slices.Max(all), held, measured)
	}
	return errors.Join(append(errs, w.Flush())...)
}

func median(samples []float64) float64 { return report.Quantile(samples, .5) }
