package identity

import (
	"slices"
	"strings"
)

// Operator relates a label's key to the values of a requirement.
type Operator string

// The operators of Kubernetes' label selectors. NotIn and NotExists match labels
// that lack the key.
const (
	In        Operator = "in"
	NotIn     Operator = "notin"
	Exists    Operator = "exists"
	NotExists Operator = "!exists"
)

// Requirement is one condition on labels.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string // sorted, no duplicates; empty for Exists and NotExists
}

// Selector is the conjunction of its requirements; the zero Selector matches all
// labels. Make one with NewSelector: its text is canonical.
type Selector struct {
	requirements []Requirement
	text         string
}

// NewSelector sorts the requirements and drops duplicates.
func NewSelector(requirements ...Requirement) Selector {
	var s Selector
	for _, r := range requirements {
		r.Values = slices.Clone(r.Values)
		slices.Sort(r.Values)
		r.Values = slices.Compact(r.Values)
		s.requirements = append(s.requirements, r)
	}
	slices.SortFunc(s.requirements, func(a, b Requirement) int { return strings.Compare(a.String(), b.String()) })
	s.requirements = slices.CompactFunc(s.requirements, func(a, b Requirement) bool { return a.String() == b.String() })
	parts := make([]string, len(s.requirements))
	for i, r := range s.requirements {
		parts[i] = r.String()
	}
	s.text = strings.Join(parts, ",")
	return s
}

// Requirements returns the conditions in canonical order; do not change them.
func (s Selector) Requirements() []Requirement { return s.requirements }

// Empty reports whether s matches all labels because it asks for nothing.
func (s Selector) Empty() bool { return len(s.requirements) == 0 }

// String is canonical: equal texts, equal selectors. "*" stands for the empty one.
func (s Selector) String() string {
	if s.Empty() {
		return "*"
	}
	return s.text
}

// Matches reports whether labels meet every requirement.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s.requirements {
		if !r.Matches(labels) {
			return false
		}
	}
	return true
}

// Matches reports whether labels meet the requirement.
func (r Requirement) Matches(labels map[string]string) bool {
	value, has := labels[r.Key]
	switch r.Operator {
	case In:
		return has && r.contains(value)
	case NotIn:
		return !has || !r.contains(value)
	case Exists:
		return has
	case NotExists:
		return !has
	}
	return false
}

func (r Requirement) contains(value string) bool {
	_, found := slices.BinarySearch(r.Values, value)
	return found
}

// String is canonical when Values are sorted.
func (r Requirement) String() string {
	switch r.Operator {
	case Exists, NotExists:
		return r.Key + " " + string(r.Operator)
	}
	return r.Key + " " + string(r.Operator) + " (" + strings.Join(r.Values, " ") + ")"
}
