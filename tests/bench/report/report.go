// Package report holds what benchmarks measured and writes it down: a page of tables and
// plots for people, and the raw figures beside it.
package report

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Report is what there is, section by section.
type Report struct {
	*Run                // of all of them, as figures of before had it
	Sections []*Section `json:"sections"`
}

// Run is when and where a section was measured.
type Run struct {
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	Commit    string `json:"commit"`
	Began     string `json:"began"`
	Took      string `json:"took"`
	LoadStart string `json:"load_at_start"`
	LoadEnd   string `json:"load_at_end"`
	Arguments string `json:"arguments"`
}

// Section is one subject.
type Section struct {
	Name   string   `json:"name"` // as ONLY names it
	Title  string   `json:"title"`
	Method string   `json:"method"`
	Tables []*Table `json:"tables"`
	Goals  []Goal   `json:"goals,omitempty"`
	Notes  []string `json:"notes,omitempty"` // what could not be measured, and why
	Run    *Run     `json:"run,omitempty"`
	Short  bool     `json:"short,omitempty"` // its figures mean nothing
	Took   string   `json:"took"`
}

// Table is figures by row and column.
type Table struct {
	Name    string   `json:"name"` // of the plot's file
	Title   string   `json:"title"`
	Note    string   `json:"note,omitempty"`
	Head    string   `json:"head"` // of the column of names
	Columns []string `json:"columns"`
	Rows    []Row    `json:"rows"`
	Plot    Plot     `json:"plot,omitempty"`
}

// Plot is how a table is drawn.
type Plot string

// Plots: none; a dot with its quartiles for each figure; a line for each row over the
// columns, which are numbers.
const (
	NoPlot Plot = ""
	Dots   Plot = "dots"
	Lines  Plot = "lines"
)

// Row is one thing that was measured.
type Row struct {
	Name  string   `json:"name"`
	Cells []Figure `json:"cells"`
}

// Figure is a median with its quartiles, over Samples; or a Text that is none.
type Figure struct {
	Median  float64   `json:"median"`
	Low     float64   `json:"q1"`
	High    float64   `json:"q3"`
	Unit    string    `json:"unit,omitempty"`
	Samples []float64 `json:"samples,omitempty"`
	Text    string    `json:"text,omitempty"`
}

// Goal is a figure that was promised.
type Goal struct {
	What string  `json:"what"`
	Want string  `json:"want"`
	Got  float64 `json:"got"`
	Unit string  `json:"unit,omitempty"`
	Met  bool    `json:"met"`
}

// AtMost and AtLeast add a goal to the section.
func (s *Section) AtMost(what string, got, limit float64, unit string) {
	s.goal(Goal{what, "at most " + number(limit) + unit, got, unit, got <= limit})
}

// At least more than nothing is promised: 0 is what was not measured.
func (s *Section) AtLeast(what string, got, limit float64, unit string) {
	if got == 0 {
		got = math.NaN()
	}
	s.goal(Goal{what, "at least " + number(limit) + unit, got, unit, got >= limit})
}

// goal leaves out what could not be measured: a note says why.
func (s *Section) goal(g Goal) {
	if math.IsNaN(g.Got) || math.IsInf(g.Got, 0) {
		s.Note("%s: %s", g.What, NotMeasured)
		return
	}
	s.Goals = append(s.Goals, g)
}

// NotMeasured is in each note of what could not be: a run that has one fails.
const NotMeasured = "not measured"

// Unmeasured are those notes.
func (s *Section) Unmeasured() (out []string) {
	for _, n := range s.Notes {
		if strings.Contains(n, NotMeasured) {
			out = append(out, n)
		}
	}
	return out
}

// Note is a printf to Notes.
func (s *Section) Note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// Of is the figure of samples, a dash of none.
func Of(samples []float64, unit string) Figure {
	if len(samples) == 0 {
		return Words("–")
	}
	return Figure{Median: Quantile(samples, .5), Low: Quantile(samples, .25), High: Quantile(samples, .75), Unit: unit, Samples: samples}
}

// One is a figure without a spread.
func One(v float64, unit string) Figure {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return Words("–")
	}
	return Figure{Median: v, Low: v, High: v, Unit: unit}
}

// Words is a cell that is no figure.
func Words(format string, args ...any) Figure { return Figure{Text: fmt.Sprintf(format, args...)} }

// Quantile of samples, NaN of none.
func Quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(samples))
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 == len(s) {
		return s[i]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

// Ratios of samples that were taken in the same rounds.
func Ratios(samples, base []float64) []float64 {
	var out []float64
	for i, v := range samples {
		if i < len(base) && base[i] != 0 {
			out = append(out, v/base[i])
		}
	}
	return out
}

func (f Figure) String() string {
	switch {
	case f.Text != "":
		return f.Text
	case f.Low == f.High:
		return number(f.Median) + f.Unit
	}
	return fmt.Sprintf("%s%s (%s–%s)", number(f.Median), f.Unit, number(f.Low), number(f.High))
}

// number has three digits or so.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 10000:
		text := fmt.Sprintf("%.0f", v)
		for i := len(text) - 3; i > 0; i -= 3 {
			text = text[:i] + "," + text[i:]
		}
		return text
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// Write writes page (.md), the plots into a directory of the page's name and the raw
// figures (.json) beside it.
func (r *Report) Write(page string) error {
	base := strings.TrimSuffix(page, ".md")
	if err := os.RemoveAll(base); err != nil {
		return err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	for _, s := range r.Sections {
		for _, t := range s.Tables {
			if svg := t.svg(); svg != "" {
				if err := os.WriteFile(filepath.Join(base, t.Name+".svg"), []byte(svg), 0o644); err != nil {
					return err
				}
			}
		}
	}
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(base+".json", append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(page, []byte(r.markdown(filepath.Base(base))), 0o644)
}

// Read reads the raw figures of an earlier run.
func Read(path string) (*Report, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, s := range r.Sections {
		if s.Run == nil {
			s.Run = r.Run
		}
	}
	return r, nil
}
