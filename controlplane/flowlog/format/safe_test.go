package format

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"shop/web-1":       "shop/web-1",
		"grün 水":           "grün 水",
		"a\x1b[31mb":       `a\x1b[31mb`,
		"a\nb\rc\td":       `a\x0ab\x0dc\x09d`,
		"a\u009b31m":       `a\x9b31m`,
		"a\xffb":           `a\xffb`,
		"abc\u202edef":     `abc\u202edef`,
		"\u2028":           `\u2028`,
		"replaced \ufffd!": "replaced \ufffd!",
	} {
		if got := Safe(in); got != want {
			t.Errorf("Safe(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSafeJSON(t *testing.T) {
	in := "é\u009b31m \u202e \U000e0001 水"
	raw := []byte("{\n  \"a\": \"" + in + "\"\n}\n")
	out := SafeJSON(raw)
	var back map[string]string
	if err := json.Unmarshal(out, &back); err != nil || back["a"] != in {
		t.Errorf("%s came back as %q, %v", out, back["a"], err)
	}
	if strings.ContainsAny(string(out), "\u009b\u202e\U000e0001") || !strings.Contains(string(out), "é") {
		t.Errorf("left unsafe: %q", out)
	}
}

// A flow from an agent that was fooled writes no terminal escape, in no form.
func TestNamesCannotSteerTheTerminal(t *testing.T) {
	evil := "\x1b]0;pwned\x07\u009b2J\n"
	f := &flowpb.Flow{
		Verdict: flowpb.Verdict_DROPPED, Summary: evil, NodeName: evil, Uuid: evil,
		IP:          &flowpb.IP{Source: evil, Destination: evil},
		Source:      &flowpb.Endpoint{Namespace: evil, PodName: evil, Labels: []string{evil}},
		Destination: &flowpb.Endpoint{Labels: []string{"reserved:" + evil}},
		SourceNames: []string{evil}, DestinationNames: []string{evil},
	}
	m := &observerpb.GetFlowsResponse{
		ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: f}, NodeName: evil, Time: timestamppb.Now(),
	}
	style := Style{Zone: time.UTC}
	line, block := Compact(m, style), Dict(m, style)
	if strings.ContainsAny(line+block, "\x1b\x07\u009b") || strings.Contains(line, "\n") {
		t.Errorf("line %q\nblock %q", line, block)
	}
}

func TestColourOnlyWhenAsked(t *testing.T) {
	m := &observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{Verdict: flowpb.Verdict_FORWARDED}}}
	if s := Compact(m, Style{Colour: true}); !strings.Contains(s, green+"FORWARDED"+reset) {
		t.Errorf("no colour in %q", s)
	}
	if s := Compact(m, Style{}); strings.Contains(s, "\x1b") {
		t.Errorf("colour in %q", s)
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999949: "999.9 kB", 999950: "1.0 MB", 1 << 63: "9.2 EB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0s", 0.0001234: "120µs", 1.23456: "1.23s", 75.4: "1m15s"} {
		if got := Duration(s); got != want {
			t.Errorf("Duration(%v) = %s, want %s", s, got, want)
		}
	}
}
