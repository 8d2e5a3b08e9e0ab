package format

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
)

var evil = []string{"", "shop/web-1", "\x1b[31m\x07\n", "\u009b2J\u202e\u2028\U000e0001", "\xff\xc3\x28", "replaced \ufffd", "grün 水", `\x1b "quoted" \u001b`}

func holdPrintable(t *testing.T, line string) {
	t.Helper()
	for _, r := range line {
		if !unicode.IsPrint(r) {
			t.Errorf("%q in %q", r, line)
		}
	}
}

// FuzzSafe: nothing unprintable is left; what is printable stays, byte for byte, and saying
// it twice changes nothing.
func FuzzSafe(f *testing.F) {
	for _, s := range evil {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Safe(s)
		holdPrintable(t, got)
		if again := Safe(got); again != got {
			t.Errorf("%q is %q, then %q", s, got, again)
		}
		if s == strings.ToValidUTF8(s, "") && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}

// FuzzSafeJSON: the text means what it meant, and shows nothing unprintable but line ends.
func FuzzSafeJSON(f *testing.F) {
	for _, s := range evil {
		f.Add(s, "  ")
	}
	f.Fuzz(func(t *testing.T, s, other string) {
		in := map[string]any{s: []any{other, 1.5, nil}, "k": s}
		compact, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		indented, err := json.MarshalIndent(in, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{compact, indented} {
			got := SafeJSON(text)
			holdPrintable(t, strings.ReplaceAll(string(got), "\n", ""))
			var before, after any
			if json.Unmarshal(text, &before) != nil || json.Unmarshal(got, &after) != nil {
				t.Fatalf("%q became %q", text, got)
			}
			a, _ := json.Marshal(before)
			b, _ := json.Marshal(after)
			if string(a) != string(b) {
				t.Errorf("%q became %q", text, got)
			}
		}
	})
}

// FuzzLine: a line of the API, from whoever answers it, is refused or shown in one printable
// line and a block of them.
func FuzzLine(f *testing.F) {
	for _, s := range evil {
		name, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(strings.ReplaceAll(`{"flow":{"verdict":"DROPPED","uuid":N,"IP":{"source":N,"destination":N},"l4":{"TCP":{"source_port":1,"destination_port":4294967295}},"source":{"namespace":N,"pod_name":N,"labels":[N]},`+
			`"destination":{"ID":7,"labels":["reserved:x"]},"Summary":N,"drop_reason_desc":130},"node_name":N,"time":"2026-11-24T12:00:00Z"}`, "N", string(name)))
	}
	f.Add(`{"flow":{"verdict":99,"extensions":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"{\"kind\":\"ended\",\"end\":\"\\u001b\",\"duration\":1e300,\"packets\":{},\"bytes\":{\"sent\":9223372036854775807},\"egress\":{\"kind\":\"\\u009b\",\"name\":\"\\n\"}}"}}}`)
	f.Add(`{"lost_events":{"source":7,"num_events_lost":"18446744073709551615"},"time":"9999-12-31T23:59:59.999999999Z"}`)
	f.Add(`{"node_status":{}}`)
	f.Fuzz(func(t *testing.T, line string) {
		m, err := Parse([]byte(line))
		if err != nil {
			return
		}
		style := Style{Zone: time.UTC}
		holdPrintable(t, Compact(m, style))
		for part := range strings.SplitSeq(Dict(m, style), "\n") {
			holdPrintable(t, part)
		}
	})
}
