package report

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// Colours that are told apart on white and on black, also without seeing colours.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b"}

const (
	width     = 820
	nameWidth = 270
	rowHeight = 15
	textStyle = `font-family="sans-serif" font-size="11" fill="#777"`
)

// svg draws the table, "" if it is not to be.
func (t *Table) svg() string {
	switch t.Plot {
	case Dots:
		return t.dots()
	case Lines:
		return t.lines()
	}
	return ""
}

// scale maps values to pixels.
type scale struct {
	low, high  float64
	from, to   float64
	logarithms bool
}

func (s scale) at(v float64) float64 {
	low, high := s.low, s.high
	if s.logarithms {
		v, low, high = math.Log10(v), math.Log10(low), math.Log10(high)
	}
	if high == low {
		return s.from
	}
	return s.from + (v-low)/(high-low)*(s.to-s.from)
}

// ticks are about n round values; of logarithms the powers of ten.
func (s scale) ticks(n int) (out []float64) {
	if s.logarithms {
		for v := math.Pow(10, math.Floor(math.Log10(s.low))); v <= s.high*1.0001; v *= 10 {
			if v >= s.low*0.9999 {
				out = append(out, v)
			}
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10((s.high-s.low)/float64(n))))
	for _, m := range []float64{1, 2, 5, 10} {
		if (s.high-s.low)/(step*m) <= float64(n) {
			step *= m
			break
		}
	}
	for v := math.Ceil(s.low/step) * step; v <= s.high+step/1000; v += step {
		out = append(out, v)
	}
	return out
}

// span is the least and the greatest of the table's quartiles; it is logarithmic where they are far apart.
func (t *Table) span(far float64) (s scale, ok bool) {
	s.low, s.high = math.Inf(1), math.Inf(-1)
	for _, row := range t.Rows {
		for _, c := range row.Cells {
			if c.Text == "" {
				s.low, s.high = min(s.low, c.Low), max(s.high, c.High)
			}
		}
	}
	if math.IsInf(s.low, 0) || s.high <= 0 {
		return s, false
	}
	if s.logarithms = s.low > 0 && s.high/s.low > far; s.logarithms {
		s.low, s.high = math.Pow(10, math.Floor(math.Log10(s.low)*2)/2), math.Pow(10, math.Ceil(math.Log10(s.high)*2)/2)
		return s, true
	}
	s.low, s.high = min(0, s.low), s.high*1.05
	return s, true
}

// dots has a group of lines for each row, a dot with its quartiles for each column in it.
func (t *Table) dots() string {
	s, ok := t.span(30)
	if !ok {
		return ""
	}
	s.from, s.to = nameWidth, width-20
	height := 40
	for _, row := range t.Rows {
		height += max(1, len(row.Cells))*rowHeight/1 + 6
	}
	b := open(t.Title, height+20)
	for _, v := range s.ticks(8) {
		fmt.Fprintf(b, `<line x1="%.1f" y1="36" x2="%.1f" y2="%d" stroke="#8884"/><text x="%.1f" y="%d" text-anchor="middle" %s>%s</text>`+"\n",
			s.at(v), s.at(v), height, s.at(v), height+14, textStyle, number(v))
	}
	t.legend(b, t.Columns)
	y := 44
	for _, row := range t.Rows {
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end" %s>%s</text>`+"\n", nameWidth-8, float64(y)+float64(len(row.Cells)*rowHeight)/2, textStyle, html.EscapeString(row.Name))
		for i, c := range row.Cells {
			if c.Text == "" {
				line := float64(y + i*rowHeight + rowHeight/2)
				fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2"/><circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s, %s: %s</title></circle>`+"\n",
					s.at(c.Low), line, s.at(c.High), line, colour(i), s.at(c.Median), line, colour(i), html.EscapeString(row.Name), html.EscapeString(t.Columns[i]), html.EscapeString(c.String()))
			}
		}
		y += len(row.Cells)*rowHeight + 6
	}
	return b.String() + "</svg>\n"
}

// lines has the columns, which are numbers, along and a line for each row.
func (t *Table) lines() string {
	y, ok := t.span(30)
	var along []float64
	for _, c := range t.Columns {
		v, err := strconv.ParseFloat(strings.ReplaceAll(c, ",", ""), 64)
		if err != nil {
			return ""
		}
		along = append(along, v)
	}
	if !ok || len(along) < 2 {
		return ""
	}
	const height = 320
	y.from, y.to = height-20, 44
	x := scale{low: along[0], high: along[len(along)-1], from: 70, to: width - 30, logarithms: along[0] > 0}
	b := open(t.Title, height+10)
	for _, v := range y.ticks(7) {
		fmt.Fprintf(b, `<line x1="70" y1="%.1f" x2="%d" y2="%.1f" stroke="#8884"/><text x="62" y="%.1f" text-anchor="end" %s>%s</text>`+"\n", y.at(v), width-30, y.at(v), y.at(v)+4, textStyle, number(v))
	}
	for i, v := range along {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle" %s>%s</text>`+"\n", x.at(v), height-4, textStyle, html.EscapeString(t.Columns[i]))
	}
	var names []string
	for i, row := range t.Rows {
		names = append(names, row.Name)
		var points []string
		for j, c := range row.Cells {
			if c.Text != "" {
				continue
			}
			px, py := x.at(along[j]), y.at(c.Median)
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/><circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"><title>%s, %s: %s</title></circle>`+"\n",
				px, y.at(c.Low), px, y.at(c.High), colour(i), px, py, colour(i), html.EscapeString(row.Name), html.EscapeString(t.Columns[j]), html.EscapeString(c.String()))
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", strings.Join(points, " "), colour(i))
	}
	t.legend(b, names)
	return b.String() + "</svg>\n"
}

func colour(i int) string { return colours[i%len(colours)] }

func open(title string, height int) *strings.Builder {
	b := &strings.Builder{}
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img"><title>%s</title>`+"\n", width, height, width, height, html.EscapeString(title))
	fmt.Fprintf(b, `<text x="8" y="14" font-weight="bold" %s>%s</text>`+"\n", textStyle, html.EscapeString(title))
	return b
}

func (t *Table) legend(b *strings.Builder, names []string) {
	x := 8
	for i, name := range names {
		fmt.Fprintf(b, `<circle cx="%d" cy="26" r="4" fill="%s"/><text x="%d" y="30" %s>%s</text>`+"\n", x+4, colour(i), x+12, textStyle, html.EscapeString(name))
		x += 24 + 6*len(name)
	}
}
