package export

import (
	"fmt"
	"regexp"
	"slices"
	"testing"
)

// A label is bounded, the same for the same set in any order, and another for another set.
func TestPolicyLabelIsBounded(t *testing.T) {
	var names []string
	for i := range 32 {
		names = append(names, fmt.Sprintf("p%02d", i))
	}
	label := policyLabel(slices.Clone(names))
	if !regexp.MustCompile(`^p00,p01,p02,p03,p04,\+27\([0-9a-f]{8}\)$`).MatchString(label) {
		t.Errorf("label %q", label)
	}
	turned := slices.Clone(names)
	slices.Reverse(turned)
	if got := policyLabel(turned); got != label {
		t.Errorf("in another order %q, not %q", got, label)
	}
	names[31] = "p99"
	if got := policyLabel(names); got == label {
		t.Error("another set has the same label")
	}
	if got := policyLabel([]string{"b", "e", "a", "d", "c"}); got != "a,b,c,d,e" {
		t.Errorf("five are %q", got)
	}
}
