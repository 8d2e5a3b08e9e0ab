package report

import (
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		q, want float64
	}{
		{[]float64{3, 1, 2}, .5, 2}, {[]float64{1, 2, 3, 4}, .5, 2.5}, {[]float64{4, 1, 3, 2}, .25, 1.75}, {[]float64{7}, .99, 7}, {[]float64{1, 2}, 1, 2},
	} {
		if got := Quantile(c.samples, c.q); got != c.want {
			t.Errorf("%v at %v: %v, want %v", c.samples, c.q, got, c.want)
		}
	}
	if got := Quantile(nil, .5); !math.IsNaN(got) {
		t.Errorf("of none: %v", got)
	}
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	got := Ratios([]float64{2, 9, 8}, []float64{1, 3, 0})
	if len(got) != 2 || got[0] != 2 || got[1] != 3 {
		t.Errorf("got %v", got)
	}
}

// TestWrite writes a page with both kinds of plot and reads the figures again.
func TestWrite(t *testing.T) {
	s := &Section{Name: "x", Title: "A section", Tables: []*Table{
		{Name: "dots", Title: "Dots & <more>", Head: "who", Columns: []string{"a", "b"}, Plot: Dots,
			Rows: []Row{{Name: "one", Cells: []Figure{Of([]float64{1, 2, 3}, ""), Words("nothing")}}}},
		{Name: "lines", Title: "Lines", Head: "who", Columns: []string{"10", "100000"}, Plot: Lines,
			Rows: []Row{{Name: "one", Cells: []Figure{One(5, ""), One(50000, "")}}}},
		{Name: "none", Title: "No figures", Head: "who", Columns: []string{"a"}, Plot: Dots, Rows: []Row{{Name: "one", Cells: []Figure{Of(nil, "")}}}},
	}}
	s.AtMost("this", 2, 3, "x")
	s.AtLeast("that", 2, 3, "x")
	s.AtLeast("nobody", 0, 3, "x")
	s.Run = &Run{Commit: "abc", Began: "Monday", LoadStart: "0.5", LoadEnd: "0.7"}
	if got := s.Unmeasured(); len(got) != 1 || !strings.HasPrefix(got[0], "nobody") {
		t.Errorf("not measured: %q", got)
	}
	short := &Section{Name: "y", Short: true, Run: &Run{Commit: "def", Began: "Tuesday"}}
	short.AtMost("in short", 4, 3, "x")
	page := filepath.Join(t.TempDir(), "page.md")
	if err := (&Report{Sections: []*Section{s, short}}).Write(page); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| this | at most 3x | 2x | met |", "| that | at least 3x | 2x | **missed** |", "| one | 2 (1.50–2.50) | nothing |", "(page/dots.svg)", "| one | – |",
		"| x | `abc` | Monday |  | 0.5 | 0.7 |", "| y | `def` | Tuesday |", "**Sections are of different commits**", "| in short | at most 3x | 4x | a short run |", "- nobody: not measured"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	for _, name := range []string{"dots", "lines"} {
		svg, err := os.ReadFile(filepath.Join(strings.TrimSuffix(page, ".md"), name+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		circles := 0
		for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
			token, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, svg)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "circle" {
				circles++
			}
		}
		if circles != 3 { // figures, and the legend's
			t.Errorf("%s has %d circles:\n%s", name, circles, svg)
		}
	}
	if _, err := os.Stat(filepath.Join(strings.TrimSuffix(page, ".md"), "none.svg")); err == nil {
		t.Error("a plot of nothing is drawn")
	}
	r, err := Read(strings.TrimSuffix(page, ".md") + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Sections[0].Tables[0].Rows[0].Cells[0]; got.Median != 2 || len(got.Samples) != 3 {
		t.Errorf("read again: %+v", got)
	}
}
