package node

import (
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// flows runs `weir flows -o json`.
func (e *env) flows(args ...string) []lab.Flow {
	e.t.Helper()
	flows, err := e.Flows(e.ctx, args...)
	e.must("flows", err)
	return flows
}

func (e *env) extension(f lab.Flow) api.FlowExtension {
	e.t.Helper()
	x, err := f.Extension()
	e.must("extension of "+f.Extensions.Value, err)
	return x
}

// TestFlowsHoldEveryProbe, with both pods and the rule that decided in each direction.
func TestFlowsHoldEveryProbe(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress)+policy("ns", "allow", fromA)+policy("ns", "out", egressAtoB))
	e.add("ns/a", "ns/b", "ns/c")
	probes := []probe{
		{"ns/a", "ns/b", "tcp", portHTTP, yes},   // both directions allowed by a rule
		{"ns/a", "ns/b", "tcp", portOther, no},   // ingress default deny
		{"ns/c", "ns/b", "udp", portHTTP, no},    // the same
		{"ns/a", "ns/c", "tcp", portHTTP, no},    // egress default deny
		{"ns/b", "outside", "icmp", 0, yes},      // not isolated
		{"outside", "ns/b", "tcp", portHTTP, no}, // from outside
	}
	e.check(probes...)
	want := []struct {
		probe
		egress, ingress string // "" = not judged here
		direction       string
	}{
		{probes[0], "allowed ns/out", "allowed ns/allow", "EGRESS"},
		{probes[1], "allowed ns/out", "denied ns/allow ns/deny", "INGRESS"},
		{probes[2], "allowed", "denied ns/allow ns/deny", "INGRESS"},
		{probes[3], "denied ns/out", "", "EGRESS"},
		{probes[4], "allowed", "", "EGRESS"},
		{probes[5], "", "denied ns/allow ns/deny", "INGRESS"},
	}
	for _, w := range want {
		for _, family := range families {
			var got *lab.Flow
			e.eventually("a record of "+w.String(), 3*time.Second, func() bool {
				got = find(e.flows("--last", "1000"), e, w.probe, family)
				return got != nil
			})
			verdict := "FORWARDED"
			if w.want == no {
				verdict = "DROPPED"
			}
			if got.Verdict != verdict || got.TrafficDirection != w.direction {
				t.Errorf("IPv%d %s: %s %s, want %s %s", family, w, got.Verdict, got.TrafficDirection, verdict, w.direction)
			}
			x := e.extension(*got)
			for _, side := range []struct {
				name            string
				rule            *api.FlowRule
				allowed, denied []lab.FlowPolicy
				want            string
			}{
				{"egress", x.Egress, got.EgressAllowedBy, got.EgressDeniedBy, w.egress},
				{"ingress", x.Ingress, got.IngressAllowedBy, got.IngressDeniedBy, w.ingress},
			} {
				if said := decision(side.rule, side.allowed, side.denied); said != side.want && !(side.want == "" && side.name == "ingress" && w.direction == "EGRESS" && w.want == no) {
					t.Errorf("IPv%d %s: %s %q, want %q", family, w, side.name, said, side.want)
				}
			}
		}
	}
}

// decision is one direction's part of a record in words: which policies allowed or denied.
func decision(rule *api.FlowRule, allowed, denied []lab.FlowPolicy) string {
	if rule == nil {
		return ""
	}
	words := "allowed"
	policies := allowed
	if rule.Verdict == "DROPPED" {
		words, policies = "denied", denied
	}
	for _, p := range policies {
		words += " " + p.Namespace + "/" + p.Name
	}
	return words
}

// find is the newest record of a probe.
func find(flows []lab.Flow, e *env, p probe, family int) *lab.Flow {
	from, to := e.host(p.from).Addr(family), e.host(p.to).Addr(family)
	for i := len(flows) - 1; i >= 0; i-- {
		f := &flows[i]
		protocol, port := f.Port()
		if f.IP.Source != from || f.IP.Destination != to || !strings.HasPrefix(protocol, p.protocol) || port != p.port {
			continue
		}
		if e.named(p.from, f.Source) && e.named(p.to, f.Destination) {
			return f
		}
		e.t.Errorf("%s: the record's ends are %s and %s", p, f.Source, f.Destination)
	}
	return nil
}

// named checks a record's end: pods have names, others have none.
func (e *env) named(host string, p lab.FlowEnd) bool {
	if e.pods[host] == nil {
		return p.PodName == ""
	}
	return p.String() == host
}

// TestFlowAccount: a flow's end tells what it carried, exactly, and the status what was made of
// records, each written or lost.
func TestFlowAccount(t *testing.T) {
	e := newEnvWith(t, lab.Options{Agent: []string{"--flow-update", "1s"}}, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	conn, err := e.host("ns/a").Connect(e.host("ns/b").Addr4, portHTTP)
	e.must("connect", err)
	_, err = conn.Write(make([]byte, 100))
	e.must("write", err)
	for got := 0; got < 100; {
		n, err := conn.Read(make([]byte, 100))
		e.must("read", err)
		got += n
	}
	e.eventually("a record of the flow that goes on", 20*time.Second, func() bool {
		_, err := conn.Write([]byte{1})
		e.must("write", err)
		_, err = conn.Read(make([]byte, 1))
		e.must("read", err)
		return e.status().Flows.Made["updated"] > 0
	})
	conn.Close()
	var ended api.FlowExtension
	e.eventually("the record of the flow's end", 20*time.Second, func() bool {
		for _, f := range e.flows("--last", "100", "--port", "8080") {
			if ended = e.extension(f); ended.Kind == api.FlowEnded {
				return true
			}
		}
		return false
	})
	if ended.Packets == nil || ended.Bytes == nil {
		t.Fatalf("no counters in %+v", ended)
	}
	// Headers of IPv4 and TCP: 40 bytes at least, 60 with timestamps.
	if ended.Packets.Sent < 4 || ended.Packets.Received < 3 {
		t.Errorf("packets %+v, want at least 4 and 3", *ended.Packets)
	}
	if min := 100 + 40*ended.Packets.Sent; ended.Bytes.Sent < min || ended.Bytes.Sent > min+20*ended.Packets.Sent {
		t.Errorf("bytes %+v with packets %+v", *ended.Bytes, *ended.Packets)
	}
	var s api.FlowStatus
	e.eventually("the account of what was made adds up", 5*time.Second, func() bool {
		s = e.status().Flows
		made := uint64(0)
		for _, n := range s.Made {
			made += n
		}
		return made == s.EmittedBy["flow_events"]+s.LostBy["flow_events"]
	})
	if s.Made["new"] == 0 || s.Made["updated"] == 0 || s.Made["ended"] == 0 {
		t.Errorf("made: %+v", s.Made)
	}
	if s.Lost != 0 {
		t.Errorf("flows lost: %+v", s)
	}
}

// TestFlowFilters: each leaves what it says.
func TestFlowFilters(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress)+policy("ns", "allow", fromA))
	e.add("ns/a", "ns/b", "ns/c")
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes}, probe{"ns/c", "ns/b", "udp", portOther, no})
	e.eventually("both are in the log", 3*time.Second, func() bool { return len(e.flows()) >= 4 })
	for _, c := range []struct {
		args []string
		ok   func(lab.Flow) bool
	}{
		{[]string{"--verdict", "dropped"}, func(f lab.Flow) bool { return f.Verdict == "DROPPED" }},
		{[]string{"--pod", "ns/c"}, func(f lab.Flow) bool { return f.Source.PodName == "c" && f.Destination.PodName == "b" }},
		{[]string{"--protocol", "tcp"}, func(f lab.Flow) bool { return f.L4["TCP"] != nil }},
		{[]string{"--port", "8080"}, func(f lab.Flow) bool { _, p := f.Port(); return p == portHTTP }},
		{[]string{"--policy", "ns/allow", "--verdict", "forwarded"}, func(f lab.Flow) bool { return len(f.IngressAllowedBy) == 1 && f.IngressAllowedBy[0].Name == "allow" }},
		{[]string{"--since", "1m", "--last", "1"}, func(lab.Flow) bool { return true }},
	} {
		got := e.flows(c.args...)
		if len(got) == 0 {
			t.Errorf("weir flows %s: nothing", strings.Join(c.args, " "))
		}
		for _, f := range got {
			if !c.ok(f) {
				t.Errorf("weir flows %s: %+v", strings.Join(c.args, " "), f)
			}
		}
	}
	if got := e.flows("--last", "1"); len(got) != 1 {
		t.Errorf("weir flows --last 1: %d records", len(got))
	}
}

// TestRevocationIsRecorded: the log says when an open connection was cut, and by what.
func TestRevocationIsRecorded(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	s := e.openStream(e.host("ns/a"), e.host("ns/b"), 4, portStream)
	e.alive("while allowed", s)
	e.apply("deny.yaml", policy("ns", "deny", denyIngress))
	e.dead("after the edit", s)
	e.eventually("a dropped record of the stream", 3*time.Second, func() bool {
		for _, f := range e.flows("--verdict", "dropped", "--port", "5000") {
			if f.Source.PodName == "a" && len(f.IngressDeniedBy) == 1 && f.IngressDeniedBy[0].Name == "deny" {
				return true
			}
		}
		return false
	})
}

// TestQuietPodsLeaveNoRecords: what interfaces say of themselves when they come up (MLD,
// neighbour and router discovery) is counted, not logged.
func TestQuietPodsLeaveNoRecords(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	e.eventually("their multicast is counted", 5*time.Second, func() bool { return e.status().Drops["multicast"] > 0 })
	if got := e.flows(); len(got) > 0 {
		t.Errorf("%d records, the first: %+v", len(got), got[0])
	}
}

// TestFlowRecordsOff: nothing is recorded, all is enforced and counted, and who asks is told;
// flows that went on meanwhile have records again once they are on.
func TestFlowRecordsOff(t *testing.T) {
	e := newEnvWith(t, lab.Options{Agent: []string{"--flow-records=false"}}, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress)+policy("ns", "allow", fromA))
	e.add("ns/a", "ns/b", "ns/c")
	c, s, port := e.talking(e.host("ns/a"), e.Outside, 4, portServed)
	defer s.Close()
	defer c.Close()
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes}, probe{"ns/c", "ns/b", "udp", portHTTP, no})
	is := e.status()
	if f := is.Flows; !f.Off || f.Emitted+f.Lost+f.Suppressed != 0 || f.Active == 0 || is.Drops["policy"] == 0 {
		t.Errorf("status: %+v, drops %v", f, is.Drops)
	}
	if r := e.Weir(e.ctx, "status"); !strings.Contains(r.Stdout, "records are off (--flow-records=false)") {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{{"flows"}, {"flows", "-f"}, {"flows", "--top", "policy"}} {
		if r := e.Weir(e.ctx, args...); r.Status == 0 || !strings.Contains(r.Stderr, "flow records are off on this node") || len(args) < 3 && r.Stdout != "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
	e.must("stop", e.StopAgent())
	e.Flags("--flow-records=true")
	e.must("start", e.StartAgent(e.ctx))
	e.must("wait", e.Wait(e.ctx))
	c.Close()
	s.Close()
	e.recordFrom("ended", "tcp", port)
	if f := e.status().Flows; f.Off || f.Emitted == 0 {
		t.Errorf("status: %+v", f)
	}
}
