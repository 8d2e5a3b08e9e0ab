package hubble

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestStockRelay finds the node by its peers, over mutual TLS, and gives clients its flows.
func TestStockRelay(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	ours := newAuthority(t)
	writePEM(t, file("ca.crt"), "CERTIFICATE", ours.cert.Raw)
	ours.issue(dir, "tls", time.Hour)
	ours.issue(dir, "client", time.Hour)
	s := newScene(t, "--hubble-listen", ":4244", "--hubble-tls-cert", file("tls.crt"), "--hubble-tls-key", file("tls.key"), "--hubble-tls-client-ca", file("ca.crt"))
	s.talk()
	relay := filepath.Join(filepath.Dir(s.hubble), "hubble-relay")
	build(t, relay, "github.com/cilium/cilium/hubble-relay")
	log := &locked{}
	cmd := exec.CommandContext(s.ctx, relay, "serve", "--peer-service", "192.0.2.1:4244", "--listen-address", ":4245", "--health-listen-address", ":4222",
		"--tls-hubble-client-cert-file", file("client.crt"), "--tls-hubble-client-key-file", file("client.key"), "--tls-hubble-server-ca-files", file("ca.crt"),
		"--disable-server-tls", "--gops=false", "--cluster-name", "default", "--retry-timeout", "1s")
	cmd.Stdout, cmd.Stderr = log, log
	must(t, "start the relay", s.Outside.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the relay's log:\n%s", log.lines())
		}
	})
	ask := func(args ...string) (string, error) {
		return s.Outside.Run(s.ctx, s.hubble, append([]string{"--config", "", "--server", "127.0.0.1:4245"}, args...)...)
	}
	var said string
	s.eventually("the relay to have the node", func() bool {
		said, _ = ask("status")
		return strings.Contains(said, "Connected Nodes: 1/1")
	})
	if nodes, err := ask("list", "nodes"); err != nil || !strings.Contains(nodes, "worker-1") || !strings.Contains(nodes, "Connected") {
		t.Errorf("hubble list nodes by the relay: %v\n%s", err, nodes)
	}
	for args, want := range map[string][]string{
		"--verdict DROPPED":                {probeDB, webDenied},
		"--node-name worker-1 --port 9000": {webDenied},
		"--node-name worker-2":             nil,
	} {
		out, err := ask(append([]string{"observe", "-o", "jsonpb", "--all", "-s"}, strings.Fields(args)...)...)
		must(t, fmt.Sprintf("observe %s by the relay: %s", args, out), err)
		if got := s.words(flowLines(out)); !slices.Equal(got, want) {
			t.Errorf("by the relay, %s: %q, want %q", args, got, want)
		}
	}
}

// flowLines are the answers that are flows: a relay tells of its nodes, too.
func flowLines(out string) string {
	var flows strings.Builder
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, `{"flow"`) {
			flows.WriteString(line)
		}
	}
	return flows.String()
}
