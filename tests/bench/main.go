// Command bench measures what a packet costs in the real programs, by BPF_PROG_TEST_RUN, as
// a ratio to a program with one hash lookup (1H), both net of an empty program. It pins
// itself to one CPU at real-time priority, interleaves the rows and prints medians over
// rounds with their spread.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

type row struct {
	name   string
	repeat int
	run    func(repeat int) (time.Duration, error) // per packet
}

func main() {
	rounds := flag.Int("rounds", 9, "rounds; figures are medians over them")
	repeat := flag.Int("repeat", 300000, "packets per burst (keep a burst under a second)")
	gate := flag.Float64("gate", 0, "fail if an established packet costs more than this many 1H (0: no gate)")
	flag.Parse()
	*rounds = min(*rounds, mostRounds)
	if err := bench(*rounds, *repeat, *gate); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(rounds, repeat int, gate float64) error {
	runtime.LockOSThread()
	n, err := newNode()
	if err != nil {
		return err
	}
	defer n.close()
	rows := n.rows(repeat)
	if err := realtime(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: no real-time priority, figures will be noisy:", err)
	}
	samples := make([][]time.Duration, len(rows))
	for r := 0; r < rounds; r++ {
		for i, row := range rows {
			d, err := row.run(row.repeat)
			if err != nil {
				return fmt.Errorf("%s: %w", row.name, err)
			}
			samples[i] = append(samples[i], d)
		}
	}
	return report(rows, samples, gate)
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

// report prints each row net of the empty program and as a ratio to 1H, paired by round.
func report(rows []row, samples [][]time.Duration, gate float64) error {
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "packet\tns net of empty\tx 1H\tspread\t")
	established := 0.0
	for i, r := range rows {
		if i == 0 {
			fmt.Fprintf(w, "%s\t%d (gross)\t\t\t\n", r.name, median(samples[0]).Nanoseconds())
			continue
		}
		var ratios []float64
		var nets []time.Duration
		for round := range samples[i] {
			net, one := samples[i][round]-samples[0][round], samples[1][round]-samples[0][round]
			nets = append(nets, net)
			ratios = append(ratios, float64(net)/float64(max(one, 1)))
		}
		slices.Sort(ratios)
		m := ratios[len(ratios)/2]
		if r.name == establishedRow {
			established = m
		}
		fmt.Fprintf(w, "%s\t%d\t%.2f\t%.2f-%.2f\t\n", r.name, median(nets).Nanoseconds(), m, ratios[0], ratios[len(ratios)-1])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if gate > 0 && established > gate {
		return fmt.Errorf("an established packet costs %.2f x 1H, the gate is %.2f", established, gate)
	}
	return nil
}

func median(d []time.Duration) time.Duration {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[len(s)/2]
}
