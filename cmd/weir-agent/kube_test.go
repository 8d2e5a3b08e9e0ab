package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBadAPIServer: what is wrong before anything is asked of an API server ends the agent
// with a message; what the server answers does not, see tests/cluster.
func TestBadAPIServer(t *testing.T) {
	r := newRunner(t)
	file := func(name, text string) string {
		path := filepath.Join(r.manifests, name)
		r.must(os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	cluster := "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://192.0.2.10'}}]\n"
	for _, c := range []struct {
		name   string
		args   []string
		env    []string
		status int
		want   string
	}{
		{"no pod", nil, nil, 1, "no --kubeconfig is given and this is no pod: KUBERNETES_SERVICE_HOST"},
		{"a pod without a token", nil, []string{"KUBERNETES_SERVICE_HOST=192.0.2.10", "KUBERNETES_SERVICE_PORT=443"}, 1, "service account of this pod: open /var/run/secrets/kubernetes.io/serviceaccount/token"},
		{"no file", []string{"--kubeconfig", "/none/kubeconfig"}, nil, 1, "--kubeconfig: stat /none/kubeconfig: no such file"},
		{"empty", []string{"--kubeconfig", file("empty", "")}, nil, 1, "names no cluster"},
		{"no kubeconfig", []string{"--kubeconfig", file("text", "hello: [")}, nil, 1, `text": yaml: line 1`},
		{"no such context", []string{"--kubeconfig", file("context", "apiVersion: v1\nkind: Config\ncurrent-context: x\n")}, nil, 1, "context was not found for specified context: x"},
		{"no certificate", []string{"--kubeconfig", file("cert", cluster+"users: [{name: u, user: {client-certificate: gone.crt, client-key: gone.key}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n")}, nil, 1, "gone.crt"},
		{"both", []string{"--kubeconfig", "x", "--standalone", r.manifests}, nil, 2, "exclude each other"},
		{"no directory", []string{"--standalone", ""}, nil, 2, "--standalone must name a directory"},
		{"no name", []string{"--node-name", "", "--kubeconfig", "x"}, nil, 2, "--node-name"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		var stderr strings.Builder
		cmd := exec.Command(r.binary, append([]string{"--state-dir", r.state, "--bpffs-dir", r.bpffs}, c.args...)...)
		cmd.Stderr = &stderr
		cmd.Env = append(os.Environ(), append([]string{"KUBERNETES_SERVICE_HOST=", "KUBERNETES_SERVICE_PORT="}, c.env...)...)
		err := runUntil(ctx, cmd)
		cancel()
		last := stderr.String()[strings.LastIndex(strings.TrimRight(stderr.String(), "\n"), "\n")+1:]
		if exitStatus(err) != c.status || !strings.HasPrefix(last, "weir-agent: ") || !strings.Contains(last, c.want) {
			t.Errorf("%s: %v, want status %d and %q\n%s", c.name, err, c.status, c.want, stderr.String())
		}
	}
}
