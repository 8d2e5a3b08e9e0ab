package loader

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
)

func TestSizes(t *testing.T) {
	s, err := ParseSizes([]string{"facts=64", "addresses=100", "denial_events=8192"})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadWeir()
	if err != nil {
		t.Fatal(err)
	}
	s.set(spec)
	for name, want := range map[string]uint32{"facts": 64, "addresses": 100, "denial_events": 8192, "peers": 1 + 100 + 16384} {
		if got := spec.Maps[name].MaxEntries; got != want {
			t.Errorf("%s: %d entries, want %d", name, got, want)
		}
	}
}

func TestBadSizes(t *testing.T) {
	for text, want := range map[string]string{
		"facts":              "from 16",
		"facts=":             "from 16",
		"facts=15":           "from 16",
		"facts=99999999":     "to 16777216",
		"facts=-1":           "from 16",
		"endpoints=64":       "NAME one of addresses, ",
		"flow_events=5000":   "power of two",
		"denial_events=1024": "from 4096",
	} {
		if _, err := ParseSizes([]string{text}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// everyMap is the maps of all programs that work on the pinned ones.
func everyMap(t *testing.T) map[string]*ebpf.MapSpec {
	t.Helper()
	out := map[string]*ebpf.MapSpec{}
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadWeir, bpf.LoadSock, bpf.LoadObserve} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name, m := range spec.Maps {
			if was := out[name]; was != nil && !strings.HasPrefix(name, ".") &&
				(was.Type != m.Type || was.KeySize != m.KeySize || was.ValueSize != m.ValueSize || was.MaxEntries != m.MaxEntries || was.Flags != m.Flags) {
				t.Errorf("two programs have maps %s that are not the same", name)
			}
			out[name] = m
		}
	}
	return out
}

// Whatever map a program writes or reads has a knob, or a reason not to.
func TestEveryMapHasASize(t *testing.T) {
	fixed := map[string]bool{
		bpf.WeirMapEndpointIndex: true, bpf.WeirMapEndpoints: true, bpf.WeirMapEndpointStates: true, bpf.WeirMapFragments: true, bpf.WeirMapRefusals: true, // by endpoint number, or interface
		bpf.WeirMapFlowSlots: true, bpf.WeirMapFlowFree: true, // as flows
		bpf.WeirMapPeers:          true,                           // as addresses and prefixes
		bpf.SockMapNetnsEndpoints: true,                           // by endpoint number
		bpf.SockMapServiceLists:   true,                           // as services
		bpf.SockMapConnected:      true, bpf.SockMapTalking: true, // kept with each socket
		bpf.SockMapSocketProcess: true, bpf.SockMapTcpOpeners: true, bpf.SockMapProcessNumbers: true, bpf.SockMapProcessCount: true,
		bpf.SockMapProcessDraft: true, // one a CPU
		bpf.WeirMapCounters:     true, bpf.WeirMapSweepTimer: true,
	}
	for name := range everyMap(t) {
		if _, ok := sizable[name]; !ok && !fixed[name] && !strings.HasPrefix(name, ".") {
			t.Errorf("map %s has no knob", name)
		}
	}
}

// docs/limits.md has every size that can be chosen, as it is.
func TestLimitsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	all := everyMap(t)
	for name, ring := range sizable {
		size := fmt.Sprint(all[name].MaxEntries)
		if ring {
			if size = fmt.Sprint(all[name].MaxEntries>>20, " MiB"); all[name].MaxEntries < 1<<20 {
				size = fmt.Sprint(all[name].MaxEntries>>10, " KiB")
			}
		}
		if row := fmt.Sprintf("| `%s` | %s |", name, size); !strings.Contains(string(text), row) {
			t.Errorf("docs/limits.md has no %q", row)
		}
	}
}

// The chart refuses a name that the agent would.
func TestChartKnowsTheSizes(t *testing.T) {
	text, err := os.ReadFile("../../deploy/chart/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties struct {
			MapSizes struct {
				PropertyNames struct{ Enum []string }
			}
		}
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	if want := slices.Sorted(maps.Keys(sizable)); !slices.Equal(schema.Properties.MapSizes.PropertyNames.Enum, want) {
		t.Errorf("values.schema.json: mapSizes has the names %q, want %q", schema.Properties.MapSizes.PropertyNames.Enum, want)
	}
}
