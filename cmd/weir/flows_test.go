package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
)

// record is a flow as the agent writes it.
func record(t *testing.T) string {
	t.Helper()
	x, err := json.Marshal(api.FlowExtension{
		Kind: api.FlowDenied, Reason: "policy",
		Ingress: &api.FlowRule{ID: 301, Verdict: "DROPPED", Kind: "default-deny", IsolatedBy: []api.Ref{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"}}},
	})
	must(t, err)
	value, err := json.Marshal(string(x))
	must(t, err)
	return fmt.Sprintf(`{"flow":{"time":"2026-11-24T12:00:00.5Z","verdict":"DROPPED","IP":{"source":"10.0.0.2","destination":"10.0.0.3","ipVersion":"IPv4"},`+
		`"l4":{"TCP":{"source_port":40001,"destination_port":6379,"flags":{"SYN":true}}},"source":{"ID":1,"identity":1001,"namespace":"shop","pod_name":"web-1"},`+
		`"destination":{"ID":2,"identity":1002,"namespace":"shop","pod_name":"db-0\u001b[2J"},"Type":"L3_L4","Summary":"TCP Flags: SYN","some_newer_field":7,`+
		`"extensions":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":%s}},"node_name":"worker-1","time":"2026-11-24T12:00:00.5Z"}`, value)
}

const lostRecord = `{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"12"},"node_name":"worker-1","time":"2026-11-24T12:00:01Z"}`

func TestFlowOutputs(t *testing.T) {
	lines := record(t) + "\n" + lostRecord + "\n"
	a := startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, lines) }})
	for _, o := range []string{"compact", "wide", "dict"} {
		r := a.weir(t, "flows", "-o", o)
		if r.status != exitDone || r.err != "" || strings.Contains(r.out, "\x1b") {
			t.Errorf("-o %s: status %d, err %q, out %q", o, r.status, r.err, r.out)
		}
		golden(t, "flows-"+o, r.out)
	}
	if r := a.weir(t, "flows", "-o", "json"); r.status != exitDone || r.out != lines {
		t.Errorf("-o json: status %d, out %s, want %s", r.status, r.out, lines)
	}
}

func TestRefusedFilterIsNamedAsItWasGiven(t *testing.T) {
	a := startAgent(t, map[string]any{api.PathFlows: &api.Error{Message: `from-label: "a b" is no label selector`}})
	want := "weir flows: --from-label: \"a b\" is no label selector\nRun 'weir flows --help' for what there is.\n"
	for _, more := range [][]string{nil, {"--top", "src"}} {
		if r := a.weir(t, append([]string{"flows", "--from-label", "a b"}, more...)...); r.status != exitUsage || r.err != want || r.out != "" {
			t.Errorf("%v: status %d, out %q, err %q, want %q", more, r.status, r.out, r.err, want)
		}
	}
}

func TestFlowQueries(t *testing.T) {
	for args, want := range map[string]string{
		"":                                  "last=20",
		"-f":                                "follow=1&last=20",
		"-f --last 0":                       "follow=1&new=1",
		"--since 5m":                        "since=5m0s",
		"--since 5m --last 3":               "last=3&since=5m0s",
		"--verdict dropped --pod shop/db-0": "last=20&pod=shop%2Fdb-0&verdict=dropped",
		"--since 5m --until 1m":             "since=5m0s&until=1m0s",
		"--from-pod a/b --to-port 80 --not --ip 10.0.0.0/8":     "from-pod=a%2Fb&last=20&not-address=10.0.0.0%2F8&to-port=80",
		"--not --verdict dropped --kind new --not --kind ended": "kind=new&last=20&not-kind=ended&not-verdict=dropped",
		"--not=false --process nginx --from-service a/b":        "from-service=a%2Fb&last=20&process=nginx",
		"--label app=web,tier!=db --namespace shop":             "label=app%3Dweb%2Ctier%21%3Ddb&last=20&namespace=shop",
		"--policy a/b --policy a/c --port 80 --protocol tcp":    "last=20&policy=a%2Fb&policy=a%2Fc&port=80&protocol=tcp",
	} {
		a := startAgent(t, map[string]any{api.PathFlows: func(http.ResponseWriter, *http.Request) {}})
		a.weir(t, append([]string{"flows"}, strings.Fields(args)...)...)
		if len(a.asked()) != 1 || a.asked()[0] != api.PathFlows+"?"+want {
			t.Errorf("weir flows %s asked %q, want %s", args, a.asked(), want)
		}
	}
}

// -f ends well when it is interrupted, and badly when the agent goes.
func TestFollowEnds(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	a := startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, lostRecord)
		_ = http.NewResponseController(w).Flush()
		interrupt()
		<-r.Context().Done()
	}})
	if r := weir(ctx, a.dir, "flows", "-f"); r.status != exitDone || r.err != "" {
		t.Errorf("interrupted: status %d, err %q", r.status, r.err)
	}
	a = startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, lostRecord) }})
	if r := a.weir(t, "flows", "-f"); r.status != exitFailed || r.err != "weir flows: the agent ended the stream: it stopped\n" {
		t.Errorf("agent gone: status %d, err %q", r.status, r.err)
	}
	a = startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, lostRecord)
		fmt.Fprint(w, lostRecord[:20])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // as when a reader took nothing for too long
	}})
	if r := a.weir(t, "flows", "-f", "-o", "json"); r.status != exitFailed || strings.Count(r.out, "\n") != 1 || !strings.HasPrefix(r.err, "weir flows: the agent cut the stream off: ") || !strings.Contains(r.err, "--since") {
		t.Errorf("cut off: status %d, out %q, err %q", r.status, r.out, r.err)
	}
}

func TestFlowsOfNobody(t *testing.T) {
	a := startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "not a record") }})
	r := a.weir(t, "flows")
	if r.status != exitFailed || !strings.HasPrefix(r.err, "weir flows: read flow record: ") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("status %d, err %q", r.status, r.err)
	}
}

// A pipe gets no colour, whatever the terminal.
func TestPipedWithoutColour(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer f.Close()
	t.Setenv("TERM", "xterm-256color")
	if coloured(f) || width(f) != 0 {
		t.Errorf("a file is taken for a terminal")
	}
	a := startAgent(t, map[string]any{api.PathStatus: ill()})
	if status := run(t.Context(), []string{"status", "--state-dir", a.dir}, streams{out: f, err: f}); status != exitDone {
		t.Errorf("status %d", status)
	}
	text, err := os.ReadFile(f.Name())
	must(t, err)
	if strings.Contains(string(text), "\x1b") || len(text) == 0 {
		t.Errorf("wrote %q", text)
	}
}
