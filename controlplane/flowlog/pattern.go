package flowlog

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// anyName is what an empty part of a node's pattern stands for.
const anyName = `[-0-9_a-z]+(?:\.[-0-9_a-z]+)*`

// fqdnPattern matches names that are like one of patterns: a * is any characters of a
// name, dots too; case and a dot at the end do not count.
func fqdnPattern(patterns []string) (*regexp.Regexp, error) {
	return anyPattern(patterns, namePattern)
}

// nodePattern matches cluster/node; a pattern without a slash is one of the node.
func nodePattern(patterns []string) (*regexp.Regexp, error) {
	return anyPattern(patterns, func(p string) (string, error) {
		if p == "" {
			return "", errors.New("a pattern must not be empty")
		}
		cluster, node, found := strings.Cut(p, "/")
		if !found {
			cluster, node = "", p
		}
		if strings.Contains(node, "/") {
			return "", fmt.Errorf("%q: a pattern is NODE or CLUSTER/NODE", p)
		}
		parts := []string{anyName, anyName}
		for i, part := range []string{cluster, node} {
			if part == "" {
				continue
			}
			var err error
			if parts[i], err = namePattern(part); err != nil {
				return "", err
			}
		}
		return parts[0] + "/" + parts[1], nil
	})
}

func anyPattern(patterns []string, of func(string) (string, error)) (*regexp.Regexp, error) {
	var parts []string
	for _, p := range patterns {
		part, err := of(p)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return regexp.Compile(`\A(?:` + strings.Join(parts, "|") + `)\z`)
}

func namePattern(pattern string) (string, error) {
	p := strings.ToLower(strings.TrimSuffix(strings.TrimSpace(pattern), "."))
	if p == "" || strings.HasSuffix(p, ".") {
		return "", fmt.Errorf("%q is no pattern of a name", pattern)
	}
	var out strings.Builder
	for _, r := range p {
		switch {
		case r == '.':
			out.WriteString(`\.`)
		case r == '*':
			out.WriteString(`[-.0-9a-z]*`)
		case r == '-', r == '_', '0' <= r && r <= '9', 'a' <= r && r <= 'z':
			out.WriteRune(r)
		default:
			return "", fmt.Errorf("%q: %q has no place in a name", pattern, r)
		}
	}
	return out.String(), nil
}
