package loader

import (
	"fmt"
	"os"
	"strings"
	"testing"

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

// Whatever map a program writes or reads has a knob, or a reason not to.
func TestEveryMapHasASize(t *testing.T) {
	spec, err := bpf.LoadWeir()
	if err != nil {
		t.Fatal(err)
	}
	fixed := map[string]bool{
		bpf.WeirMapEndpointIndex: true, bpf.WeirMapEndpoints: true, bpf.WeirMapEndpointStates: true, bpf.WeirMapFragments: true, // by endpoint number
		bpf.WeirMapFlowSlots: true, bpf.WeirMapFlowFree: true, // as flows
		bpf.WeirMapPeers:    true, // as addresses and prefixes
		bpf.WeirMapCounters: true, bpf.WeirMapSweepTimer: true,
	}
	for name := range spec.Maps {
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
	spec, err := bpf.LoadWeir()
	if err != nil {
		t.Fatal(err)
	}
	for name, ring := range sizable {
		size := fmt.Sprint(spec.Maps[name].MaxEntries)
		if ring {
			size = fmt.Sprint(spec.Maps[name].MaxEntries>>20, " MiB")
		}
		if row := fmt.Sprintf("| `%s` | %s |", name, size); !strings.Contains(string(text), row) {
			t.Errorf("docs/limits.md has no %q", row)
		}
	}
}
