package report

import (
	_ "embed" // the page's fixed part
	"fmt"
	"slices"
	"strings"
)

//go:embed head.md
var head string

//go:embed profiles.md
var profiles string

func (r *Report) markdown(plots string) string {
	var b strings.Builder
	b.WriteString(head)
	r.runs(&b)
	r.goals(&b)
	for _, s := range r.Sections {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", s.Title, s.Method)
		for _, t := range s.Tables {
			t.markdown(&b, plots)
		}
		for _, n := range s.Notes {
			fmt.Fprintf(&b, "- %s\n", n)
		}
		if len(s.Notes) > 0 {
			b.WriteString("\n")
		}
	}
	b.WriteString(profiles)
	return b.String()
}

// runs says of each section when and where it was measured.
func (r *Report) runs(b *strings.Builder) {
	b.WriteString("\n| section | commit | date | took | load average at start | and at end | arguments | kernel | CPU |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range r.Sections {
		run := s.Run
		if run == nil {
			run = &Run{}
		}
		fmt.Fprintf(b, "| %s | `%s` | %s | %s | %s | %s | `%s` | %s | %d x %s |\n", s.Name, run.Commit, run.Began, s.Took, run.LoadStart, run.LoadEnd, run.Arguments, run.Kernel, run.CPUs, run.CPU)
	}
	b.WriteString("\n")
	if slices.ContainsFunc(r.Sections, func(s *Section) bool { return s.commit() != r.Sections[0].commit() }) {
		b.WriteString("**Sections are of different commits**: what one says cannot be held against another.\n\n")
	}
}

func (r *Report) goals(b *strings.Builder) {
	b.WriteString("## What was promised\n\n| | promised | measured | |\n|---|---|---|---|\n")
	for _, s := range r.Sections {
		for _, g := range s.Goals {
			met := "met"
			switch {
			case s.Short:
				met = "a short run"
			case !g.Met:
				met = "**missed**"
			}
			fmt.Fprintf(b, "| %s | %s | %s%s | %s |\n", g.What, g.Want, number(g.Got), g.Unit, met)
		}
	}
	b.WriteString("\n")
}

func (t *Table) markdown(b *strings.Builder, plots string) {
	fmt.Fprintf(b, "### %s\n\n", t.Title)
	fmt.Fprintf(b, "| %s | %s |\n|---|%s\n", t.Head, strings.Join(t.Columns, " | "), strings.Repeat("---:|", len(t.Columns)))
	for _, row := range t.Rows {
		var cells []string
		for _, c := range row.Cells {
			cells = append(cells, c.String())
		}
		fmt.Fprintf(b, "| %s | %s |\n", row.Name, strings.Join(cells, " | "))
	}
	b.WriteString("\n")
	if t.Note != "" {
		fmt.Fprintf(b, "%s\n\n", t.Note)
	}
	if t.svg() != "" {
		fmt.Fprintf(b, "![%s](%s/%s.svg)\n\n", t.Title, plots, t.Name)
	}
}

func (s *Section) commit() string {
	if s.Run == nil {
		return ""
	}
	return s.Run.Commit
}
