package cni

import (
	"regexp"
	"strings"
	"testing"
)

// What is written out is what the expressions of Kubernetes' names say.
func TestNamesAreExpressions(t *testing.T) {
	for _, c := range []struct {
		expression string
		max        int
		is         func(string) bool
	}{
		{`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`, 253, isLabel},
		{`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`, 253, isSubdomain},
		{`^[A-Za-z0-9._-]{0,128}$`, 128, isUID},
		{`^[A-Za-z0-9][A-Za-z0-9_.-]*$`, 1 << 20, isPluginName},
	} {
		want := regexp.MustCompile(c.expression)
		names := []string{"", "é", "a\xff", "a\n"}
		for _, n := range []int{62, 63, 64, 127, 128, 129, 252, 253, 254} {
			names = append(names, strings.Repeat("a", n), strings.Repeat("a", n-2)+".b", strings.Repeat("-", n))
		}
		const chars = "a0-.A_/ "
		for n := range len(chars) * len(chars) * len(chars) * len(chars) {
			name := ""
			for range 4 {
				name += chars[n%len(chars) : n%len(chars)+1]
				n /= len(chars)
			}
			names = append(names, name, name[:1], name[:2], name[:3])
		}
		for _, name := range names {
			if got := c.is(name); got != (want.MatchString(name) && len(name) <= c.max) {
				t.Errorf("%q by %s: got %t", name, c.expression, got)
			}
		}
	}
}
