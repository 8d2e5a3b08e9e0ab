package bypass

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// tried is a bypass and what came of it.
type tried struct {
	bypass
	outcomes []outcome
}

const preface = `# Ways around a policy, tried

Written by %[1]smake bypasses%[1]s from the tests' results; %[1]smake test%[1]s fails where it differs from them.

Frames go out by a packet socket inside a pod (or at the far end of the uplink), through the
real plugin, agent and programs. "Dropped: reason (n)" are frames that the kernel counted as dropped for
that reason and no other, that the flow log tells of one by one (but for "neighbour" and
"multicast", which are only counted), and of which a packet socket in every other pod and
outside saw none. "Passed (n)" are the controls: frames without what makes the attack, found
whole at their receiver. Tests in [brackets] are elsewhere in the tree.

`

// render is the document.
func render(ways, done []tried) string {
	var b strings.Builder
	fmt.Fprintf(&b, preface, "`")
	b.WriteString("| id | way | public cases | what came of it |\n|---|---|---|---|\n")
	for _, w := range ways {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", w.id, w.title, w.public, w.results())
	}
	b.WriteString("\n## Experiments of the design\n\nThe first draft of the design was prototyped and attacked; what broke it is tried again here.\n\n")
	b.WriteString("| id | experiment | what comes of it now |\n|---|---|---|\n")
	for _, e := range done {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", e.id, e.title, e.results())
	}
	b.WriteString("\n## Flaws of the first draft\n\nWhat its review found, and where each correction is tested.\n\n| id | flaw | shown by |\n|---|---|---|\n")
	for _, f := range flaws {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", f.id, f.title, tried{bypass: f}.results())
	}
	return b.String()
}

func (t tried) results() string {
	var parts []string
	for _, o := range t.outcomes {
		if o.packets > 0 {
			parts = append(parts, fmt.Sprintf("%s (%d)", o.words, o.packets))
		} else {
			parts = append(parts, o.words)
		}
	}
	if t.note != "" {
		parts = append(parts, t.note)
	}
	if len(t.tests) > 0 {
		parts = append(parts, "["+strings.Join(t.tests, ", ")+"]")
	}
	return strings.Join(parts, "; ")
}

// testsOf finds the names of all tests of the repository: "tests/packet TestFragments".
func testsOf(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				found[dir+" "+f.Name.Name] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
