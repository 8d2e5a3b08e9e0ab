package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

// What a real agent exposes is what the documentation, the alerts and the dashboard are held
// to (controlplane/export): all metrics but those that only an export has.
func TestMetricsOfAnAgent(t *testing.T) {
	r := newRunner(t)
	lo, err := netlink.LinkByName("lo")
	r.must(err)
	r.must(netlink.LinkSetUp(lo))
	r.must(os.WriteFile(filepath.Join(r.manifests, "shop.yaml"), []byte(manifest), 0o644))
	p := r.start("--metrics-listen", "127.0.0.1:9945")
	r.status()
	var text string
	r.eventually("metrics", func() bool {
		text = r.get("127.0.0.1:9945", "/metrics")
		return text != ""
	})
	doc, err := os.ReadFile("../../docs/observe.md")
	r.must(err)
	for _, m := range regexp.MustCompile("(?m)^\\| `(weir_[a-z_]+)").FindAllStringSubmatch(string(doc), -1) {
		quiet := []string{"weir_flow_records_total", "weir_denied_packets_total"} // nothing was sent
		if name := m[1]; !strings.Contains(text, "\n# TYPE "+name+" ") && !strings.HasPrefix(name, "weir_export_") && !strings.HasPrefix(name, "weir_flow_reader") && !slices.Contains(quiet, name) {
			t.Errorf("%s is not there", name)
		}
	}
	for _, line := range []string{"weir_errors 0", `weir_policies{enforced="as-written"} 1`, "weir_policy_revision_applied 1", `weir_scrape_success{source="denials"} 1`} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s\n%s", line, text, p.stderr)
		}
	}
}

// get is "" as long as nobody answers. It asks from the thread of the test, which is in the
// network namespace of the node.
func (r *runner) get(addr, path string) string {
	r.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
	r.must(err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	r.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	r.must(err)
	return string(b)
}

// A past on disk that cannot be written is warned of, as long as it is so.
func TestSpillThatFailsIsAWarning(t *testing.T) {
	if w := spillWarnings(&api.FlowSpillStatus{}); w != nil {
		t.Errorf("nothing failed: %q", w)
	}
	if w := spillWarnings(nil); w != nil {
		t.Errorf("no spill: %q", w)
	}
	if w := spillWarnings(&api.FlowSpillStatus{Lost: 7, Error: "no space left on device"}); len(w) != 1 || !strings.Contains(w[0], "--flow-spill") || !strings.Contains(w[0], "7 records") || !strings.Contains(w[0], "no space left on device") {
		t.Errorf("%q", w)
	}
}

// An agent on a full disk enforces, and its status says that flows are not spilled.
func TestStatusOfAnAgentWhoseDiskIsFull(t *testing.T) {
	r := newRunner(t)
	disk := t.TempDir()
	r.must(unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", os.Getpagesize())))
	defer func() { r.must(unix.Unmount(disk, unix.MNT_DETACH)) }()
	r.must(os.WriteFile(filepath.Join(disk, "full"), make([]byte, os.Getpagesize()), 0o644))
	r.must(os.WriteFile(filepath.Join(r.manifests, "shop.yaml"), []byte(manifest), 0o644))
	r.start("--flow-spill", filepath.Join(disk, "flows"))
	r.eventually("a warning of the disk", func() bool {
		s := r.status()
		return s.Flows.Log.Spill != nil && s.Flows.Log.Spill.Error != "" && slices.ContainsFunc(s.Warnings, func(w string) bool {
			return strings.Contains(w, "--flow-spill") && strings.Contains(w, "no space left on device")
		})
	})
}
