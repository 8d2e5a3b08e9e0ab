package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// Who is added to the shield's file is dropped at the uplink within a second, with the agent
// running, dead and new, and let in again as soon as the file says so.
func TestShieldList(t *testing.T) {
	for _, mode := range []string{"generic", "native"} {
		t.Run(mode, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "deny")
			list := func(lines ...string) {
				t.Helper()
				fresh := file + ".new"
				if err := os.WriteFile(fresh, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(fresh, file); err != nil {
					t.Fatal(err)
				}
			}
			list("# nobody yet")
			e := newEnvWith(t, lab.Options{Agent: []string{"--uplink-xdp", mode, "--shield-deny-file", file}}, "pods.yaml", pod("ns", "a"))
			e.add("ns/a")
			open := probe{"outside", "ns/a", "tcp", portHTTP, lab.Answered}
			shut := open
			shut.want = lab.Silent
			denied := func(n int) {
				t.Helper()
				e.eventually(fmt.Sprintf("%d entries in force", n), time.Second, func() bool {
					s := e.status()
					return s.Shield != nil && s.Shield.Denied == n
				})
			}
			if s := e.status(); s.Shield == nil || !s.Shield.Attached || s.Degraded || len(s.Warnings) > 0 {
				t.Fatalf("the shield is %+v, degraded %v, warnings %q", s.Shield, s.Degraded, s.Warnings)
			}
			e.check(open)

			list(e.Outside.Addr4, e.Outside.Addr6, "198.51.100.0/24", e.Addr4, "10.77.0.0/24", "what")
			denied(3)
			e.check(shut)
			s := e.status()
			if s.Shield.Dropped == 0 || s.Shield.Dropped != s.Drops["shield"] {
				t.Errorf("dropped %+v, by reasons %v", s.Shield, s.Drops)
			}
			text := e.Weir(e.ctx, "status").Stdout
			for _, want := range []string{
				file + ":4: " + e.Addr4 + " is an address of this node", file + ":5: 10.77.0.0/24 is ", file + `:6: "what" is neither`, "3 addresses and prefixes denied at the uplinks (",
			} {
				if !strings.Contains(text, want) {
					t.Errorf("status does not say %q:\n%s", want, text)
				}
			}

			e.must("kill the agent", e.KillAgent())
			e.check(shut)
			e.must("start the agent again", e.StartAgent(e.ctx))
			denied(3)
			e.check(shut)
			if now := e.status(); now.Shield.Dropped <= s.Shield.Dropped {
				t.Errorf("dropped %d after a restart, %d before", now.Shield.Dropped, s.Shield.Dropped)
			}

			list("203.0.113.9") // a prefix of theirs would do as well:
			denied(1)
			e.check(open)
			list("192.0.2.8/29", "2001:db8::10/124")
			denied(2)
			e.check(shut)

			e.must("kill the agent", e.KillAgent())
			list()
			e.check(shut)
			e.must("start the agent again", e.StartAgent(e.ctx))
			denied(0)
			e.check(open)
		})
	}
}

// A list on a node whose uplinks have no shield says so, and drops nothing.
func TestShieldListWithoutAShield(t *testing.T) {
	file := filepath.Join(t.TempDir(), "deny")
	if err := os.WriteFile(file, []byte("192.0.2.10\n2001:db8::10\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e := newEnvWith(t, lab.Options{Agent: []string{"--shield-deny-file", file}}, "pods.yaml", pod("ns", "a"))
	e.add("ns/a")
	e.eventually("a warning", time.Second, func() bool {
		return strings.Contains(strings.Join(e.status().Warnings, "\n"), "not empty (2) and no uplink has the shield, so nothing drops what is on it: set uplink-xdp")
	})
	e.check(probe{"outside", "ns/a", "tcp", portHTTP, lab.Answered})
}
