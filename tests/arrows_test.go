// Package tests holds what is true of the repository as a whole.
package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/weirnet/weir/"

// arrows say which of our packages a package may import: cmd -> controlplane -> datapath ->
// identity. The longest pattern that matches the importer counts; "x/..." is x and all below
// it. A package that matches none is an error: give it its place here.
var arrows = map[string][]string{
	"identity":                {},
	"bpf":                     {},
	"datapath":                {"identity"},
	"datapath/loader":         {"bpf", "datapath", "datapath/maps", "identity"},
	"datapath/maps":           {"bpf", "datapath", "identity"},
	"datapath/parked":         {"bpf", "datapath/maps"},
	"datapath/reader":         {"bpf", "datapath", "datapath/maps", "identity"},
	"datapath/sockets":        {"bpf", "datapath", "datapath/maps"},
	"controlplane/api":        {"datapath", "identity"},
	"controlplane/build":      {},
	"controlplane/statedir":   {},
	"controlplane/policy":     {"datapath", "identity"},
	"controlplane/source/...": {"controlplane/api", "controlplane/policy", "controlplane/statedir"},
	"controlplane/flowlog":    {"controlplane/api", "controlplane/flowlog/spill", "controlplane/policy", "datapath", "identity"},
	"controlplane/hubble":     {"controlplane/api", "controlplane/flowlog"},
	"controlplane/endpoint": {
		"controlplane/api", "controlplane/policy", "controlplane/statedir", "datapath", "identity",
	},
	"controlplane/flowlog/format":      {"controlplane/api"},
	"controlplane/flowexport":          {"controlplane/api", "controlplane/flowlog"},
	"controlplane/flowexport/jsonfile": {"controlplane/flowexport", "controlplane/flowlog"},
	"controlplane/flowexport/otlp":     {"controlplane/api", "controlplane/flowexport", "controlplane/flowlog", "datapath"},
	"controlplane/kube":                {"controlplane/api", "controlplane/policy", "controlplane/source"},
	"controlplane/cniconf":             {},
	"controlplane/shield":              {},
	"controlplane/install":             {"controlplane/endpoint", "controlplane/routing", "controlplane/statedir", "datapath/loader"},
	"controlplane/node":                {"controlplane/endpoint", "datapath"},
	"controlplane/routing":             {"controlplane/source", "datapath"},
	"controlplane/agent":               {"controlplane/...", "datapath/...", "identity"},
	"cni":                              {"controlplane/api", "datapath/loader"},
	"cmd/weir":                         {"controlplane/api", "controlplane/build", "controlplane/flowlog/..."},
	"cmd/weir-agent":                   {"controlplane/...", "datapath/...", "identity"},
	"cmd/weir-cni":                     {"cni", "controlplane/build"},
	"tests/...":                        {"bpf", "cni", "controlplane/...", "datapath/...", "identity", "tests/..."},
	"controlplane/flowlog/spill":       {},
	"controlplane/export": {
		"controlplane/api", "controlplane/flowlog", "controlplane/policy", "datapath", "identity",
	},
}

// owners are the only importers of the heavy libraries.
var owners = map[string][]string{
	"github.com/cilium/ebpf":              {"bpf", "datapath/loader", "datapath/maps", "datapath/parked", "datapath/reader", "datapath/sockets"},
	"github.com/cilium/ebpf/link":         {"datapath/loader"},
	"github.com/cilium/ebpf/ringbuf":      {"datapath/parked", "datapath/reader"},
	"github.com/vishvananda/netlink":      {"cni", "controlplane/node", "controlplane/routing", "datapath/loader"},
	"github.com/google/nftables":          {"controlplane/routing"},
	"github.com/containernetworking":      {"cni", "cmd/weir-cni"},
	"github.com/fsnotify/fsnotify":        {"controlplane/source"},
	"github.com/cilium/cilium":            {"cmd/weir", "controlplane/flowexport/...", "controlplane/flowlog/...", "controlplane/hubble"},
	"controlplane/flowlog/spill":          {},
	"github.com/spf13/cobra":              {"cmd/weir", "cmd/weir-agent"},
	"k8s.io/client-go":                    {"controlplane/kube"},
	"k8s.io/api":                          {"controlplane/agent", "controlplane/endpoint", "controlplane/kube", "controlplane/policy", "controlplane/source"},
	"sigs.k8s.io/yaml":                    {"controlplane/source"},
	"go.yaml.in/yaml/v3":                  {"cmd/weir-agent"},
	"google.golang.org/protobuf":          {"cmd/weir", "controlplane/flowexport/...", "controlplane/flowlog/...", "controlplane/hubble", "controlplane/kube"},
	"google.golang.org/grpc":              {"controlplane/flowexport/otlp", "controlplane/hubble"},
	"go.opentelemetry.io":                 {"controlplane/flowexport/otlp"},
	"k8s.io/apimachinery/pkg/util/yaml":   {"controlplane/source"},
	"github.com/prometheus/client_golang": {"controlplane/export", "controlplane/flowexport/otlp"},
}

// pure packages import nothing that reads a clock, a file or the network.
var pure = []string{"identity", "datapath", "controlplane/policy", "controlplane/shield"}

var impure = []string{"net", "net/http", "os", "os/exec", "os/signal", "path/filepath", "syscall", "golang.org/x/sys", "log", "log/slog"}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Imports    []string
}

func TestArrows(t *testing.T) {
	packages := list(t)
	if len(packages) < 8 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, p := range packages {
		for _, v := range violations(p) {
			t.Error(v)
		}
	}
}

// TestArrowsCatch shows that the rules can fail.
func TestArrowsCatch(t *testing.T) {
	for _, c := range []struct{ importer, imported, want string }{
		{"identity", module + "datapath", "may not import"},
		{"identity", "golang.org/x/sys/unix", "standard library"},
		{"datapath", module + "datapath/maps", "may not import"},
		{"datapath", "github.com/cilium/ebpf", "belongs to"},
		{"datapath/maps", module + "controlplane/policy", "may not import"},
		{"datapath/maps", "github.com/cilium/ebpf/link", "belongs to"},
		{"controlplane/policy", module + "datapath/maps", "may not import"},
		{"controlplane/policy", "os", "is pure"},
		{"controlplane/agent", "k8s.io/client-go/kubernetes", "belongs to"},
		{"controlplane/agent", module + "cmd/weir", "may not import"},
		{"cni", module + "controlplane/agent", "may not import"},
		{"cmd/weir", module + "tests/lab", "may not import"},
		{"somewhere/new", module + "identity", "no place"},
		{"datapath/loader", "github.com/cilium/ebpf/link", ""},
		{"controlplane/agent", module + "controlplane/policy", ""},
		{"controlplane/agent", "net/http", ""},
	} {
		got := strings.Join(violations(pkg{ImportPath: module + c.importer, Imports: []string{c.imported}}), "\n")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s importing %s: got %q, want %q", c.importer, c.imported, got, c.want)
		}
	}
}

// list walks every package of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
}

// violations are a package's imports that point the wrong way.
func violations(p pkg) []string {
	name := strings.TrimPrefix(p.ImportPath, module)
	allowed, ok := place(name)
	if !ok {
		return []string{fmt.Sprintf("%s has no place in the order of packages", name)}
	}
	var v []string
	for _, imported := range p.Imports {
		v = append(v, violation(name, imported, allowed))
	}
	return slices.DeleteFunc(v, func(s string) bool { return s == "" })
}

func violation(name, imported string, allowed []string) string {
	if ours, ok := strings.CutPrefix(imported, module); ok {
		if matchesAny(ours, allowed) {
			return ""
		}
		return fmt.Sprintf("%s may not import %s (it may: %s)", name, ours, strings.Join(allowed, ", "))
	}
	if name == "identity" && strings.Contains(imported, ".") {
		return fmt.Sprintf("identity imports %s: it has the standard library only", imported)
	}
	if slices.Contains(pure, name) && matchesAny(imported, below(impure)) {
		return fmt.Sprintf("%s imports %s: it is pure", name, imported)
	}
	return ownership(name, imported)
}

// ownership checks the heavy libraries; tests may use any.
func ownership(name, imported string) string {
	library := longest(imported, owners)
	if library == "" || strings.HasPrefix(name, "tests/") || matchesAny(name, owners[library]) {
		return ""
	}
	return fmt.Sprintf("%s imports %s: that library belongs to %v", name, imported, owners[library])
}

// longest is the longest library whose path imported begins with.
func longest(imported string, libraries map[string][]string) string {
	found := ""
	for library := range libraries {
		if matches(imported, library+"/...") && len(library) > len(found) {
			found = library
		}
	}
	return found
}

// place finds a package's rule.
func place(name string) ([]string, bool) {
	best := ""
	for pattern := range arrows {
		if matches(name, pattern) && len(pattern) > len(best) {
			best = pattern
		}
	}
	return arrows[best], best != ""
}

func below(names []string) []string {
	var l []string
	for _, n := range names {
		if strings.HasPrefix(n, "golang.org") {
			n += "/..."
		}
		l = append(l, n)
	}
	return l
}

func matchesAny(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(name, p) })
}

func matches(name, pattern string) bool {
	root, deep := strings.CutSuffix(pattern, "/...")
	return name == root || deep && strings.HasPrefix(name, root+"/")
}
