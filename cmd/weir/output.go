package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/weirnet/weir/controlplane/flowlog/format"
)

const (
	outputTable = "table"
	outputJSON  = "json"
)

// json writes v as indented JSON.
func (a *app) json(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err := a.out.Write(format.SafeJSON(b.Bytes()))
	return err
}

// print writes lines of text.
func (a *app) print(lines ...string) error {
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(a.out, strings.Join(lines, "\n"))
	return err
}

// table is rows under a head, in columns as wide as what they hold. On a terminal that
// is narrower the widest columns are cut.
type table struct {
	head  []string
	rows  [][]string
	folds bool // a first column that is cut goes on in lines below, at most foldsTo of them
}

const foldsTo = 4

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = format.Safe(cells[i])
	}
	t.rows = append(t.rows, cells)
}

const gap = "  "

func (a *app) table(t table) error {
	widths := t.widths(a.width)
	lines := []string{a.style.Strong(t.line(t.head, widths))}
	for _, row := range t.rows {
		lines = append(lines, t.lines(row, widths)...)
	}
	return a.print(lines...)
}

// lines are a row's.
func (t *table) lines(row []string, widths []int) []string {
	if !t.folds {
		return []string{t.line(row, widths)}
	}
	parts := fold(row[0], widths[0], foldsTo)
	out := []string{t.line(append([]string{parts[0]}, row[1:]...), widths)}
	for _, p := range parts[1:] {
		out = append(out, strings.TrimRight(fit(p, widths[0]), " "))
	}
	return out
}

// cut leaves as many rows as have so many lines within room, and one at least; it says how many.
func (t *table) cut(room, lines int) int {
	widths := t.widths(room)
	for i, row := range t.rows {
		if lines -= len(t.lines(row, widths)); lines < 0 && i > 0 {
			t.rows = t.rows[:i]
			break
		}
	}
	return len(t.rows)
}

// fold breaks s between words into lines of w characters, at most so many: what is left is in the last.
func fold(s string, w, most int) []string {
	var out []string
	for line := []string{}; ; {
		word, rest, more := strings.Cut(s, " ")
		next := strings.Join(append(line, word), " ")
		switch {
		case len(out) == most-1:
			return append(out, strings.TrimSpace(strings.Join(line, " ")+" "+s))
		case len(line) > 0 && utf8.RuneCountInString(next) > w:
			out, line = append(out, strings.Join(line, " ")), nil
			continue
		}
		line = append(line, word)
		if s = rest; !more {
			return append(out, strings.Join(line, " "))
		}
	}
}

// widths of the columns within room, 0 = any.
func (t *table) widths(room int) []int {
	widths, total := make([]int, len(t.head)), (len(t.head)-1)*len(gap)
	for i := range t.head {
		widths[i] = utf8.RuneCountInString(t.head[i])
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
		total += widths[i]
	}
	const least = 8
	for room > 0 && total > room {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= least {
			break
		}
		widths[widest]--
		total--
	}
	return widths
}

func (t *table) line(cells []string, widths []int) string {
	out := make([]string, len(cells))
	for i, c := range cells {
		out[i] = fit(c, widths[i])
	}
	return strings.TrimRight(strings.Join(out, gap), " ")
}

// fit cuts or fills s to w characters.
func fit(s string, w int) string {
	n := utf8.RuneCountInString(s)
	if n > w {
		return string([]rune(s)[:w-1]) + "…"
	}
	return s + strings.Repeat(" ", w-n)
}

// plural is "1 policy", "2 policies", "0 endpoints".
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// orNone stands for a list in a cell.
func orNone(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}
