package node

import (
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/lab"
)

// What was seen before an agent was killed is shown after it, once, before what is seen then.
func TestFlowsOutliveTheAgent(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress))
	e.add("ns/a", "ns/b", "ns/c")
	first, second := probe{"ns/a", "ns/b", "tcp", portHTTP, no}, probe{"ns/b", "ns/c", "tcp", portHTTP, no}
	e.check(first)
	e.eventually("the record is on disk", 5*time.Second, func() bool {
		log := e.status().Flows.Log
		return log.Spill != nil && log.Spill.Written >= log.Records && log.Records > 0
	})
	before := e.flows("--since", "10m")
	e.must("kill the agent", e.KillAgent())
	e.must("start it", e.StartAgent(e.ctx))
	e.check(second)
	e.eventually("a record of "+second.String(), 5*time.Second, func() bool { return find(e.flows("--last", "100"), e, second, 4) != nil })
	after := e.flows("--since", "10m")
	if len(after) < len(before) || find(after, e, first, 4) == nil {
		t.Fatalf("%d records before the kill, %d after it", len(before), len(after))
	}
	for i := range before {
		if after[i].Extensions.Value != before[i].Extensions.Value || after[i].Source != before[i].Source {
			t.Errorf("record %d: %+v, was %+v", i, after[i], before[i])
		}
	}
}

// An agent killed amid its work leaves an account that adds up: what the kernel made is what is
// shown afterwards, and what is said to be lost with the agent.
func TestAccountAddsUpAfterAKill(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress))
	e.add("ns/a", "ns/b", "ns/c")
	for range 3 {
		e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no}, probe{"ns/b", "node", "icmp", 0, yes})
		e.must("kill the agent", e.KillAgent()) // what it read within a second is on no disk
		e.must("start it", e.StartAgent(e.ctx))
	}
	var made, shown, missing uint64
	e.eventually("the account adds up", 10*time.Second, func() bool {
		s := e.status()
		made, shown, missing = s.Flows.Emitted, 0, 0
		r := e.Weir(e.ctx, "flows", "--since", "1h", "-o", "json")
		for line := range strings.Lines(r.Stdout) {
			var m struct {
				Flow *lab.Flow
				Lost *struct {
					Source string
					N      uint64 `json:"num_events_lost,string"`
				} `json:"lost_events"`
			}
			e.must("read "+line, json.Unmarshal([]byte(line), &m))
			switch {
			case m.Lost != nil && m.Lost.Source == "OBSERVER_EVENTS_QUEUE":
				missing += m.Lost.N
			case m.Lost != nil:
				t.Errorf("lost: %s", line)
			case e.extension(*m.Flow).Suppressed == 0:
				shown++
			}
		}
		return made == shown+missing && e.status().Flows.Emitted == made
	})
	if missing == 0 {
		t.Error("nothing was lost with the agents: they were killed too late for this test")
	}
	t.Logf("%d events: %d shown, %d lost with the agents", made, shown, missing)
}

// Of a flood most packets are only counted: each is told all the same, by a record, in a count or
// as lost, whether the agent is stopped or killed amid it.
func TestCountedDenialsAddUpAcrossAgents(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress))
	e.add("ns/a", "ns/b", "ns/c")
	sent := uint64(0)
	for _, stop := range []func() error{e.StopAgent, e.KillAgent, e.StopAgent} {
		e.flood(e.host("ns/a"), e.host("ns/b"), 3000)
		sent += 3000
		time.Sleep(1500 * time.Millisecond) // what was recorded is on disk
		e.flood(e.host("ns/a"), e.host("ns/b"), 3000)
		sent += 3000
		e.must("end the agent", stop())
		e.flood(e.host("ns/a"), e.host("ns/b"), 500)
		sent += 500
		e.must("start it", e.StartAgent(e.ctx))
	}
	var records, counted, lost uint64
	told := func() bool {
		records, counted, lost = 0, 0, 0
		r := e.Weir(e.ctx, "flows", "--since", "1h", "-o", "json")
		for line := range strings.Lines(r.Stdout) {
			var m struct {
				Flow *lab.Flow
				Lost *struct {
					N uint64 `json:"num_events_lost,string"`
				} `json:"lost_events"`
			}
			e.must("read "+line, json.Unmarshal([]byte(line), &m))
			if m.Lost != nil {
				lost += m.Lost.N
			} else if x := e.extension(*m.Flow); x.Kind == "denied" && x.Reason == "policy" {
				counted += x.Suppressed
				if x.Suppressed == 0 {
					records++
				}
			}
		}
		return records+counted+lost >= sent
	}
	e.eventually("all is told", 45*time.Second, told)
	if records+counted+lost != sent || counted == 0 {
		t.Errorf("%d records, %d counted, %d lost of %d packets", records, counted, lost, sent)
	}
	t.Logf("%d records, %d counted, %d lost", records, counted, lost)
}

// What the kernel drops past the budget is told like what policy denies.
func TestCountedKernelDropsAddUp(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b", "ns/c")
	const sent = 3000
	e.flood(e.host("ns/a"), e.host("ns/b"), sent)
	var records, counted uint64
	e.eventually("all is told", 45*time.Second, func() bool {
		records, counted = 0, 0
		for _, f := range e.flows("--since", "1h", "--kind", "denied", "--reason", "kernel") {
			x := e.extension(f)
			counted += x.Suppressed
			if x.Suppressed == 0 {
				records++
			}
		}
		return records+counted >= sent
	})
	if records+counted != sent || counted == 0 {
		t.Errorf("%d records, %d counted of %d packets", records, counted, sent)
	}
}

// flood sends datagrams to nobody's port.
func (e *env) flood(from, to *lab.Host, n int) {
	e.t.Helper()
	var c net.Conn
	var err error
	e.must("open", from.Do(func() error {
		c, err = net.Dial("udp", net.JoinHostPort(to.Addr(4), "9"))
		return err
	}))
	defer c.Close()
	for range n {
		_, err := c.Write([]byte("flood"))
		if errors.Is(err, unix.ECONNREFUSED) { // says the answer to one before, and this one is not sent
			_, err = c.Write([]byte("flood"))
		}
		e.must("send", err)
	}
}
