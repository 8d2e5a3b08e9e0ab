package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var quiet = slog.New(slog.DiscardHandler)

// node is one that has something to say of everything.
func node() Sources {
	isolating := []policy.Ref{{Namespace: "shop", Name: "a"}, {Namespace: "shop", Name: "b"}}
	rules := map[uint32]policy.Rule{
		300: {ID: 300, Kind: policy.KindDefaultDeny, IsolatedBy: isolating},
		301: {ID: 301, Kind: policy.KindRefused, IsolatedBy: isolating[:1]},
	}
	return Sources{
		Status: func(context.Context) (api.Status, error) {
			return api.Status{
				Node: "worker-1", Version: "0.1.0", Started: time.Unix(1e9, 0), Revision: api.Revision{Desired: 8, Applied: 7}, Epoch: 12,
				Endpoints: 5, Chained: 2, Unprotected: 6, Errors: make([]api.ObjectError, 3), Maps: []api.MapUse{{Name: "facts", Used: 10, Most: 100}},
				Flows:   api.FlowStatus{Active: 9, Parked: 4, Resent: 3, Log: &api.FlowLogStatus{Spill: &api.FlowSpillStatus{Bytes: 1}, Read: 77, Readers: []api.FlowReader{{Name: "hubble", Open: 1, Taken: 5, Lost: 6, Cut: 1}}}},
				Exports: []api.ExportStatus{{Export: "otlp", Exported: 11, Queued: 3, Lost: map[string]uint64{"queue": 5}, Failures: 2, Error: "away"}},
			}, nil
		},
		Policies: func() []api.Policy { return []api.Policy{{Enforced: api.LastGood}} },
		Counters: func() (datapath.Counters, error) {
			return datapath.Counters{FlowsNew: 10, FlowsUpdated: 82, EventsEmitted: 90, EventsLost: 2, DenialsLost: 1, Drops: map[datapath.Reason]uint64{1: 42}}, nil
		},
		Denials: func() ([]datapath.DenialCount, error) {
			return []datapath.DenialCount{{Endpoint: 1, Rule: 300, Direction: datapath.Ingress, Reason: 1, Packets: 30}, {Endpoint: 2, Rule: 301, Direction: datapath.Ingress, Reason: 1, Packets: 12}}, nil
		},
		Rule: func(id uint32) (policy.Rule, bool) { r, ok := rules[id]; return r, ok },
		Records: func() []flowlog.Count {
			return []flowlog.Count{{Kind: api.FlowNew, Verdict: "FORWARDED", Direction: "egress", Protocol: "tcp", Records: 7}}
		},
		Log: quiet,
	}
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, MetricsPath, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	m := NewMetrics(node())
	m.Committed(3*time.Millisecond, nil)
	m.Committed(3*time.Second, errors.New("no"))
	text := scrape(t, m)
	for _, line := range []string{
		`weir_policy_revision_desired 8`, `weir_policy_revision_applied 7`, `weir_errors 3`, `weir_endpoints{chained="true"} 2`, `weir_endpoints{chained="false"} 3`, `weir_unprotected_pods 6`,
		`weir_policies{enforced="last-good"} 1`, `weir_policies{enforced="isolates"} 0`, `weir_map_entries{map="facts"} 10`, `weir_map_capacity_entries{map="facts"} 100`,
		`weir_flows_active 9`, `weir_flows_total{event="new"} 10`, `weir_flows_total{event="updated"} 82`, `weir_flow_records_total{direction="egress",kind="new",protocol="tcp",verdict="FORWARDED"} 7`,
		`weir_dropped_packets_total{reason="policy"} 42`, `weir_dropped_packets_total{reason="spoofed source"} 0`,
		`weir_denied_packets_total{cause="default-deny",direction="ingress",namespace="shop",policy="a,b"} 30`,
		`weir_denied_packets_total{cause="refused",direction="ingress",namespace="shop",policy="a"} 12`,
		`weir_flow_events_lost_total{ring="flow_events"} 2`, `weir_flow_events_lost_total{ring="denial_events"} 1`, `weir_flow_events_read_total 77`,
		`weir_flow_reader_lost_total{reader="hubble"} 6`, `weir_flow_readers{reader="hubble"} 1`, `weir_flow_readers_cut_total{reader="hubble"} 1`,
		`weir_commit_duration_seconds_bucket{result="ok",le="0.005"} 1`, `weir_commit_duration_seconds_bucket{result="failed",le="2.5"} 0`, `weir_commit_duration_seconds_count{result="failed"} 1`,
		`weir_export_records_total{export="otlp"} 11`, `weir_export_up{export="otlp"} 0`, `weir_export_lost_records_total{cause="queue",export="otlp"} 5`, `weir_export_queued_records{export="otlp"} 3`, `weir_scrape_success{source="status"} 1`,
		`weir_parked_packets_total 4`, `weir_resent_packets_total 3`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	if !strings.Contains(text, `weir_build_info{goversion="go`) {
		t.Errorf("no build info in\n%s", text)
	}
}

// A part that cannot be had leaves the others as they are, and says so.
func TestMetricsWithoutAPart(t *testing.T) {
	s := node()
	s.Counters = func() (datapath.Counters, error) { return datapath.Counters{}, errors.New("gone") }
	text := scrape(t, NewMetrics(s))
	for line, want := range map[string]bool{`weir_scrape_success{source="counters"} 0`: true, `weir_scrape_success{source="status"} 1`: true, `weir_errors 3`: true, `weir_flows_total`: false} {
		if strings.Contains(text, "\n"+line) != want {
			t.Errorf("%s: want %v", line, want)
		}
	}
}

// Counts by policy never go down and stay within their bound, whatever comes and goes in the kernel.
func TestDeniedIsBoundedAndGrows(t *testing.T) {
	d := newDenied(3)
	rule := func(id uint32) (policy.Rule, bool) {
		return policy.Rule{Kind: policy.KindDefaultDeny, IsolatedBy: []policy.Ref{{Namespace: "ns", Name: fmt.Sprint(id)}}}, true
	}
	count := func(rule uint32, packets uint64) datapath.DenialCount {
		return datapath.DenialCount{Endpoint: 1, Rule: rule, Direction: datapath.Egress, Reason: 1, Packets: packets}
	}
	totals := func(counts ...datapath.DenialCount) (out string) {
		for _, c := range d.add(counts, rule) {
			out += fmt.Sprintf("%s/%s=%d ", c.namespace, c.policy, c.packets)
		}
		return out
	}
	for i, c := range []struct {
		counts []datapath.DenialCount
		want   string
	}{
		{[]datapath.DenialCount{count(1, 5), count(2, 1)}, "ns/1=5 ns/2=1 "},
		{[]datapath.DenialCount{count(1, 7), count(2, 1), count(3, 4)}, "ns/1=7 ns/2=1 ns/3=4 "},
		{[]datapath.DenialCount{count(1, 7), count(4, 4), count(5, 6)}, "ns/1=7 ns/2=1 ns/3=4 other/other=10 "},
		{[]datapath.DenialCount{count(1, 2), count(4, 5)}, "ns/1=9 ns/2=1 ns/3=4 other/other=11 "}, // 1 began anew
		{nil, "ns/1=9 ns/2=1 ns/3=4 other/other=11 "},
		{[]datapath.DenialCount{{Rule: 0, Packets: 3, Direction: datapath.Egress}}, "ns/1=9 ns/2=1 ns/3=4 other/other=11 "},
	} {
		if got := totals(c.counts...); got != c.want {
			t.Errorf("%d: %s, want %s", i, got, c.want)
		}
	}
}

// An address that is taken is tried again, and nothing ends because of it.
func TestServeWhereSomebodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- NewMetrics(node()).Serve(ctx, l.Addr().String(), quiet) }()
	select {
	case err := <-ended:
		t.Fatalf("ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	must(t, <-ended)
}

func promtool(t *testing.T, in io.Reader, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("promtool is not installed: `make deps` does")
	}
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = in
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

const monitoring = "../../deploy/monitoring/"

func TestPromtoolHasNothingToSay(t *testing.T) {
	text := scrape(t, NewMetrics(node()))
	if out := promtool(t, strings.NewReader(text), "check", "metrics"); out != "" {
		t.Error(out)
	}
	promtool(t, nil, "check", "rules", monitoring+"alerts.yaml")
	promtool(t, nil, "test", "rules", monitoring+"alerts_test.yaml")
}

var (
	metricName = regexp.MustCompile(`\b(weir|process|go)_[a-z0-9_]+`)
	query      = regexp.MustCompile(`"(?:expr|query)": ("(?:[^"\\]|\\.)*")`)
)

// Every query of the dashboard is one, and asks for metrics that there are; so do the alerts.
func TestDashboardAsksForWhatThereIs(t *testing.T) {
	there := names(scrape(t, NewMetrics(node())))
	dashboard, err := os.ReadFile(monitoring + "dashboard.json")
	must(t, err)
	alerts, err := os.ReadFile(monitoring + "alerts.yaml")
	must(t, err)
	rules := "groups: [{name: dashboard, rules: [\n"
	queries := query.FindAllStringSubmatch(string(dashboard), -1)
	for i, q := range queries {
		expr := strings.NewReplacer("$__rate_interval", "5m", "$job", "a", "$instance", "b").Replace(q[1])
		if !strings.Contains(expr, "label_values") && expr != `"prometheus"` {
			rules += fmt.Sprintf("{record: 'q:%d', expr: %s},\n", i, expr)
		}
	}
	if len(queries) < 25 {
		t.Fatalf("%d queries found", len(queries))
	}
	file := t.TempDir() + "/dashboard.yaml"
	must(t, os.WriteFile(file, []byte(rules+"]}]"), 0o600))
	promtool(t, nil, "check", "rules", file)
	used := metricName.FindAllString(string(dashboard)+string(alerts), -1)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(used))) {
		if !there[name] {
			t.Errorf("%s is asked for, and not exposed", name)
		}
	}
}

// names are what a scrape has a sample of.
func names(text string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			name, _, _ := strings.Cut(line, " ")
			name, _, _ = strings.Cut(name, "{")
			out[name] = true
		}
	}
	return out
}

// What docs/observe.md says of metrics is what there is.
func TestEveryMetricIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/observe.md")
	must(t, err)
	exposed := map[string]bool{}
	for name := range names(scrape(t, NewMetrics(node()))) {
		if strings.HasPrefix(name, "weir_") {
			exposed[strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")] = true
		}
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(weir_[a-z_]+)").FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = true
	}
	if !maps.Equal(exposed, documented) {
		t.Errorf("exposed %v\ndocumented %v", slices.Sorted(maps.Keys(exposed)), slices.Sorted(maps.Keys(documented)))
	}
}
