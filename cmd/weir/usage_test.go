package main

import (
	"strings"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
)

// Wrong usage is status 2 and says what is wrong and where to look; it asks nobody.
func TestWrongUsage(t *testing.T) {
	a := startAgent(t, nil)
	for _, c := range []struct{ args, want string }{
		{"statu", `weir: unknown command "statu", did you mean status?`},
		{"policy lst", `weir policy: unknown command "lst", did you mean list?`},
		{"policy bogus", `weir policy: unknown command "bogus"`},
		{"status --foo", `weir status: unknown flag: --foo`},
		{"status extra", `weir status: unexpected argument "extra"`},
		{"status -o yaml", `weir status: --output: "yaml" is not one of table, json`},
		{"status --wait --timeout soon", `weir status: invalid argument "soon" for "--timeout" flag: time: invalid duration "soon"`},
		{"status --wait --timeout 0s", `weir status: --timeout: 0s is not above 0`},
		{"flows --verdict maybe", `weir flows: --verdict: "maybe" is not one of forwarded, dropped`},
		{"flows --pod web", `weir flows: --pod: "web" is not namespace/name (or namespace/ for all of it)`},
		{"flows --port http", `weir flows: --port: "http" is not a port number (1-65535)`},
		{"flows --protocol http", `weir flows: --protocol: "http" is not one of tcp, udp, sctp, icmp, icmpv4, icmpv6 or a protocol number`},
		{"flows --last -1", `weir flows: --last: -1 is below 0`},
		{"flows --since -5m", `weir flows: --since: -5m is not above 0`},
		{"flows -o table", `weir flows: --output: "table" is not one of compact, wide, json, dict`},
		{"flows --since yesterday", `weir flows: --since: "yesterday" is neither a duration such as 30s, 5m or 2h nor a time such as 2026-11-24T12:00:00Z, 2026-11-24 or 15:04`},
		{"flows --top src -o dict", `weir flows: --output: --top is a table, or with -o json an object; there is no dict of it`},
		{"flows --since 2999-01-01", `weir flows: --since: 2999-01-01 is not in the past`},
		{"flows --since 5m --until 2h", `weir flows: --until: 2h is before --since 5m: nothing is in that range`},
		{"flows -f --until 2h", `weir flows: --until: it has passed, there is nothing to follow`},
		{"flows --from-address 10.0.0.0/33", `weir flows: --from-address: "10.0.0.0/33" is neither an address nor a CIDR`},
		{"flows --to-ip 10.0.0", `weir flows: --to-address: "10.0.0" is neither an address nor a CIDR`},
		{"flows --not --verdict maybe", `weir flows: --not --verdict: "maybe" is not one of forwarded, dropped`},
		{"flows --pod shop/a --not", `weir flows: --not: no filter follows it`},
		{"flows --reason luck", `weir flows: --reason: "luck" is no drop reason; "weir status" lists those that occurred`},
		{"flows --workload a/b/c", `weir flows: --workload: "a/b/c" is not a name or kind/name, as in Deployment/web`},
		{"flows --identity web", `weir flows: --identity: "web" is not an identity number; "weir identities" lists them`},
		{"flows --top pods", `weir flows: --top: "pods" is not one of src, dst, policy, process, reason, port`},
		{"flows --top src --by size", `weir flows: --by: "size" is not one of packets, bytes, flows`},
		{"flows --by bytes", `weir flows: --by: it says what --top counts, which is not given`},
		{"policy explain --from a/b --port 80/tcp", `weir policy explain: --to: missing: say NAMESPACE/POD or an address`},
		{"policy explain --from b --to a/b --port 80/tcp", `weir policy explain: --from: "b" is neither NAMESPACE/POD nor an address`},
		{"policy explain --from a/b --to a/c --port 80/http", `weir policy explain: --port: "80/http" is not a port such as 80/tcp, 53/udp, 5000/sctp, nor icmp or icmpv6`},
		{"policy explain --from a/b --to a/c --port 80/tcp --family 5", `weir policy explain: --family: 5 is neither 4 nor 6`},
	} {
		r := a.weir(t, strings.Fields(c.args)...)
		lines := strings.Split(r.err, "\n")
		if r.status != exitUsage || r.out != "" || lines[0] != c.want || len(lines) != 3 || !strings.HasPrefix(lines[1], "Run 'weir") {
			t.Errorf("weir %s: status %d, out %q, err %q; want %s", c.args, r.status, r.out, r.err, c.want)
		}
	}
	if len(a.asked()) > 0 {
		t.Errorf("asked the agent: %q", a.asked())
	}
}

func TestNoAgent(t *testing.T) {
	dir := t.TempDir()
	for _, args := range []string{"status", "endpoints", "identities", "policy list", "flows", "status --wait", "policy explain --from a/b --to a/c --port 80/tcp"} {
		r := weir(t.Context(), dir, strings.Fields(args)...)
		if r.status != exitFailed || r.out != "" || strings.Count(r.err, "\n") != 1 {
			t.Errorf("weir %s: status %d, out %q, err %q", args, r.status, r.out, r.err)
		}
		for _, want := range []string{dir + "/" + api.SocketName, "weir-agent --standalone DIR --state-dir " + dir} {
			if !strings.Contains(r.err, want) {
				t.Errorf("weir %s: %q does not name %s", args, r.err, want)
			}
		}
	}
}

// The agent's refusal is one line whatever it holds, and cannot steer the terminal.
func TestRefusal(t *testing.T) {
	a := startAgent(t, map[string]any{api.PathExplain: &api.Error{Code: api.CodeInvalid, Message: "to: no pod\nshop/\x1b[31mdb"}})
	r := a.weir(t, "policy", "explain", "--from", "a/b", "--to", "shop/db", "--port", "80/tcp")
	if want := `weir policy explain: to: no pod; shop/\x1b[31mdb` + "\n"; r.status != exitFailed || r.err != want {
		t.Errorf("status %d, err %q, want %q", r.status, r.err, want)
	}
}

func TestHelpIsDone(t *testing.T) {
	for _, args := range []string{"", "policy", "--help", "flows --help", "help status", "version", "version -o json"} {
		r := weir(t.Context(), t.TempDir(), strings.Fields(args)...)
		if r.status != exitDone || r.out == "" || r.err != "" {
			t.Errorf("weir %s: status %d, out %q, err %q", args, r.status, r.out, r.err)
		}
	}
}

func TestCompletion(t *testing.T) {
	a := startAgent(t, map[string]any{
		api.PathEndpoints: []api.Endpoint{{PodNamespace: "shop", PodName: "web"}, {PodNamespace: "shop", PodName: "db"}},
		api.PathPolicies:  []api.Policy{{Namespace: "shop", Name: "deny"}},
	})
	for args, want := range map[string]string{
		"flows --pod":           "shop/db\nshop/web\n:4\n",
		"flows --policy":        "shop/deny\n:4\n",
		"policy explain --from": "shop/db\nshop/web\n:4\n",
		"flows --output":        "compact\nwide\njson\ndict\n:4\n",
		"flows --from-pod":      "shop/db\nshop/web\n:4\n",
		"flows --top":           "src\ndst\npolicy\nprocess\nreason\nport\n:4\n",
	} {
		words := append([]string{"__complete", "--state-dir", a.dir}, strings.Fields(args)...)
		var out, errs strings.Builder
		if status := run(t.Context(), append(words, ""), streams{out: &out, err: &errs}); status != exitDone || out.String() != want {
			t.Errorf("%s: status %d, %q, want %q", args, status, out.String(), want)
		}
	}
}
