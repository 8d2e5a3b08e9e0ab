package hubble

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// The flows of the scene.
const (
	webDB     = "web db-0 tcp 8080"
	webDB6    = "web db-0 tcp 8080 v6"
	webDenied = "web db-0 tcp 9000 dropped"
	probeDB   = "probe db-0 tcp 8080 dropped"
	probeWeb  = "probe web udp 8080"
	ping      = "web 192.0.2.10 icmpv4"
)

var everything = []string{ping, probeDB, probeWeb, webDB, webDB6, webDenied}

// The stock client, unchanged, against an agent: its filters, its outputs, its other verbs.
func TestStockClient(t *testing.T) {
	s := newScene(t)
	begun := time.Now()
	s.talk()
	t.Run("filters", s.filters)
	t.Run("errors", s.errors)
	t.Run("numbers", func(t *testing.T) { s.numbers(t, begun) })
	t.Run("outputs", s.outputs)
	t.Run("verbs", s.verbs)
	t.Run("same as weir flows", s.sameAsWeir)
	t.Run("follow", s.follow)
}

func (s *scene) filters(t *testing.T) {
	db, web := s.pods["shop/db-0"], s.pods["shop/web-5d9f-x1"]
	identity := s.identityOf(t, "shop/db-0")
	for _, c := range []struct {
		args string
		want []string
	}{
		{"", everything},
		{"-A", everything},
		{"--pod shop/db", []string{webDB, webDB6, webDenied, probeDB}},
		{"--pod db", nil},
		{"--from-pod other/probe", []string{probeDB, probeWeb}},
		{"--to-pod shop/web", []string{probeWeb}},
		{"--namespace other", []string{probeDB, probeWeb}},
		{"-n shop", everything},
		{"--from-namespace shop --to-namespace shop", []string{webDB, webDB6, webDenied}},
		{"--from-namespace shop --verdict DROPPED", []string{webDenied}},
		{"--label app=db", []string{webDB, webDB6, webDenied, probeDB}},
		{"-l k8s:tier", []string{webDB, webDB6, webDenied, probeWeb, ping}},
		{"--from-label app=web,tier=front --to-label app=db", []string{webDB, webDB6, webDenied}},
		{"--to-label reserved:world", []string{ping}},
		{"--to-label reserved:unmanaged", nil},
		{"--ip " + db.Addr4, []string{webDB, webDenied, probeDB}},
		{"--to-ip " + db.Addr6, []string{webDB6}},
		{"--from-ip 10.77.0.0/24 --to-ip 192.0.2.0/24", []string{ping}},
		{"--ip-version v6", []string{webDB6}},
		{"-4 --protocol tcp --verdict FORWARDED", []string{webDB}},
		{"--port 9000", []string{webDenied}},
		{"--to-port 8080", []string{webDB, webDB6, probeDB, probeWeb}},
		{"--from-port 8080", nil},
		{"--protocol udp", []string{probeWeb}},
		{"--protocol icmp", []string{ping}},
		{"--protocol tcp --protocol udp", []string{webDB, webDB6, webDenied, probeDB, probeWeb}},
		{"--verdict DROPPED", []string{webDenied, probeDB}},
		{"--type drop", []string{webDenied, probeDB}},
		{"-t trace", []string{webDB, webDB6, probeWeb, ping}},
		{"-t trace:to-endpoint -t l7", []string{webDB, webDB6, probeWeb}},
		{"-t trace:to-stack", []string{ping}},
		{"--drop-reason-desc POLICY_DENIED", []string{webDenied, probeDB}},
		{"--identity " + identity, []string{webDB, webDB6, webDenied, probeDB}},
		{"--from-identity " + identity, nil},
		{"--to-identity world", []string{ping}},
		{"--workload Deployment/web --verdict DROPPED", []string{webDenied}},
		{"--from-workload web --protocol icmp", []string{ping}},
		{"--to-workload StatefulSet/db", []string{webDB, webDB6, webDenied, probeDB}},
		{"--traffic-direction ingress", []string{webDenied, probeDB}},
		{"--traffic-direction egress", []string{webDB, webDB6, probeWeb, ping}},
		{"--tcp-flags SYN", []string{webDB, webDB6, webDenied, probeDB}},
		{"--not-reply", everything},
		{"--unencrypted", everything},
		{"--node-name worker-*", everything},
		{"--node-name default/worker-1", everything},
		{"--node-name worker-2", nil},
		{"--from-cluster default", everything},
		{"--interface " + s.interfaceOf(t, "other/probe"), []string{probeWeb, probeDB}},
		{"--not --verdict FORWARDED", []string{webDenied, probeDB}},
		{"--verdict DROPPED --not --from-namespace other", []string{webDenied}},
		{"--not --protocol http", everything},
		{`--allowlist {"source_pod":["other/"],"protocol":["udp"]}`, []string{probeWeb}},
		{`--denylist {"destination_ip":["` + web.Addr4 + `"]}`, []string{webDB, webDB6, webDenied, probeDB, ping}},
	} {
		s.t = t
		slices.Sort(c.want)
		if got := s.observe(append(strings.Fields(c.args), "--all")...); !slices.Equal(got, c.want) {
			t.Errorf("hubble observe %s:\n got %q\nwant %q", c.args, got, c.want)
		}
	}
}

// identityOf is a pod's identity number, as the records have it.
func (s *scene) identityOf(t *testing.T, pod string) string {
	t.Helper()
	s.t = t
	return s.field(t, "--to-pod "+pod, "destination", "identity")
}

func (s *scene) interfaceOf(t *testing.T, pod string) string {
	t.Helper()
	s.t = t
	return s.field(t, "--from-pod "+pod, "interface", "name")
}

// field of the newest flow that args choose.
func (s *scene) field(t *testing.T, args string, path ...string) string {
	t.Helper()
	var m struct{ Flow map[string]any }
	d := json.NewDecoder(strings.NewReader(s.says(append([]string{"observe", "-o", "jsonpb", "--last", "1"}, strings.Fields(args)...)...)))
	d.UseNumber()
	must(t, "parse", d.Decode(&m))
	var v any = m.Flow
	for _, p := range path {
		v = v.(map[string]any)[p]
	}
	return fmt.Sprint(v)
}

// What cannot be answered is said, with the field's name, and ends with status 1.
func (s *scene) errors(t *testing.T) {
	for args, want := range map[string]string{
		"--http-status 5+":                     "whitelist[0].http_status_code: no record can match: Weir does not look into what connections carry",
		"--protocol http":                      `whitelist[0].protocol: no record can match: "http"`,
		"--verdict AUDIT":                      "whitelist[0].verdict: no record can match",
		"--type l7":                            "whitelist[0].event_type: no record can match",
		"--reply":                              "whitelist[0].reply: no record can match",
		"--cluster east":                       "source_cluster_name: no record can match",
		"--snat-ip 10.0.0.1":                   "source_ip_xlated: no record can match",
		"--cel-expression true":                "cel_expression: expressions are not supported",
		`--allowlist {"source_ip":["10.0.0"]}`: `whitelist[0].source_ip: "10.0.0" is no address`,
		"--since 1m --until 2m":                "until: ",
	} {
		out, failed, err := s.client(append([]string{"observe"}, strings.Fields(args)...)...)
		if err == nil || !strings.Contains(failed, want) || !strings.Contains(failed, "InvalidArgument") || out != "" {
			t.Errorf("hubble observe %s: %v\n%s%s\nwant %s", args, err, out, failed, want)
		}
	}
}

func (s *scene) numbers(t *testing.T, begun time.Time) {
	s.t = t
	count := func(args ...string) int {
		return strings.Count(s.says(append([]string{"observe", "-o", "jsonpb"}, args...)...), "\n")
	}
	all := count("--all")
	if n := count("--last", "3"); n != 3 {
		t.Errorf("--last 3: %d", n)
	}
	if n := count(); n != min(all, 20) {
		t.Errorf("bare: %d of %d", n, all)
	}
	since := begun.Format(time.RFC3339Nano)
	if n := count("--since", since); n != all {
		t.Errorf("--since the beginning: %d of %d", n, all)
	}
	if n := count("--until", since); n != 0 {
		t.Errorf("--until the beginning: %d", n)
	}
	if n := count("--since", since, "--until", "0s"); n != all {
		t.Errorf("--since --until now: %d of %d", n, all)
	}
	lines := func(args ...string) []string {
		return strings.Split(strings.TrimSpace(s.says(append([]string{"observe", "-o", "jsonpb"}, args...)...)), "\n")
	}
	whole := lines("--all")
	for i, line := range lines("--first", "3") {
		if !sameJSON(line, whole[i]) {
			t.Errorf("--first 3: line %d is %s, want %s", i, line, whole[i])
		}
	}
	for i, line := range lines("--last", "3") {
		if !sameJSON(line, whole[len(whole)-3+i]) {
			t.Errorf("--last 3: line %d is %s, want %s", i, line, whole[len(whole)-3+i])
		}
	}
}

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// Each form of output has what people read it for.
func (s *scene) outputs(t *testing.T) {
	s.t = t
	denied := []string{"--all", "--from-pod", "other/probe", "--verdict", "DROPPED"}
	for _, c := range []struct {
		args string
		want []string // patterns
	}{
		{"-o compact", []string{`other/probe:\d+ \(ID:\d+\) (<>|->) shop/db-0:8080 \(ID:\d+\) Policy denied DROPPED \(TCP Flags: SYN\)`}},
		{"-o compact --print-node-name", []string{`\[worker-1\]`}},
		{"-o compact --print-policy-names", []string{`shop/db`}},
		{"-o compact --numeric", []string{`10\.77\.0\.\d+:\d+ `}},
		{"-o compact --use-default-field-masks=false", []string{`other/probe:\d+ \(ID:\d+\)`}},
		{"-o dict", []string{`SOURCE: other/probe:\d+`, `DESTINATION: shop/db-0:8080`, `TYPE: Policy denied`, `VERDICT: DROPPED`, `SUMMARY: TCP Flags: SYN`}},
		{"-o table", []string{`TIMESTAMP +SOURCE +DESTINATION +TYPE +VERDICT +SUMMARY`, `other/probe:\d+ .* shop/db-0:8080 .* Policy denied .*DROPPED`}},
		{"-o json", []string{`"drop_reason_desc":"POLICY_DENIED"`, `"node_name":"worker-1"`, `"ingress_denied_by":\[\{"name":"db","namespace":"shop"`, `"workloads":\[\{"name":"db","kind":"StatefulSet"\}\]`, `"traffic_direction":"INGRESS"`, `"is_reply":false`}},
		{"-o json --field-mask verdict,source.pod_name", []string{`"flow":\{"verdict":"DROPPED","source":\{"pod_name":"probe"\}\}`}},
	} {
		out := strings.ReplaceAll(s.says(append(append([]string{"observe"}, strings.Fields(c.args)...), denied...)...), `": `, `":`)
		for _, want := range c.want {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("hubble observe %s: no %s in\n%s", c.args, want, out)
			}
		}
	}
	got, err := s.pods["shop/web-5d9f-x1"].Probe("udp", s.pods["other/probe"].Addr4, portClosed)
	if must(t, "probe", err); got != lab.Refused {
		t.Fatalf("a closed port: %v", got)
	}
	s.eventually("a record of the closed port", func() bool { return len(s.observe("--all", "--type", "drop", "--protocol", "udp")) > 0 })
	drop := s.says("observe", "--all", "--type", "drop", "--protocol", "udp", "--color", "never")
	if want := `shop/web-5d9f-x1:\d+ \(ID:\d+\) (<>|->) other/probe:9999 \(ID:\d+\) Socket lookup failed DROPPED \(UDP, kernel: NO_SOCKET\)`; !regexp.MustCompile(want).MatchString(drop) {
		t.Errorf("hubble observe --type drop: no %s in\n%s", want, drop)
	}
	out := s.says("observe", "--all", "--from-pod", "shop/web", "--verdict", "FORWARDED", "--color", "never")
	for _, want := range []string{
		`shop/web-5d9f-x1:\d+ \(ID:\d+\) -> shop/db-0:8080 \(ID:\d+\) to-endpoint FORWARDED \(TCP Flags: SYN\)`,
		`shop/web-5d9f-x1 \(ID:\d+\) -> 192\.0\.2\.10 \(world\) to-stack FORWARDED \(ICMPv4 EchoRequest\)`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("hubble observe: no %s in\n%s", want, out)
		}
	}
}

func (s *scene) verbs(t *testing.T) {
	s.t = t
	for args, want := range map[string]string{
		"status":                         `Healthcheck \(via unix://.*/hubble\.sock\): Ok\nCurrent/Max Flows: \d+/65,535|Current/Max Flows: \d+/65,536`,
		"list nodes":                     `worker-1 +Connected`,
		"list nodes -o json":             `"seen_flows": ?"?\d+`,
		"list namespaces":                `(?s)other.*shop`,
		"watch peers":                    "", // below: it does not end
		"observe agent-events --last 50": `(?s)AGENT_STARTED.*ENDPOINT_CREATED \(id: 3, namespace: other, pod name: probe\)`,
		"observe debug-events --last 5":  `^$`,
	} {
		if want == "" {
			continue
		}
		if out := s.says(strings.Fields(args)...); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("hubble %s says\n%s\nwant %s", args, out, want)
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
	defer cancel()
	out, failed, _ := output(exec.CommandContext(ctx, s.hubble, "--config", "", "--server", s.socket(), "watch", "peers"))
	if !strings.Contains(out, "PEER_ADDED") || !strings.Contains(out, "worker-1") {
		t.Errorf("hubble watch peers says\n%s%s", out, failed)
	}
}

// `hubble observe -o json` and `weir flows -o json` say the same, field by field.
func (s *scene) sameAsWeir(t *testing.T) {
	s.t = t
	theirs := strings.Split(strings.TrimSpace(s.says("observe", "-o", "json", "--all")), "\n")
	r := s.Weir(s.ctx, "flows", "-o", "json", "--last", fmt.Sprint(len(theirs)))
	ours := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	if r.Status != 0 || len(ours) != len(theirs) {
		t.Fatalf("%d flows by hubble, %d by weir: %s", len(theirs), len(ours), r.Stderr)
	}
	for i := range ours {
		if !sameJSON(ours[i], theirs[i]) {
			t.Errorf("weir flows:\n%s\nhubble observe:\n%s", ours[i], theirs[i])
		}
	}
}

// A follower gets what comes, filtered, as it comes.
func (s *scene) follow(t *testing.T) {
	s.t = t
	ctx, cancel := context.WithCancel(s.ctx)
	cmd := exec.CommandContext(ctx, s.hubble, "--config", "", "--server", s.socket(), "observe", "-f", "-o", "jsonpb", "--verdict", "DROPPED")
	out := &locked{}
	cmd.Stdout, cmd.Stderr = out, out
	must(t, "start hubble", cmd.Start())
	defer func() { cancel(); _ = cmd.Wait() }()
	s.eventually("the follower", func() bool {
		return strings.Contains(s.Weir(s.ctx, "status", "-o", "json").Stdout, `"hubble"`) && s.following(t) == 1
	})
	_, err := s.pods["other/probe"].Probe("tcp", s.pods["shop/db-0"].Addr4, portOther)
	must(t, "probe", err)
	_, err = s.pods["shop/web-5d9f-x1"].Probe("tcp", s.pods["shop/db-0"].Addr4, portHTTP)
	must(t, "probe", err)
	s.eventually("the denial", func() bool { return slices.Contains(s.words(out.lines()), "probe db-0 tcp 9000 dropped") })
	if got := s.words(out.lines()); len(got) != 1 {
		t.Errorf("followed %q", got)
	}
}

// following is how many readers hubble's API has now.
func (s *scene) following(t *testing.T) int {
	t.Helper()
	var status struct {
		Flows struct {
			Log struct {
				Readers []struct {
					Name string
					Open int
				}
			}
		}
	}
	must(t, "parse the status", json.Unmarshal([]byte(s.Weir(s.ctx, "status", "-o", "json").Stdout), &status))
	for _, r := range status.Flows.Log.Readers {
		if r.Name == "hubble" {
			return r.Open
		}
	}
	return 0
}
