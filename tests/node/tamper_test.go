package node

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/lab"
)

// What somebody with root does to the pinned state is put right.
func TestTamperedStateIsRepaired(t *testing.T) {
	e := newEnvWith(t, lab.Options{Agent: []string{"--recheck", "100ms"}},
		"pods.yaml", pod("ns", "a")+pod("ns", "b"), "np.yaml", policy("ns", "np", denyAll))
	e.add("ns/a", "ns/b")
	closed := probe{"ns/a", "ns/b", "tcp", portHTTP, lab.Silent}
	e.check(closed)
	links := filepath.Join(e.BPFFSDir(), "links")
	attached := len(podLinks(links))
	for what, do := range map[string]func() error{
		"the links on tracepoints": func() error { return os.RemoveAll(filepath.Join(e.BPFFSDir(), "observers")) },
		"all links of a pod":       func() error { return removePods(links) },
		"the programs": func() error {
			array, err := ebpf.LoadPinnedMap(maps.Path(e.BPFFSDir(), bpf.StubMapTcProgs), nil)
			if err != nil {
				return err
			}
			defer array.Close()
			for i := range array.MaxEntries() {
				_ = array.Delete(i) // half of the places are empty
			}
			return nil
		},
		"every ruleset": func() error {
			rulesets, err := ebpf.LoadPinnedMap(maps.Path(e.BPFFSDir(), bpf.WeirMapRulesets), nil)
			if err != nil {
				return err
			}
			defer rulesets.Close()
			var id uint32
			var r bpf.WeirRuleset
			for all := rulesets.Iterate(); all.Next(&id, &r); {
				r.Allow, r.DefaultRule = 1, 3
				if err := rulesets.Put(id, r); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		e.must(what, do())
		began := time.Now()
		e.eventually(what+" to be put right", 20*time.Second, func() bool {
			whole, err := loader.Intact(e.BPFFSDir())
			answer, failed := e.host("ns/a").Probe("tcp", e.host("ns/b").Addr(4), portHTTP)
			return whole && loader.ObserversIntact(e.BPFFSDir()) && err == nil && len(podLinks(links)) == attached && answer == lab.Silent && failed == nil
		})
		t.Logf("%s: put right within %s", what, time.Since(began).Round(time.Millisecond))
		e.check(closed)
	}
	e.apply("np.yaml", "")
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, lab.Answered})
}

// podLinks are the pins of all links of pods' interfaces.
func podLinks(links string) []string {
	pins, _ := filepath.Glob(filepath.Join(links, "weir*", "*")) // the pattern is well-formed
	return pins
}

func removePods(links string) error {
	pins := podLinks(links)
	if len(pins) == 0 {
		return fmt.Errorf("no links of pods in %s", links)
	}
	for _, pin := range pins {
		if err := os.Remove(pin); err != nil {
			return err
		}
	}
	return nil
}
