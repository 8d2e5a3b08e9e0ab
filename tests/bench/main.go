// Command bench measures what a packet costs in the real programs, by BPF_PROG_TEST_RUN, as
// a ratio to a program with one hash lookup (1H), both net of an empty program. It pins
// itself to one CPU at real-time priority, interleaves the rows and prints medians over
// rounds with their spread.
package main

import (
	"cmp"
	"errors"
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
	more   bool                                    // the row before with more rules: compared with it
}

type gates struct{ established, more float64 }

func main() {
	rounds := flag.Int("rounds", 9, "rounds; figures are medians over them")
	repeat := flag.Int("repeat", 300000, "packets per burst (keep a burst under a second)")
	var gates gates
	flag.Float64Var(&gates.established, "gate", 0, "fail if an established packet costs more than this many 1H (0: no gate)")
	flag.Float64Var(&gates.more, "gate-more", 0, "fail if more rules make a first packet more than this many times as dear (0: no gate)")
	flag.Parse()
	*rounds = min(*rounds, mostRounds)
	if err := bench(*rounds, *repeat, gates); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(rounds, repeat int, gates gates) error {
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
	return report(rows, samples, gates)
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

// report prints each row net of the empty program, as a ratio to 1H and, where it has more
// rules than the row before, to that; paired by round.
func report(rows []row, samples [][]time.Duration, gates gates) error {
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "packet\tns net of empty\tx 1H\tspread\tx fewer rules\t")
	fmt.Fprintf(w, "%s\t%d (gross)\t\t\t\t\n", rows[0].name, median(samples[0]).Nanoseconds())
	var errs []error
	for i, r := range rows[1:] {
		all, toFewer := ratios(samples, i+1, 1), ""
		to1H := median(all)
		if r.more {
			ratio := median(ratios(samples, i+1, i))
			toFewer = fmt.Sprintf("%.2f", ratio)
			if gates.more > 0 && ratio > gates.more {
				errs = append(errs, fmt.Errorf("%s: %.2f times as dear as with fewer rules, the gate is %.2f", r.name, ratio, gates.more))
			}
		}
		if r.name == establishedRow && gates.established > 0 && to1H > gates.established {
			errs = append(errs, fmt.Errorf("an established packet costs %.2f x 1H, the gate is %.2f", to1H, gates.established))
		}
		fmt.Fprintf(w, "%s\t%d\t%.2f\t%.2f-%.2f\t%s\t\n", r.name, median(net(samples, i+1)).Nanoseconds(), to1H, slices.Min(all), slices.Max(all), toFewer)
	}
	return errors.Join(append(errs, w.Flush())...)
}

// net is a row's samples, less the empty program's.
func net(samples [][]time.Duration, i int) []time.Duration {
	var out []time.Duration
	for round, d := range samples[i] {
		out = append(out, d-samples[0][round])
	}
	return out
}

// ratios of two rows, round by round.
func ratios(samples [][]time.Duration, i, to int) []float64 {
	var out []float64
	other := net(samples, to)
	for round, d := range net(samples, i) {
		out = append(out, float64(d)/float64(max(other[round], 1)))
	}
	return out
}

func median[T cmp.Ordered](values []T) T {
	s := slices.Sorted(slices.Values(values))
	return s[len(s)/2]
}
