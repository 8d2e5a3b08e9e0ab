package bypass

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/datapath"
)

// Surfaces: the log, the sockets and files of the agent, and what people see.
var surfaces = []bypass{{
	id: "B39", name: "queue_exhaustion",
	title: "ring or queue exhaustion to fail open or to blind the log",
	try: func(a *attempt) {
		const each = 10000
		m, e, b, al := a.mallory, a.eve, a.bob, a.alice
		a.quiet(a)
		before := a.drops(a.T)
		done := make(chan error, 2)
		for _, from := range []*end{m, e} {
			go func() {
				var err error
				for i := 0; i < each && err == nil; i++ {
					err = from.send(tcp(from.Addr4, uint16(i), b.Addr4, closedTCP, "S"))
				}
				done <- err
			}()
		}
		must(a.T, <-done)
		must(a.T, <-done)
		a.settled("a flood by two pods at once", before, func(d map[datapath.Reason]uint64) bool { return d[policy] >= 2*each })
		if d := a.since(a.T, before); d[policy] != 2*each {
			a.Errorf("dropped for %v, want %d for %q", d, 2*each, policy)
		}
		a.nothingArrives("a flood")
		a.note("dropped: "+policy.String(), 2*each)
		// Who floods has no more room in the log; others have theirs.
		a.drop("a pod beside them", b, policy, udp(b.Addr4, 1, al.Addr4, 53), udp(b.Addr6, 1, al.Addr6, 53))
		a.spend(quota)
		s, err := a.client.Status(a.ctx, 0)
		must(a.T, err)
		if s.Flows.Lost != 0 || s.Flows.Suppressed == 0 {
			a.Errorf("lost %d, suppressed %d: want none, and most", s.Flows.Lost, s.Flows.Suppressed)
		}
		a.shown("the log says how many it left out; it lost none")
	},
	tests: []string{"tests/packet TestDenialsAreCountedExactly", "datapath/reader TestReadLosesNothing", "datapath/maps TestDenialsOfRulesOutOfForceAreRetired"},
}, {
	id: "B40", name: "forged_dns_answer",
	title: "(with FQDN) a DNS answer forged from any port 53; a cache shared by all pods",
	note:  "does not apply yet: no policy names a host by its name; with those that do, tests/bypass",
}, {
	id: "B41", name: "sockets_of_the_agent",
	title:  "agent and CNI sockets: wrong mode, no peer check, caller chooses the mode",
	public: "CVE-2022-29178",
	try: func(a *attempt) {
		for _, name := range []string{"agent.sock", "hubble.sock"} {
			st, err := os.Stat(filepath.Join(a.StateDir(), name))
			must(a.T, err)
			if st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 0 {
				a.Errorf("%s is %v of user %d, want root's alone", name, st.Mode(), st.Sys().(*syscall.Stat_t).Uid)
			}
		}
		cmd := exec.CommandContext(a.ctx, a.Binary("weir"), "--state-dir", a.StateDir(), "endpoints")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err == nil {
			a.Errorf("another user got: %s", out)
		}
		a.shown("another user is refused; the socket is root's, whoever starts the agent")
	},
	tests: []string{"controlplane/api TestOthersAreRefused", "controlplane/api TestForeignServer", "cni TestAddWithForeignAgent"},
}, {
	id: "B42", name: "tampered_pins",
	title: "pinned map, program or link tampered with, or removed by another agent: noticed and repaired, timed",
	try:   breakHooks,
	tests: []string{"tests/node TestTamperedStateIsRepaired", "datapath/maps TestRecheckFindsDamageAndCommitRepairsIt", "controlplane/agent TestLostHooksAreAttachedAgain",
		"datapath/maps TestDamageIsRepaired", "datapath/loader TestFilters", "tests/node TestSecondAgentRefuses"},
	note: "what is in the maps is looked at every 30 s, of more than 16,384 addresses a tenth at a time",
}, {
	id: "B43", name: "installer_and_plugin",
	title:  "installer and CNI privileges; path traversal in names",
	public: "CVE-2024-33522, CVE-2021-20206",
	try: func(a *attempt) {
		for _, root := range []string{a.StateDir(), a.BPFFSDir()} {
			must(a.T, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				st, err := d.Info()
				if err == nil && st.Mode()&fs.ModeSymlink == 0 && st.Mode().Perm()&0o022 != 0 {
					a.Errorf("%s is %v: others can write it", path, st.Mode())
				}
				return err
			}))
		}
		for _, name := range []string{"weir", "weir-agent", "weir-cni"} {
			st, err := os.Stat(a.Binary(name))
			must(a.T, err)
			if st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
				a.Errorf("%s is %v", name, st.Mode())
			}
		}
		for _, name := range []string{"../../etc", "a/b", "..", "a\x00b"} {
			if p, err := a.AddPod(a.ctx, "ns", name); err == nil {
				a.Errorf("a pod of the name %q was added as %s", name, p.Name)
			}
		}
		a.shown("no file of the agent's can be written by others, no binary is set-user-ID, no name with a path in it is taken")
	},
	tests: []string{"cni TestBadArgs", "cni TestBadContainerID", "controlplane/endpoint TestRequestsAreChecked", "controlplane/source TestNames"},
	note:  "the installer: with the cluster's image, tests/cluster",
}, {
	id: "B44", name: "terminal_escapes",
	title:  "terminal escapes in CLI output (pod name, comm); an over-open API",
	public: "CVE-2025-48056",
	try: func(a *attempt) {
		const evil = "a\x1b]0;owned\x07\x1b[2J\u009b31m\u202e"
		must(a.T, a.Write("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {namespace: ns, name: \"a\\e]0;owned\\a\\e[2J\\u009b31m\\u202e\", labels: {\"x\\e[2J\": y}}\n"))
		must(a.T, a.Write("worse.yaml", "apiVersion: v1\nkind: \"a\\e[2J\\u202e\"\nmetadata: {name: x}\n"))
		_ = a.Wait(a.ctx)
		var out strings.Builder
		for _, args := range [][]string{{"status"}, {"status", "--wait"}, {"status", "-o", "json"}, {"endpoints"}, {"policy", "list"}, {"policy", "explain", "--from", evil, "--to", "ns/bob", "--port", "80/tcp"}, {"flows", "--pod", evil}, {evil}} {
			r := a.Weir(a.ctx, args...)
			out.WriteString(r.Stdout + r.Stderr)
		}
		must(a.T, a.Remove("bad.yaml"))
		must(a.T, a.Remove("worse.yaml"))
		must(a.T, a.Wait(a.ctx))
		if i := strings.IndexFunc(out.String(), func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == 0x202e }); i >= 0 {
			a.Errorf("the CLI wrote %q", out.String()[max(0, i-40):min(out.Len(), i+40)])
		}
		if !strings.Contains(out.String(), "bad.yaml") {
			a.Errorf("no word of bad.yaml: %s", out.String())
		}
		a.shown("no control character reaches the terminal, from objects, files or arguments")
	},
	tests: []string{"controlplane/flowlog/format TestNamesCannotSteerTheTerminal", "controlplane/flowlog/format TestSafe", "controlplane/source TestPrintable"},
}, {
	id: "B45", name: "secrets_in_logs",
	title:  "secrets or tokens in logs and support bundles",
	public: "CVE-2024-37307",
	note:   "with an API server the agent holds one secret, the token of its service account or kubeconfig, which its log does not have; there is no support bundle",
	tests:  []string{"tests/cluster TestRights"},
}, {
	id: "B46", name: "service_account",
	title:  "over-broad service account",
	public: "CVE-2022-29179",
	note:   "with an API server the agent has a service account: it may read the six kinds that policy is made of, write events, read kube-system's Leases and write its own node's; no Secret, nothing else",
	tests:  []string{"tests/cluster TestRights", "tests/cluster TestRightsAreExact", "tests/cluster TestAnnounce"},
}, {
	id: "B47", name: "annotations",
	title:  "pod annotations as a control input",
	public: "CVE-2022-28224",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		before, err := a.client.Endpoints(a.ctx)
		must(a.T, err)
		a.apply("pods.yaml", strings.Replace(pods, "labels: {app: mallory}}", `labels: {app: mallory}, annotations: {
  weir.dev/policy: "off", weir.dev/no-redirect: "true", weir.dev/ip: 10.77.0.200, cni.projectcalico.org/ipAddrs: '["10.77.0.200"]',
  cni.projectcalico.org/podIP: 10.77.0.200/32, k8s.v1.cni.cncf.io/networks: other, io.cilium.proxy-visibility: '<Egress/80/TCP/HTTP>',
  policy.cilium.io/no-track-port: "22", kubernetes.io/egress-bandwidth: 1M}}`, 1))
		after, err := a.client.Endpoints(a.ctx)
		must(a.T, err)
		if len(before) != len(after) || len(before) == 0 {
			a.Fatalf("%d endpoints, then %d", len(before), len(after))
		}
		for i := range before {
			if strings.Join(before[i].Addresses, " ") != strings.Join(after[i].Addresses, " ") || before[i].Identity != after[i].Identity || before[i].Egress.Ruleset != after[i].Egress.Ruleset {
				a.Errorf("annotations made %+v of %+v", after[i], before[i])
			}
		}
		a.drop("with annotations of every kind", m, policy, tcp(m.Addr4, 1, b.Addr4, closedTCP, "S"), tcp(m.Addr6, 1, b.Addr6, closedTCP, "S"))
		a.drop("an address of an annotation", m, spoofed, tcp("10.77.0.200", 1, b.Addr4, openTCP, "S"))
	},
	note: "none is read",
}}

// breakHooks takes the hooks of two pods away and watches them come back.
func breakHooks(a *attempt) {
	const limit = 20 * time.Second // of which 5 s are the agent's, and the rest a busy machine's
	m, b := a.mallory, a.bob
	for _, e := range []*end{m, b} {
		must(a.T, os.RemoveAll(filepath.Join(a.BPFFSDir(), "links", a.hostIf(a.T, e))))
	}
	a.quiet(a)
	began, last, arrived := time.Now(), time.Now(), 0
	for forbidden := tcp(m.Addr4, 1, b.Addr4, closedTCP, "S"); time.Since(last) < 2*time.Second || !a.has("had lost its programs"); time.Sleep(20 * time.Millisecond) {
		must(a.T, m.send(forbidden))
		if n := len(b.received()); n > arrived {
			arrived, last = n, time.Now()
		}
		if time.Since(began) > limit {
			a.Fatalf("hooks that were taken away are not back after %v", limit)
		}
	}
	if arrived == 0 {
		a.Error("taking the hooks away opened nothing: the damage is none")
	}
	a.drop("after the repair", m, policy, tcp(m.Addr4, 2, b.Addr4, closedTCP, "S"))
	a.pass("after the repair", m, b, tcp(m.Addr4, 2, b.Addr4, openTCP, "S"))
	a.shown("the hooks of two pods, taken away by root, are back with the agent's next look (every 5 s), and its log says so")
}

// has reports whether the agent's log says so.
func (s *scene) has(words string) bool {
	text, err := os.ReadFile(s.Log())
	return err == nil && strings.Contains(string(text), words)
}

// hostIf is the host side of a pod's link.
func (s *scene) hostIf(t *testing.T, e *end) string {
	t.Helper()
	all, err := s.client.Endpoints(s.ctx)
	must(t, err)
	for _, p := range all {
		if p.PodNamespace+"/"+p.PodName == e.Name {
			return p.HostIfName
		}
	}
	t.Fatalf("no endpoint of %s", e.Name)
	return ""
}
