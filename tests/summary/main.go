// Command summary reads `go test -json` and prints a line for each package, the whole
// output of what failed, the figures that tests give (T.Attr), and how many tests passed,
// failed and were skipped. Its exit status is 1 if anything failed, if no test ran, or, with -no-skips, if one was skipped.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of `go test -json` (see `go doc test2json`). ImportPath stands in
// for Package in what the compiler says.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
	Key, Value string // of an attr
}

// pkg is what a package has said so far.
type pkg struct {
	passed, failed, skipped int
	output                  map[string]*strings.Builder // by test, "" = the package's own
	figures                 []string
}

type summary struct {
	out                     io.Writer
	packages                map[string]*pkg
	passed, failed, skipped int
	broken                  int // packages that failed without a failing test: build, panic, timeout
	skips                   []string
}

func main() {
	noSkips := flag.Bool("no-skips", false, "a skipped test is a failure")
	flag.Parse()
	s := summary{out: os.Stdout, packages: map[string]*pkg{}}
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	if !s.finish(*noSkips) {
		os.Exit(1)
	}
}

func (s *summary) read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(s.out, lines.Text()) // not from a test: pass it on
			continue
		}
		s.take(e)
	}
	return lines.Err()
}

func (s *summary) take(e event) {
	p := s.packages[e.Package]
	if p == nil {
		p = &pkg{output: map[string]*strings.Builder{}}
		s.packages[e.Package] = p
	}
	switch {
	case e.Action == "build-output":
		fmt.Fprint(s.out, e.Output)
	case e.Action == "attr":
		p.figures = append(p.figures, fmt.Sprintf("      %s %s: %s\n", e.Test, e.Key, e.Value))
	case e.Action == "output":
		p.say(e.Test, e.Output)
	case e.Test == "":
		s.endPackage(e, p)
	default:
		s.endTest(e, p)
	}
}

func (p *pkg) say(test, text string) {
	if p.output[test] == nil {
		p.output[test] = &strings.Builder{}
	}
	p.output[test].WriteString(text)
}

func (p *pkg) said(test string) string {
	if b := p.output[test]; b != nil {
		return b.String()
	}
	return ""
}

func (s *summary) endTest(e event, p *pkg) {
	switch e.Action {
	case "pass":
		p.passed++
	case "skip":
		p.skipped++
		s.skips = append(s.skips, e.Package+" "+e.Test+"\n"+p.said(e.Test))
	case "fail":
		p.failed++
		fmt.Fprint(s.out, p.said(e.Test))
	default:
		return // run, pause, cont
	}
	delete(p.output, e.Test)
}

func (s *summary) endPackage(e event, p *pkg) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(s.out, "ok    %s  %.1fs  %d tests\n", e.Package, e.Elapsed, p.passed)
	case "skip":
		return // no test files
	case "fail":
		if p.failed == 0 {
			s.broken++
		}
		for test := range p.output { // what a panic or a timeout cut short
			fmt.Fprint(s.out, p.said(test))
		}
		fmt.Fprintf(s.out, "FAIL  %s  %.1fs  %d passed, %d failed\n", e.Package, e.Elapsed, p.passed, p.failed)
	default:
		return
	}
	fmt.Fprint(s.out, strings.Join(p.figures, ""))
	s.passed += p.passed
	s.failed += p.failed
	s.skipped += p.skipped
}

// finish prints the totals and reports whether all is well.
func (s *summary) finish(noSkips bool) bool {
	for _, skip := range s.skips {
		fmt.Fprintf(s.out, "SKIP  %s", skip)
	}
	fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped", s.passed, s.failed, s.skipped)
	if s.broken > 0 {
		fmt.Fprintf(s.out, ", %d packages broken", s.broken)
	}
	fmt.Fprintln(s.out)
	return s.failed == 0 && s.broken == 0 && s.passed > 0 && !(noSkips && s.skipped > 0)
}
