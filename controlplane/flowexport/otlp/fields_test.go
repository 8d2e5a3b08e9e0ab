package otlp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"

	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/flowfeed"
)

// names are what is in a record but its time, name and severity.
func names(r *flowlog.Record, f Fields) (out []string) {
	record := logRecord(r, flowfeed.Node, f, flowfeed.At)
	if record.Body().AsString() != "" {
		out = append(out, fieldBody)
	}
	record.WalkAttributes(func(kv attribute.KeyValue) bool { out = append(out, string(kv.Key)); return true })
	return out
}

// variety are records that together have every attribute.
func variety(t *testing.T) []*flowlog.Record {
	with := func(e datapath.Event, change func(*datapath.Event)) datapath.Event { change(&e); return e }
	process := &datapath.Process{PID: 1, Name: "a", Executable: "/bin/a", Start: flowfeed.At, Cgroup: "/kubepods/pod1/" + strings.Repeat("a", 64)}
	return flowfeed.New(t, 0).Records(
		flowfeed.Began(1), flowfeed.Ended(2), flowfeed.Denied(3),
		with(flowfeed.Denied(4), func(e *datapath.Event) { e.Direction, e.Rule = datapath.Egress, [2]uint32{301, 0} }),
		with(flowfeed.Began(5), func(e *datapath.Event) { e.Rule = [2]uint32{300, 300}; e.PickedUp = true }),
		with(flowfeed.Began(6), func(e *datapath.Event) { e.Process, e.Listener = process, process }),
		with(flowfeed.Ended(7), func(e *datapath.Event) { e.TCP[1] = e.TCP[0] }),
		with(flowfeed.Denied(8), func(e *datapath.Event) { e.KernelReason, e.Reason = "NO_SOCKET", datapath.ReasonKernel }),
		with(flowfeed.Began(0), func(e *datapath.Event) { e.Protocol = 1 }),
		with(flowfeed.Began(9), func(e *datapath.Event) {
			e.Endpoint, e.Source, e.Destination = [2]uint32{}, netip.MustParseAddrPort("192.168.0.10:1"), netip.MustParseAddrPort("10.96.0.10:53")
		}),
		with(flowfeed.Began(10), func(e *datapath.Event) {
			e.Endpoint, e.Source, e.Destination = [2]uint32{}, netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("192.168.0.10:1")
		}),
		with(flowfeed.Began(11), func(e *datapath.Event) { e.Endpoint = [2]uint32{2, 1} }),
	)
}

// Whatever a flow may have can be asked for, and what can be asked for is something.
func TestFieldNamesAreThoseOfFlows(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range variety(t) {
		for _, name := range names(r, Fields{}) {
			seen[name] = true
			if !slices.Contains(fieldNames, name) {
				t.Errorf("nobody can ask for %s", name)
			}
		}
	}
	seen["weir.suppressed"] = true // of records that the log makes itself, of the kernel's counts
	for _, name := range fieldNames {
		if !seen[name] {
			t.Errorf("no flow had %s", name)
		}
	}
}

func TestFields(t *testing.T) {
	ended := variety(t)[1]
	all := names(ended, Fields{})
	for _, c := range []struct {
		fields []string
		want   []string
	}{
		{nil, all},
		{[]string{"weir.verdict", "body"}, []string{"body", "weir.verdict"}},
		{[]string{"source.k8s", "source.k8s.pod.name"}, []string{"source.k8s.namespace.name", "source.k8s.pod.name", "source.k8s.workload.kind", "source.k8s.workload.name"}},
		{[]string{"weir.ingress.rule", "process.pid"}, []string{"weir.ingress.rule.kind", "weir.ingress.rule.namespace", "weir.ingress.rule.name", "weir.ingress.rule.index", "process.pid"}},
		{[]string{"weir.reason"}, nil}, // it has none
	} {
		f, err := ParseFields(c.fields)
		if err != nil {
			t.Errorf("%v: %v", c.fields, err)
			continue
		}
		if got := names(ended, f); !slices.Equal(got, c.want) {
			t.Errorf("%v: got %v\nwant %v", c.fields, got, c.want)
		}
	}
	for _, bad := range []string{"", ".", "sourc", "source.", "source.k8s.", "Source", "weir.lost", "weir.verdict.x", " weir.verdict", "time"} {
		if _, err := ParseFields([]string{"body", bad}); err == nil || !strings.Contains(err.Error(), `"`+bad+`"`) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Lost events are told whole, whatever is wanted of flows.
func TestFieldsAreOfFlowsAlone(t *testing.T) {
	f, err := ParseFields([]string{"weir.verdict"})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(flowlog.LostRecord(3, "", flowfeed.At), f); !slices.Equal(got, []string{"body", "weir.lost.records", "weir.lost.cause"}) {
		t.Errorf("%v", got)
	}
}
