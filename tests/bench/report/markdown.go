package report

import (
	_ "embed" // the page's fixed part
	"fmt"
	"strings"
)

//go:embed head.md
var head string

//go:embed profiles.md
var profiles string

func (r *Report) markdown(plots string) string {
	var b strings.Builder
	b.WriteString(head)
	fmt.Fprintf(&b, "\n| | |\n|---|---|\n| commit | `%s` |\n| date | %s, took %s |\n| kernel | %s |\n| CPU | %d x %s |\n| load average | %s at start, %s at end |\n| arguments | `%s` |\n\n",
		r.Commit, r.Began, r.Took, r.Kernel, r.CPUs, r.CPU, r.LoadStart, r.LoadEnd, r.Arguments)
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

func (r *Report) goals(b *strings.Builder) {
	b.WriteString("## What was promised\n\n| | promised | measured | |\n|---|---|---|---|\n")
	for _, s := range r.Sections {
		for _, g := range s.Goals {
			met := "met"
			if !g.Met {
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
