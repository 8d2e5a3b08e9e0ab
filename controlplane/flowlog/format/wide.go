package format

import (
	"strings"
	"time"
	"unicode/utf8"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
)

// Wide is messages as the rows of a table. On a terminal its columns fit the width: the less
// there is, the fewer there are, and what is too long is cut; but why a packet was let through
// or dropped never is: it goes on below its row. Elsewhere nothing is cut, and columns are as
// wide as what they have held so far.
type Wide struct {
	Style Style
	Width int  // of the terminal; 0 = none
	Node  bool // a column for it

	columns []column
	day     string // of the row before
}

// column is one of the table.
type column struct {
	head  string
	least int // width
	share int // of the room that is left
	from  int // only on terminals of that width or more
	text  func(m *observerpb.GetFlowsResponse, f *flowpb.Flow, x api.FlowExtension, s Style) string
	paint func(f *flowpb.Flow, x api.FlowExtension) string

	width int
}

var wideColumns = []column{
	{head: "TIME", least: 12, text: func(m *observerpb.GetFlowsResponse, _ *flowpb.Flow, _ api.FlowExtension, s Style) string {
		return s.time(m.GetTime().AsTime(), "15:04:05.000")
	}, paint: func(*flowpb.Flow, api.FlowExtension) string { return dim }},
	{head: "VERDICT", least: 9, text: func(_ *observerpb.GetFlowsResponse, f *flowpb.Flow, _ api.FlowExtension, _ Style) string {
		return f.GetVerdict().String()
	}, paint: func(f *flowpb.Flow, _ api.FlowExtension) string { return verdictColour(f) }},
	{head: "EVENT", least: 7, from: 90, text: func(_ *observerpb.GetFlowsResponse, _ *flowpb.Flow, x api.FlowExtension, _ Style) string {
		return Safe(x.Kind)
	}},
	{head: "SOURCE", least: 12, share: 3, text: func(_ *observerpb.GetFlowsResponse, f *flowpb.Flow, _ api.FlowExtension, _ Style) string {
		return source(f)
	}},
	{head: "DESTINATION", least: 12, share: 3, text: func(_ *observerpb.GetFlowsResponse, f *flowpb.Flow, _ api.FlowExtension, _ Style) string {
		return destination(f) + service(f)
	}},
	{head: "PROTOCOL", least: 8, from: 100, text: wideProtocol},
	{head: "PROCESS", least: 8, share: 1, from: 120, text: func(_ *observerpb.GetFlowsResponse, _ *flowpb.Flow, x api.FlowExtension, _ Style) string {
		return processes(x)
	}},
	{head: "TRAFFIC", least: 19, from: 140, text: func(_ *observerpb.GetFlowsResponse, _ *flowpb.Flow, x api.FlowExtension, _ Style) string {
		return traffic(x)
	}},
	{head: "WHY", least: 10, share: 4, from: whyFrom, text: func(_ *observerpb.GetFlowsResponse, f *flowpb.Flow, x api.FlowExtension, _ Style) string {
		return wideWhy(f, x)
	}},
}

// whyFrom is the width from which why has a column; where it is not wide enough, too, it is below.
const whyFrom = 100

func wideWhy(f *flowpb.Flow, x api.FlowExtension) string {
	if x.Suppressed > 0 {
		return suppressedText(x) + ": " + why(f, x)
	}
	return why(f, x)
}

var nodeColumn = column{head: "NODE", least: 8, share: 1, text: func(m *observerpb.GetFlowsResponse, _ *flowpb.Flow, _ api.FlowExtension, _ Style) string {
	return Safe(m.GetNodeName())
}}

func wideProtocol(_ *observerpb.GetFlowsResponse, f *flowpb.Flow, x api.FlowExtension, _ Style) string {
	if x.Kind == api.FlowEnded || x.Kind == api.FlowRevoked {
		return protocolName(f)
	}
	return protocol(f)
}

// processes are who opened the flow and who listened, where that is known: "curl -> nginx".
func processes(x api.FlowExtension) string {
	name := func(p *api.FlowProcess) string {
		if p == nil {
			return "?"
		}
		return processName(p)
	}
	switch {
	case x.Process == nil && x.Listener == nil:
		return ""
	case x.Listener == nil:
		return name(x.Process)
	}
	return name(x.Process) + " -> " + name(x.Listener)
}

// traffic is what was sent and received, of flows that are over or go on.
func traffic(x api.FlowExtension) string {
	if x.Bytes == nil || x.Kind == api.FlowNew || x.Kind == api.FlowDenied {
		return ""
	}
	return Bytes(x.Bytes.Sent) + " / " + Bytes(x.Bytes.Received)
}

// begin settles the columns.
func (w *Wide) begin() {
	if w.columns != nil {
		return
	}
	all := wideColumns
	if w.Node {
		all = append([]column{nodeColumn}, wideColumns...)
	}
	left, shares := w.Width, 0
	for _, c := range all {
		if w.Width > 0 && w.Width < c.from {
			continue
		}
		c.width = max(c.least, utf8.RuneCountInString(c.head))
		if w.Width == 0 {
			c.width += 6 * c.share // seldom wider
		}
		left -= c.width + 1
		shares += c.share
		w.columns = append(w.columns, c)
	}
	for i := range w.columns {
		if c := &w.columns[i]; c.share > 0 && left > 0 {
			n := left * c.share / shares
			c.width += n
			left, shares = left-n, shares-c.share
		}
	}
}

// Head is the table's first line.
func (w *Wide) Head() string {
	w.begin()
	cells := make([]string, len(w.columns))
	for i, c := range w.columns {
		cells[i] = c.head
	}
	return w.Style.Strong(w.line(cells, nil))
}

// Line is a message's row.
func (w *Wide) Line(m *observerpb.GetFlowsResponse) string {
	w.begin()
	f := m.GetFlow()
	if f == nil {
		return Compact(m, w.Style)
	}
	x := Extension(f)
	cells, paint := make([]string, len(w.columns)), make([]string, len(w.columns))
	for i, c := range w.columns {
		cells[i] = c.text(m, f, x, w.Style)
		if c.paint != nil {
			paint[i] = c.paint(f, x)
		}
	}
	row := w.newDay(m) + w.line(cells, paint)
	if w.Width > 0 && w.Width < whyFrom {
		return row + below(wideWhy(f, x), w.Width)
	}
	return row
}

// newDay is a line above a row whose day is not that of the row before, of the first row: today.
func (w *Wide) newDay(m *observerpb.GetFlowsResponse) string {
	if w.day == "" {
		w.day = w.Style.time(time.Now(), time.DateOnly)
	}
	day := w.Style.time(m.GetTime().AsTime(), time.DateOnly)
	if day == w.day {
		return ""
	}
	w.day = day
	return w.Style.paint(dim, day) + "\n"
}

func (w *Wide) line(cells, paint []string) string {
	var b strings.Builder
	for i, cell := range cells {
		n := utf8.RuneCountInString(cell)
		c := &w.columns[i]
		last := i == len(cells)-1
		if w.Width == 0 {
			c.width = max(c.width, n)
		} else if last && w.Width >= whyFrom && n > c.width {
			return strings.TrimRight(b.String(), " ") + below(cell, w.Width)
		} else if n > c.width {
			cell, n = string([]rune(cell)[:c.width-1])+"…", c.width
		}
		if paint != nil && paint[i] != "" {
			cell = w.Style.paint(paint[i], cell)
		}
		b.WriteString(cell)
		if !last {
			b.WriteString(strings.Repeat(" ", c.width-n+1))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// indent is of lines that go on with the row above.
const indent = "    "

// below is text on lines of its own, broken between words.
func below(text string, width int) string {
	var b strings.Builder
	room := max(width-len(indent), 10)
	left := 0
	for word := range strings.FieldsSeq(text) {
		n := utf8.RuneCountInString(word)
		if left <= n {
			b.WriteString("\n" + indent)
			left = room
		} else {
			b.WriteByte(' ')
			left--
		}
		for n > left { // longer than a line
			b.WriteString(string([]rune(word)[:left]) + "\n" + indent)
			word, n, left = string([]rune(word)[left:]), n-left, room
		}
		b.WriteString(word)
		left -= n
	}
	return b.String()
}
