package format

import (
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
)

func TestProcess(t *testing.T) {
	start := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	p := &api.FlowProcess{PID: 812, Name: "curl\x1b[2J", Executable: "/usr/bin/curl", ContainerID: "c0ffee", Start: &start}
	if got, want := processShort(p), ` curl\x1b[2J[812]`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := processText(p, Style{Zone: time.UTC}), `curl\x1b[2J[812]  /usr/bin/curl  container c0ffee  since 2026-11-24T12:00:00Z`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := processShort(&api.FlowProcess{PID: 7}), " ?[7]"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if processShort(nil)+processText(nil, Style{}) != "" {
		t.Error("a process that is not known is named")
	}
	x := api.FlowExtension{TCPSource: &api.FlowTCP{RTT: 0.0012, Retransmits: 3}, TCPDestination: &api.FlowTCP{}}
	if got, want := connection(x), ", RTT 1.2ms with 3 sent again (source), RTT not measured (destination)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
