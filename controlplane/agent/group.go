package agent

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weirnet/weir/controlplane/api"
)

// namedMost is how many things a warning that many share names.
const namedMost = 3

// grouped are warnings, each once: those of one object that differ by the field alone are one, as
// are those of pods that no file has, and it names a few of the fields and of the pods.
func grouped(warnings []api.ObjectError) []string {
	type key struct {
		file     string
		document int
		object   string
		message  string
	}
	type group struct{ objects, fields []string }
	var order []key
	groups := map[key]*group{}
	for _, w := range warnings {
		k := key{w.File, w.Document, w.Object, w.Message}
		pod, isPod := strings.CutPrefix(w.Object, "Pod ")
		isPod = isPod && w.File == ""
		if isPod {
			k.object = "Pod " + w.Field
		}
		g := groups[k]
		if g == nil {
			g = &group{}
			groups[k] = g
			order = append(order, k)
		}
		if isPod && !slices.Contains(g.objects, pod) {
			g.objects = append(g.objects, pod)
		}
		if w.Field != "" && !slices.Contains(g.fields, w.Field) {
			g.fields = append(g.fields, w.Field)
		}
	}
	var out []string
	for _, k := range order {
		g := groups[k]
		e := api.ObjectError{File: k.file, Document: k.document, Object: k.object, Field: fewOf(g.fields, namedMost), Message: k.message}
		if n := len(g.objects); n == 1 {
			e.Object = "Pod " + g.objects[0]
		} else if n > 1 {
			e.Object = fmt.Sprintf("each of %d pods (%s)", n, fewOf(g.objects, namedMost))
		}
		out = append(out, e.String())
	}
	return out
}

// fewOf names the first of them, and says how many more there are.
func fewOf(names []string, most int) string {
	text := strings.Join(names[:min(most, len(names))], ", ")
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
