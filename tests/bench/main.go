// Command bench measures what policy costs, and writes docs/benchmarks.md. Sections run one
// after the other, each in a process of its own. With -gate it runs the few ratios that are
// stable enough to hold a change to, and fails where one is past its gate.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/bench/traffic"
)

// section is a subject of the report.
type section struct {
	name, title, method string
	measure             func(*measurement) error
}

// measurement is a section on its way.
type measurement struct {
	context.Context
	*report.Section
	rounds int
	short  bool   // to see that it works
	bin    string // where the binaries are
	began  time.Time
	match  *matcher // of subjects
}

// matcher is a regular expression that knows whether it ever met anything.
type matcher struct {
	*regexp.Regexp
	met bool
}

func (m *matcher) MatchString(s string) bool {
	met := m.Regexp.MatchString(s)
	m.met = m.met || met
	return met
}

// pick is a size for a real run or one for a short run.
func pick[T any](m *measurement, real, short T) T {
	if m.short {
		return short
	}
	return real
}

func (m *measurement) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6s  %s: %s\n", time.Since(m.began).Round(time.Second), m.Name, fmt.Sprintf(format, args...))
}

// sections in the report's order.
func sections() []section {
	return []section{packets, trafficSection, flood, flowSection, updates, cniSection, memory}
}

const page = "docs/benchmarks.md"

// options are the command line.
type options struct {
	only   string
	rounds int
	short  bool
	out    string
	bin    string
	child  string
	result string
	match  string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == traffic.Command {
		os.Exit(traffic.Main(os.Args[2:]))
	}
	if len(os.Args) == 3 && os.Args[1] == followCommand {
		os.Exit(follow(os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.only, "only", "", "sections, with commas between them (default: all)")
	flag.IntVar(&o.rounds, "rounds", 9, "rounds; figures are medians over them")
	flag.BoolVar(&o.short, "short", false, "little of everything, to see that it works: such figures mean nothing")
	flag.StringVar(&o.out, "out", page, "the page; plots and raw figures go beside it (-short: "+filepath.Join("bin", "benchmarks-short.md")+")")
	flag.StringVar(&o.bin, "bin", "bin", "where the binaries are")
	flag.StringVar(&o.child, "section", "", "run this section in this process (for bench itself)")
	flag.StringVar(&o.result, "result", "", "file for its result (likewise)")
	flag.StringVar(&o.match, "match", "", "of what is compared, only this (a regular expression), and what it is held against")
	repeat := flag.Int("repeat", 300000, "with a gate: packets per burst (keep a burst under a second)")
	gated := flag.Bool("gate", false, "only the ratios that are stable enough, and fail where one is past its gate")
	flag.Parse()
	if o.short && o.out == page {
		o.out = filepath.Join(o.bin, "benchmarks-short.md")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := errors.New("no arguments are expected")
	switch {
	case flag.NArg() > 0:
	case os.Geteuid() != 0:
		err = errors.New("it makes network namespaces and loads programs into the kernel: run it as root")
	case *gated:
		err = gate(ctx, min(o.rounds, mostRounds), *repeat)
	case o.child != "":
		err = child(ctx, o)
	default:
		err = all(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// all runs the sections and writes the page. A section that was measured takes the place of
// what an earlier run has of it; one that was not asked for, that measured nothing or that was
// interrupted leaves that as it is.
func all(ctx context.Context, o options) error {
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	if _, err := regexp.Compile(o.match); err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	var fresh []*report.Section
	var errs []error
	for i, s := range chosen {
		fmt.Fprintf(os.Stderr, "== %s (%d of %d), load average %s\n", s.name, i+1, len(chosen), load())
		run := &report.Run{Began: time.Now().UTC().Format("2006-01-02 15:04 MST"), Arguments: strings.Join(os.Args[1:], " "), LoadStart: load()}
		describe(run)
		result, err := start(ctx, o, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
		if result != nil {
			run.LoadEnd, result.Run = load(), run
			fresh = append(fresh, result)
		}
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("interrupted in section %s", s.name))
			break
		}
	}
	if len(fresh) == 0 {
		return errors.Join(append(errs, fmt.Errorf("nothing was measured: %s stays as it is", o.out))...)
	}
	if err := (&report.Report{Sections: keep(o.out, fresh)}).Write(o.out); err != nil {
		return errors.Join(append(errs, err)...)
	}
	fmt.Fprintln(os.Stderr, "written:", o.out)
	return errors.Join(errs...)
}

func choose(only string) ([]section, error) {
	if only == "" {
		return sections(), nil
	}
	var out []section
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(sections(), func(s section) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-only: there is no section %q", name)
		}
		out = append(out, sections()[i])
	}
	return out, nil
}

// keep adds the sections that an earlier run wrote and this one did not.
func keep(page string, fresh []*report.Section) (out []*report.Section) {
	old, err := report.Read(strings.TrimSuffix(page, ".md") + ".json")
	if err != nil {
		return fresh
	}
	for _, s := range sections() {
		has := func(r *report.Section) bool { return r.Name == s.name }
		if i := slices.IndexFunc(fresh, has); i >= 0 {
			out = append(out, fresh[i])
		} else if i := slices.IndexFunc(old.Sections, has); i >= 0 {
			out = append(out, old.Sections[i])
		}
	}
	return out
}

// start runs a section in a process of its own.
func start(ctx context.Context, o options, s section) (*report.Section, error) {
	file, err := os.CreateTemp("", "weir-bench-")
	if err != nil {
		return nil, err
	}
	file.Close()
	defer os.Remove(file.Name())
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-section", s.name, "-result", file.Name(), "-rounds", fmt.Sprint(o.rounds), "-bin", o.bin, "-match", o.match}
	if o.short {
		args = append(args, "-short")
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute // it cleans up: who is killed leaves all behind
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	ended := cmd.Run()
	if ctx.Err() != nil && cmd.ProcessState != nil && !cmd.ProcessState.Exited() {
		ended = errors.Join(ended, errors.New("it did not end when it was interrupted, and was killed: `make clean` removes its namespaces"))
	}
	raw, err := os.ReadFile(file.Name())
	if err != nil || len(raw) == 0 {
		return nil, errors.Join(ended, err)
	}
	result := &report.Section{}
	return result, errors.Join(ended, json.Unmarshal(raw, result))
}

// child is start's process.
func child(ctx context.Context, o options) error {
	chosen, err := choose(o.child)
	if err != nil {
		return err
	}
	s := chosen[0]
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	match, err := regexp.Compile(o.match)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	m := &measurement{match: &matcher{Regexp: match}, Context: ctx, Section: &report.Section{Name: s.name, Title: s.title, Method: s.method, Short: o.short}, rounds: o.rounds, short: o.short, bin: bin, began: time.Now()}
	if o.short {
		m.rounds = min(m.rounds, 2)
		m.Note("a short run: these figures mean nothing")
	}
	failed := s.measure(m)
	switch {
	case ctx.Err() != nil: // half a section is none
		return errors.Join(ctx.Err(), failed)
	case o.match != "" && !m.match.met:
		return errors.Join(fmt.Errorf("-match %q names nothing of this section", o.match), failed)
	case len(m.Tables) == 0:
		return errors.Join(errors.New("it measured nothing"), failed)
	case o.match != "":
		m.Note("only what `-match %s` names was measured", o.match)
	}
	if failed != nil {
		m.Note("it did not come to its end: %v", failed)
	}
	unmeasured := m.Unmeasured()
	if o.match != "" { // goals of what was left out are no fault
		unmeasured = slices.DeleteFunc(unmeasured, func(n string) bool { return strings.HasSuffix(n, report.NotMeasured) })
	}
	if len(unmeasured) > 0 {
		failed = errors.Join(failed, errors.New(strings.Join(unmeasured, "\n")))
	}
	m.Took = time.Since(m.began).Round(time.Second).String()
	raw, err := json.Marshal(m.Section)
	if err == nil {
		err = os.WriteFile(o.result, raw, 0o644)
	}
	return errors.Join(failed, err)
}

// describe says where this was measured.
func describe(r *report.Run) {
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		for _, c := range u.Release {
			if c != 0 {
				r.Kernel += string(rune(c))
			}
		}
	}
	r.CPUs, r.CPU = runtime.NumCPU(), "unknown"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				r.CPU = strings.TrimSpace(value)
			}
		}
	}
	commit, _ := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	r.Commit = strings.TrimSpace(string(commit))
}

// load is the three load averages.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
