package source

import (
	"fmt"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	pod := func(name string) string { return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\n" }
	for _, c := range []struct {
		name, file, text string
		want             string // objects, then errors, one a line; errors by prefix
	}{
		{"several documents", "f.yaml", "# about\n---\n" + pod("a") + "---\n" + pod("b") + "...\n", "1 Pod default/a\n2 Pod default/b\n"},
		{"no marker first", "f.yml", pod("a") + "--- # next\n" + pod("b"), "1 Pod default/a\n2 Pod default/b\n"},
		{"empty documents count", "f.yaml", "---\n---\n# nothing\n---\n" + pod("a"), "3 Pod default/a\n"},
		{"directive, byte order mark, CRLF", "f.yaml", "\ufeff%YAML 1.1\r\n---\r\n" + strings.ReplaceAll(pod("a"), "\n", "\r\n") + "---\r\n" + pod("b"), "1 Pod default/a\n2 Pod default/b\n"},
		{"a document after an end marker", "f.yaml", pod("a") + "...\n" + pod("b"), "1 Pod default/a\n2 Pod default/b\n"},
		{"marker inside text", "f.yaml", pod("a") + "spec:\n  containers:\n  - args:\n    - |\n      x\n      ---\n      y\n", "1 Pod default/a\n"},
		{"marker and text in one line", "f.yaml", "--- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n", "1 Pod default/a\n"},
		{"empty file", "f.yaml", "", ""},
		{"only comments", "f.yaml", "# nothing\n\n", ""},
		{"JSON documents", "f.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}} {"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}`, "1 Pod default/a\n2 Pod default/b\n"},
		{"JSON in YAML", "f.yaml", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"n"}}`, "1 Pod n/a\n"},
		{"a List", "f.yaml", "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n", "1 Pod default/a\n1 Namespace b\n"},

		{"a List's item", "f.yaml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: v1, kind: Pod, metadata: {name: b_}}\n- {kind: X}\n",
			"1 Pod default/a\n1 Pod default/b_\n! 1: Pod default/b_: items[1].metadata.name: Invalid value\n! 1: X: items[2].kind: unknown kind \"X\"\n"},
		{"a List in a List", "f.yaml", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List}]", "! 1: List: items[0].kind: a List inside a List\n"},
		{"unknown kind", "f.yaml", pod("a") + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: shop}\n", "1 Pod default/a\n! 2: Deployment shop/d: kind: unknown kind \"Deployment\" of apiVersion \"apps/v1\"\n"},
		{"wrong apiVersion", "f.yaml", "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: d}\n", "! 1: NetworkPolicy default/d: apiVersion: unknown apiVersion \"extensions/v1beta1\" of kind \"NetworkPolicy\": want \"networking.k8s.io/v1\"\n"},
		{"no apiVersion", "f.yaml", "kind: Pod\nmetadata: {name: d}\n", "! 1: Pod default/d: apiVersion: unknown apiVersion \"\"\n"},
		{"no kind", "f.yaml", "apiVersion: v1\n", "! 1: : kind: is missing\n"},
		{"not an object", "f.yaml", "- a\n---\njust text\n", "! 1: : : is a list: want an object\n! 2: : : is the text \"just text\"\n"},
		{"a JSON array", "f.json", "[]", "! 1: : : is a list\n"},
		{"broken YAML, line of the file", "f.yaml", pod("a") + "---\na: b\n c: d\n", "1 Pod default/a\n! 2: : : not valid YAML: line 6: mapping values are not allowed\n"},
		{"key twice, line of the file", "f.yaml", pod("a") + "---\n" + pod("b") + "kind: Pod\n", "1 Pod default/a\n! 2: : kind: line 8: the key \"kind\" is there twice\n"},
		{"key twice in JSON", "f.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","name":"b"}}`, "1 Pod default/b\n! 1: Pod default/b: metadata.name: is there twice\n"},
		{"broken JSON", "f.json", "{\n\"a\": \n]", "! 1: : : line 3: not valid JSON\n"},
		{"cut JSON", "f.json", `{"a": `, "! 1: : : line 1: not valid JSON: unexpected EOF\n"},
		{"text after a flow mapping", "f.yaml", "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n{apiVersion: v1, kind: Pod, metadata: {name: b}}\n", "! 1: : : not valid YAML: line 1: did not find expected <document start>\n"},
		{"text left of the root", "f.yaml", "  apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\nspec: {hostNetwork: true}\n", "! 1: : : not valid YAML: line 3: did not find expected <document start>\n"},
		{"not UTF-8", "f.yaml", "a: \xff\n", "! 1: : : is not UTF-8 text\n"},
		{"unknown field", "f.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{}, {form: []}]}\n", "1 NetworkPolicy default/a\n! 1: NetworkPolicy default/a: spec.ingress[1].form: unknown field: remove it or correct its name (here are from, ports)\n"},
		{"case counts", "f.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {Name: a}\n", "1 Pod default/\n! 1: Pod: metadata.Name: unknown field\n! 1: Pod: metadata.name: Required value\n"},
		{"label that is no text", "f.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {a: yes, b: 5, c: ok}}\n", "! 1: Pod default/a: metadata.labels[a]: is the truth value true: want text, put it in quotes\n! 1: Pod default/a: metadata.labels[b]: is the number 5: want text, put it in quotes\n"},
		{"port of a wrong type", "f.yaml", heads["policy"] + ports("{port: 80}, {port: [80]}"), "! 1: NetworkPolicy default/x: spec.ingress[0].ports[1].port: is a list: want a number or a name\n"},
		{"port too big for its type", "f.yaml", heads["pod"] + container("{containerPort: 99999999999}"), "! 1: Pod default/x: spec.containers[0].ports[0].containerPort: is the number 99999999999: want a whole number\n"},
		{"list that is a mapping", "f.yaml", heads["policy"] + "spec: {ingress: {from: []}}", "! 1: NetworkPolicy default/x: spec.ingress: is a mapping: want a list\n"},
		{"mapping that is a list", "f.yaml", heads["policy"] + "spec: []", "! 1: NetworkPolicy default/x: spec: is a list: want a mapping\n"},
		{"quantity", "f.yaml", heads["pod"] + "spec: {containers: [{name: c, resources: {limits: {cpu: much}}}]}", "! 1: Pod default/x: spec.containers[0].resources.limits[cpu]: is the text \"much\"\n"},
		{"all errors of all documents", "f.yaml", heads["policy"] + ports("{port: 0}, {endPort: 1}") + "\n---\n" + heads["pod"] + "x: y\n", "1 NetworkPolicy default/x\n2 Pod default/x\n! 1: NetworkPolicy default/x: spec.ingress[0].ports[0].port:\n! 1: NetworkPolicy default/x: spec.ingress[0].ports[1].endPort:\n! 2: Pod default/x: x: unknown field\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects, errs := parse(c.file, []byte(c.text))
			var got []string
			for _, o := range objects {
				got = append(got, fmt.Sprintf("%d %s", o.document, o.key))
			}
			for _, e := range errs {
				got = append(got, fmt.Sprintf("! %d: %s: %s: %s", e.Document, e.Object, e.Field, e.Message))
			}
			want := strings.Split(strings.TrimSuffix(c.want, "\n"), "\n")
			if c.want == "" {
				want = nil
			}
			if len(got) != len(want) {
				t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
			for i := range want {
				if !strings.HasPrefix(got[i], want[i]) {
					t.Errorf("got  %s\nwant %s", got[i], want[i])
				}
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	_, errs := parse("f.yaml", []byte("apiVersion: v1\nkind: \"\\e[2J\\n\"\n"))
	if len(errs) != 1 {
		t.Fatalf("errors %v", errs)
	}
	errs[0].File = "\x1b.yaml"
	if s := printable(errs[0]).String(); strings.ContainsAny(s, "\x1b\n") || !strings.Contains(s, `"`) {
		t.Errorf("not printable: %q", s)
	}
}
