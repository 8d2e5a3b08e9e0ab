package flowlog

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// A labelSet is an end's labels as messages have them, source:key=value. As labels.Labels
// its keys are source.key, where the source "any" stands for each.
type labelSet []string

var _ labels.Labels = labelSet(nil)

// Lookup implements labels.Labels.
func (s labelSet) Lookup(key string) (string, bool) {
	wantSource, wantKey, _ := strings.Cut(key, ".")
	for _, l := range s {
		from, rest, _ := strings.Cut(l, ":")
		if wantSource != anySource && wantSource != from {
			continue
		}
		if k, v, _ := strings.Cut(rest, "="); k == wantKey {
			return v, true
		}
	}
	return "", false
}

// Has implements labels.Labels.
func (s labelSet) Has(key string) bool {
	_, ok := s.Lookup(key)
	return ok
}

// Get implements labels.Labels.
func (s labelSet) Get(key string) string {
	v, _ := s.Lookup(key)
	return v
}

const anySource = "any"

// parseSelector reads a Kubernetes label selector whose keys may begin with a source, as
// in "k8s:app in (web, db)" or "reserved:world".
func parseSelector(text string) (labels.Selector, error) {
	s, err := labels.Parse(dotted(text))
	if err != nil {
		return nil, fmt.Errorf("%q is no label selector: %w", text, err)
	}
	return s, contradiction(text, s)
}

// contradiction is an error if no value of some key passes all that a selector requires of it,
// as with "app=web,app=db".
func contradiction(text string, s labels.Selector) error {
	requirements, _ := s.Requirements()
	of := map[string]labels.Requirements{}
	for _, r := range requirements {
		of[r.Key()] = append(of[r.Key()], r)
	}
	for _, r := range requirements {
		if key := r.Key(); !possible(key, of[key]) {
			return never("%q requires of %s what no one label has", text, strings.TrimPrefix(key, anySource+"."))
		}
	}
	return nil
}

// possible reports whether a label of that key, or there being none, passes all of them.
func possible(key string, all labels.Requirements) bool {
	candidates := []labels.Set{nil, {key: "\x00"}} // no label, and one that none of them names
	for _, r := range all {
		switch r.Operator() {
		case selection.GreaterThan, selection.LessThan:
			return true // not looked into
		}
		for v := range r.Values() {
			candidates = append(candidates, labels.Set{key: v})
		}
	}
	return slices.ContainsFunc(candidates, func(c labels.Set) bool {
		return !slices.ContainsFunc(all, func(r labels.Requirement) bool { return !r.Matches(c) })
	})
}

// dotted writes each key of a selector as source.key, which Kubernetes' parser takes.
func dotted(selector string) string {
	var out strings.Builder
	for rest := selector; rest != ""; {
		key := strings.IndexFunc(rest, func(r rune) bool { return !unicode.IsSpace(r) && r != '!' })
		if key < 0 {
			key = len(rest)
		}
		out.WriteString(rest[:key])
		rest = rest[key:]
		end := strings.IndexFunc(rest, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune("=!,", r) })
		if end < 0 {
			end = len(rest)
		}
		from, name, found := strings.Cut(rest[:end], ":")
		if !found {
			from, name = anySource, rest[:end]
		}
		out.WriteString(from + "." + name)
		rest = rest[end:]
		next := afterComma(rest)
		out.WriteString(rest[:next])
		rest = rest[next:]
	}
	return out.String()
}

// afterComma is where the next requirement begins: behind a comma outside of brackets.
func afterComma(s string) int {
	depth := 0
	for i, r := range s {
		switch {
		case r == '(':
			depth++
		case r == ')':
			depth--
		case r == ',' && depth == 0:
			return i + 1
		}
	}
	return len(s)
}

func labelsMatch(end int, s labels.Selector) test {
	return func(r *record) bool { return s.Matches(labelSet(r.labels(end))) }
}
