package conformance

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/weirnet/weir/tests/lab"
)

// reportRows is how many questions a report shows.
const reportRows = 40

// disagreements is a table of the questions whose three answers are not one, "" if there
// are none.
func (w *wave) disagreements() string {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "from\tto\tfamily\tport\tcyclonus\treference\tgot")
	n := 0
	for i, e := range w.expected {
		got := w.answerOf(i)
		if e.agreed() && (got == lab.Answered) == e.allowed() && got != lab.Refused {
			continue
		}
		if n++; n <= reportRows {
			fmt.Fprintf(table, "%s\t%s\tIPv%d\t%d/%s\t%s\t%s\t%v\n", e.from, e.to, e.family(), e.port, e.protocol,
				verdict(e.cyclonus), verdict(e.reference.Forwarded), got)
		}
	}
	table.Flush()
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d questions, cyclonus decides:\n%s", n, len(w.expected), text.String())
}

func verdict(allowed bool) string {
	if allowed {
		return "allow"
	}
	return "deny"
}

// manifests are the policies and what else a step has changed of the cluster.
func (c *cluster) manifests() string {
	ordinary, _ := newCluster().files()
	files, err := c.files()
	if err != nil {
		return err.Error()
	}
	var out []string
	for name, text := range files {
		if ordinary[name] != text {
			out = append(out, strings.TrimSpace(text))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n---\n")
}
