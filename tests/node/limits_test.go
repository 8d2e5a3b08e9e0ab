package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// onPorts is an ingress rule a port: as many exact groups.
func onPorts(first, n int) string {
	var rules []string
	for i := range n {
		rules = append(rules, fmt.Sprintf("{ports: [{port: %d}]}", first+i))
	}
	return "  podSelector: {}\n  ingress: [" + strings.Join(rules, ", ") + "]\n"
}

// A kernel with small maps: one tenant's policies outgrow it, the other's go on being
// enforced and revoked, and an agent that dies comes back to the same.
func TestOnePolicyOutgrowsTheNode(t *testing.T) {
	e := newEnvWith(t, lab.Options{Agent: []string{"--map-size", "exact_groups=64,facts=32"}},
		"pods.yaml", pod("good", "a")+pod("good", "b")+pod("greedy", "c"),
		"good.yaml", policy("good", "np", onPorts(portHTTP, 1)),
		"greedy.yaml", policy("greedy", "np", onPorts(portHTTP, 2)))
	e.add("good/a", "good/b", "greedy/c")
	was := probe{"good/a", "greedy/c", "tcp", portHTTP, lab.Answered}
	e.check(was, probe{"good/a", "greedy/c", "tcp", portOther, lab.Silent}, probe{"greedy/c", "good/a", "tcp", portHTTP, lab.Answered})

	// 60 ports from 9000 on: the earlier version stays.
	e.write("greedy.yaml", policy("greedy", "np", onPorts(portOther, 60)))
	e.refused("NetworkPolicy greedy/np: spec: the policies of this node's pods need 61 exact_groups together, at most 32 can be enforced")
	same := []probe{was, {"good/a", "greedy/c", "tcp", portOther, lab.Silent}, {"good/b", "good/a", "tcp", portHTTP, lab.Silent}}
	e.write("good.yaml", policy("good", "np", onPorts(portOther, 1))) // revokes
	e.refused("NetworkPolicy greedy/np: spec")
	e.check(append(same, probe{"good/b", "good/a", "tcp", portOther, lab.Answered})...)

	// One that never fitted isolates, and says so in the log of denials.
	e.write("more.yaml", policy("good", "blocks", blocks(40))) // 40 facts
	e.refused("NetworkPolicy good/blocks: spec: the policies of this node's pods need 40 facts together, at most 16 can be enforced")
	e.check(same...)

	epoch := e.status().Epoch
	e.must("kill the agent", e.KillAgent())
	e.check(same...)
	e.must("start the agent again", e.StartAgent(e.ctx))
	e.refused("NetworkPolicy")
	e.check(same...)
	if now := e.status(); now.Epoch != epoch || !now.Degraded || len(now.Errors) != 2 {
		t.Errorf("after a restart: epoch %d, was %d; %+v", now.Epoch, epoch, now.Errors)
	}
	for name, want := range map[string]string{"greedy/np": "last-good", "good/blocks": "isolates", "good/np": "as-written"} {
		if list := e.Weir(e.ctx, "policy", "list").Stdout; !strings.Contains(row(list, name), want) {
			t.Errorf("%s: want %s in\n%s", name, want, list)
		}
	}

	e.write("greedy.yaml", policy("greedy", "np", onPorts(portOther, 5)))
	e.must("remove", e.Remove("more.yaml"))
	e.must("wait", e.Wait(e.ctx))
	e.check(probe{"good/a", "greedy/c", "tcp", portOther, lab.Answered}, probe{"good/a", "greedy/c", "tcp", portHTTP, lab.Silent})

	// Room that another makes is found without a word from the one refused.
	e.write("greedy.yaml", policy("greedy", "np", onPorts(portHTTP, 32)))
	e.refused("NetworkPolicy greedy/np: spec")
	e.check(probe{"good/a", "greedy/c", "tcp", portHTTP, lab.Silent})
	e.must("remove", e.Remove("good.yaml"))
	for i := range 12 { // others' changes do not put it off
		e.write("churn.yaml", pod("other", "x", fmt.Sprint("n: n", i)))
		time.Sleep(300 * time.Millisecond)
	}
	if list := e.Weir(e.ctx, "policy", "list").Stdout; !strings.Contains(row(list, "greedy/np"), "as-written") {
		t.Errorf("not tried again while others change:\n%s", list)
	}
	e.must("wait", e.Wait(e.ctx))
	e.check(probe{"good/a", "greedy/c", "tcp", portHTTP, lab.Answered})
}

// blocks is an ingress rule from n address blocks.
func blocks(n int) string {
	var from []string
	for i := range n {
		from = append(from, fmt.Sprintf("{ipBlock: {cidr: 198.51.%d.0/24}}", i))
	}
	return "  podSelector: {}\n  ingress: [{from: [" + strings.Join(from, ", ") + "]}]\n"
}

func row(table, name string) string {
	for _, line := range strings.Split(table, "\n") {
		if strings.HasPrefix(line, name+" ") {
			return line
		}
	}
	return ""
}

// refused waits for what is on disk, and holds that it cannot be enforced.
func (e *env) refused(why string) {
	e.t.Helper()
	r := e.Weir(e.ctx, "status", "--wait")
	if r.Status != 1 || !strings.Contains(r.Stderr, why) {
		all := e.Weir(e.ctx, "status").Stdout
		if r.Status != 1 || !strings.Contains(all, why) {
			e.t.Fatalf("weir status --wait: status %d, %s\nwant %q", r.Status, r.Stderr, why)
		}
	}
}
