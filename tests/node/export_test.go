package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// A file has, line by line, what `weir flows -o json` says, while a collector is away.
func TestFlowsAreExported(t *testing.T) {
	file := filepath.Join(t.TempDir(), "flows.json")
	e := newEnvWith(t, lab.Options{Agent: []string{
		"--flow-export-file", file, "--otlp-endpoint", "http://127.0.0.1:1", "--otlp-metrics-interval", "1s", "--otlp-flow-filter", "verdict=dropped",
	}}, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress)+policy("ns", "allow", fromA))
	e.add("ns/a", "ns/b", "ns/c")
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes}, probe{"ns/a", "ns/b", "tcp", portOther, no}, probe{"ns/a", "ns/c", "udp", portHTTP, no})
	export := func(name string) api.ExportStatus {
		for _, x := range e.status().Exports {
			if x.Export == name {
				return x
			}
		}
		t.Fatalf("no export %s in %+v", name, e.status().Exports)
		return api.ExportStatus{}
	}
	var want string
	e.eventually("the file has all there is", 10*time.Second, func() bool {
		got, _ := os.ReadFile(file)
		want = e.Weir(e.ctx, "flows", "-o", "json", "--since", "10m").Stdout
		return want != "" && string(got) == want
	})
	if x := export("file"); x.Exported < uint64(strings.Count(want, "\n")) || x.Error != "" || x.Lost["queue"]+x.Lost["behind"] > 0 {
		t.Errorf("%+v of %d lines", x, strings.Count(want, "\n"))
	}
	e.eventually("the collector is missed", 10*time.Second, func() bool {
		return export("otlp").Error != "" && export("otlp-metrics").Error != ""
	})
	if x := export("otlp"); x.Taken != x.Queued || x.Taken == 0 || x.Taken >= export("file").Taken || !strings.Contains(x.Error, "connection refused") {
		t.Errorf("%+v", x)
	}
	if text := e.Weir(e.ctx, "status").Stdout; !strings.Contains(text, "file: ") || !strings.Contains(text, "http://127.0.0.1:1") {
		t.Errorf("status says\n%s", text)
	}
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes}, probe{"ns/c", "ns/b", "tcp", portHTTP, no})
}
