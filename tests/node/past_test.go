package node

import (
	"testing"
	"time"
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
