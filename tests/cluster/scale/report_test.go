package scale

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/cluster/latency"
	"github.com/weirnet/weir/tests/lab"
)

// figure is one line of the report.
type figure struct {
	What  string  `json:"what"`
	Unit  string  `json:"unit,omitempty"`
	Value float64 `json:"value"`
}

// report collects figures.
type report struct {
	here    map[string]*lab.Pod // by name
	begun   time.Time
	figures []figure
}

func newReport() *report { return &report{here: map[string]*lab.Pod{}, begun: time.Now()} }

func split(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
}

// say a figure, now and in the table.
func (w *world) say(what, unit string, value float64) {
	w.Helper()
	w.figures = append(w.figures, figure{what, unit, value})
	w.Logf("%-64s %s", what, strings.TrimSpace(number(value)+" "+unit))
}

func (w *world) times(what string, f latency.Figures) {
	w.Helper()
	w.say(what+": p50", "ms", latency.Milliseconds(f.At(.5)))
	w.say(what+": p99", "ms", latency.Milliseconds(f.At(.99)))
}

func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, load %s, %.0f min\n| what | figure |\n|---|---|\n", kernel(), load(), time.Since(r.begun).Minutes())
	for _, f := range r.figures {
		fmt.Fprintf(&b, "| %s | %s |\n", f.What, strings.TrimSpace(number(f.Value)+" "+f.Unit))
	}
	return b.String()
}

// write the figures as JSON; "" is nowhere.
func (r *report) write(path string) error {
	if path == "" {
		return nil
	}
	text, err := json.MarshalIndent(struct {
		Date    string   `json:"date"`
		Kernel  string   `json:"kernel"`
		Load    string   `json:"load"`
		Pods    int      `json:"pods"`
		Policy  int      `json:"policies"`
		Local   int      `json:"podsHere"`
		Figures []figure `json:"figures"`
	}{r.begun.UTC().Format(time.RFC3339), kernel(), load(), *pods, *policies, *local, r.figures}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

// usage is what a process takes.
type usage struct {
	resident, anonymous, peak float64 // MiB
	cpu                       time.Duration
}

func (w *world) usage() (u usage) {
	w.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.node.AgentPid()))
	w.must(err)
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
		switch name {
		case "VmRSS":
			u.resident = kib / 1024
		case "RssAnon":
			u.anonymous = kib / 1024
		case "VmHWM":
			u.peak = kib / 1024
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.node.AgentPid()))
	w.must(err)
	fields := strings.Fields(string(stat)[strings.LastIndex(string(stat), ")")+1:])
	const hertz = 100 // USER_HZ of every architecture
	for _, ticks := range fields[11:13] {
		n, err := strconv.Atoi(ticks)
		w.must(err)
		u.cpu += time.Duration(n) * time.Second / hertz
	}
	if u.resident == 0 || u.peak < u.resident {
		w.Fatalf("/proc says of the agent: %s", status)
	}
	return u
}

// switches is how often its threads waited.
func (w *world) switches() (n int) {
	w.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", w.node.AgentPid()))
	w.must(err)
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for line := range strings.Lines(string(text)) {
			if count, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				i, err := strconv.Atoi(strings.TrimSpace(count))
				w.must(err)
				n += i
			}
		}
	}
	return n
}

// heap is what is in use in it after a collection, in MiB.
func (w *world) heap() float64 {
	w.Helper()
	text, err := w.client.Profile(w.ctx, url.Values{"kind": {"heap"}, "text": {"1"}})
	w.must(err)
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "# HeapAlloc = "); ok {
			bytes, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
			w.must(err)
			return bytes / (1 << 20)
		}
	}
	w.Fatalf("the heap profile has no HeapAlloc: %.300s", text)
	return 0
}

// profile is put beside the figures.
func (w *world) profile(name string, q url.Values) {
	if *out == "" {
		return
	}
	b, err := w.client.Profile(w.ctx, q)
	if err == nil {
		err = os.WriteFile(fmt.Sprintf("%s.%s.pb.gz", strings.TrimSuffix(*out, ".json"), name), b, 0o644)
	}
	if err != nil {
		w.Errorf("profile %s: %v", name, err)
	}
}

// maps says how much memory the kernel holds for them.
func (w *world) maps() {
	w.Helper()
	all := map[ebpf.MapID]float64{}
	w.must(filepath.WalkDir(w.node.BPFFSDir(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return nil // a program, a link
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		bytes, _ := info.Memlock() // of an empty trie: nothing
		all[id] = float64(bytes) / (1 << 20)
		return nil
	}))
	sum := 0.0
	for _, mib := range all {
		sum += mib
	}
	if len(all) < 10 || sum < 10 {
		w.Errorf("%d maps are pinned, of %.1f MiB", len(all), sum)
	}
	w.say("all kernel maps, at their default sizes", "MiB", sum)
}
