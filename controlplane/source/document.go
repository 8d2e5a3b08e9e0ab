package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/controlplane/api"
)

// document is one document of a file as JSON; err says why it is none.
type document struct {
	number int // 1-based, counting empty ones as YAML does
	json   []byte
	err    *api.ObjectError
}

var bom = []byte("\ufeff")

// documents of a file; name decides between JSON and YAML. Empty documents are left out.
func documents(name string, data []byte) []document {
	data = bytes.TrimPrefix(data, bom)
	if !utf8.Valid(data) {
		return []document{{number: 1, err: &api.ObjectError{Message: "is not UTF-8 text: save it as UTF-8"}}}
	}
	if strings.HasSuffix(name, ".json") {
		return jsonDocuments(data)
	}
	return yamlDocuments(data)
}

func jsonDocuments(data []byte) []document {
	var out []document
	for d, n := json.NewDecoder(bytes.NewReader(data)), 1; ; n++ {
		var raw json.RawMessage
		err := d.Decode(&raw)
		if err == io.EOF {
			return out
		}
		if err != nil {
			at := d.InputOffset()
			if e, ok := errors.AsType[*json.SyntaxError](err); ok {
				at = e.Offset
			}
			line := 1 + bytes.Count(data[:min(int(at), len(data))], []byte("\n"))
			return append(out, document{number: n, err: &api.ObjectError{
				Message: fmt.Sprintf("line %d: not valid JSON: %v", line, err)}})
		}
		out = append(out, document{number: n, json: raw})
	}
}

// chunk is the text of one YAML document; lines is how many lines precede it.
type chunk struct {
	number, lines int
	text          []byte
}

// splitYAML cuts at document markers: "---" and "..." at the start of a line, where
// YAML allows nothing else. The text before the first marker is a document only if it
// holds more than comments and directives; those belong to the document they precede.
func splitYAML(data []byte) []chunk {
	var out []chunk
	current, line := chunk{number: 1}, 0
	bare := true // current has no marker of its own yet
	next := func(marked bool) {
		if bare && !hasContent(current.text) {
			bare = !marked
			return
		}
		out = append(out, current)
		current, bare = chunk{number: current.number + 1, lines: line}, !marked
	}
	for l := range bytes.Lines(data) {
		switch marker(l) {
		case "---":
			next(true)
		case "...":
			next(false)
			l = []byte("\n")
		}
		current.text = append(current.text, l...)
		line++
	}
	if !bare || hasContent(current.text) {
		out = append(out, current)
	}
	return out
}

// marker that a line begins with, or "".
func marker(line []byte) string {
	if len(line) < 3 || len(line) > 3 && !bytes.ContainsRune([]byte(" \t\r\n"), rune(line[3])) {
		return ""
	}
	if m := string(line[:3]); m == "---" || m == "..." {
		return m
	}
	return ""
}

// hasContent is false for blank lines, comments and directives.
func hasContent(text []byte) bool {
	for l := range bytes.Lines(text) {
		if t := bytes.TrimSpace(l); len(t) > 0 && t[0] != '#' && l[0] != '%' {
			return true
		}
	}
	return false
}

func yamlDocuments(data []byte) []document {
	var out []document
	for _, c := range splitYAML(data) {
		j, err := yaml.YAMLToJSONStrict(c.text)
		if err == nil {
			err = c.checkTail()
		}
		switch {
		case err != nil:
			out = append(out, document{number: c.number, err: yamlError(err, c.lines)})
		case string(j) != "null":
			out = append(out, document{number: c.number, json: j})
		}
	}
	return out
}

// checkTail finds text after the document's end, which the parser does not look at. A
// root that is a block mapping at the left margin has no such place.
func (c chunk) checkTail() error {
	for l := range bytes.Lines(c.text) {
		if t := bytes.TrimSpace(l); len(t) == 0 || t[0] == '#' || l[0] == '%' {
			continue
		}
		if b := l[0] | 0x20; b >= 'a' && b <= 'z' {
			return nil
		}
		if marker(l) == "" || hasContent(l[3:]) {
			break
		}
	}
	d := yamlv2.NewDecoder(bytes.NewReader(c.text))
	var ignored any
	if err := d.Decode(&ignored); err != nil {
		return err
	}
	if err := d.Decode(&ignored); err != io.EOF {
		if err == nil {
			err = errors.New("a second document begins without a line ---")
		}
		return err
	}
	return nil
}

var (
	yamlLine  = regexp.MustCompile(`line (\d+)`)
	yamlTwice = regexp.MustCompile(`line (\d+): key "([^"]*)" already set in map`)
)

// yamlError words a parser's error with the lines of the file, which the parser counts
// from the document.
func yamlError(err error, lines int) *api.ObjectError {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = yamlLine.ReplaceAllStringFunc(text, func(m string) string {
		n, _ := strconv.Atoi(m[len("line "):])
		return fmt.Sprintf("line %d", n+lines)
	})
	if m := yamlTwice.FindStringSubmatch(text); m != nil {
		return &api.ObjectError{Field: m[2], Message: fmt.Sprintf("line %s: the key %q is there twice: remove one", m[1], m[2])}
	}
	text = strings.TrimPrefix(text, "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n")
	return &api.ObjectError{Message: "not valid YAML: " + strings.Join(strings.Fields(text), " ")}
}
