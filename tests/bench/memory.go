package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/tests/bench/apiserver"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/lab"
)

var memory = section{
	name: "memory", title: "Memory, and an agent that has nothing to do", measure: measureMemory,
	method: "The agent's resident memory once all is in force and it was left alone for a while, and what the kernel says that its maps take " +
		"(those that are made at their full size as well). Pods and policies are as under a change of policy, by the same watch events.",
}

func measureMemory(m *measurement) error {
	for _, part := range []struct {
		name    string
		measure func(*measurement) error
	}{{"idle", idle}, {"members and rules", additive}, {"clusters", clusters}} {
		if !m.match.MatchString(part.name) {
			continue
		}
		if err := part.measure(m); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// pause ends early with ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// settledMemory is the agent's once it has been quiet.
func settledMemory(m *measurement, n *lab.Node) (resident, most float64, err error) {
	if err := pause(m, time.Duration(pick(m, 10, 1))*time.Second); err != nil {
		return 0, 0, err
	}
	return memoryOf(n.AgentPid())
}

// idle is a small node for a minute.
func idle(m *measurement) (failed error) {
	seconds := pick(m, 60, 5)
	m.progress("10 pods, idle for %d s", seconds)
	s, err := newSite(m, "mi", 1, lab.Options{})
	defer func() { failed = errors.Join(failed, s.close()) }()
	if err != nil {
		return err
	}
	if err := s.startAPI(synthetic{pods: 100, policies: 10}.objects()); err != nil {
		return err
	}
	n := s.nodes[0]
	if err := n.StartAgent(m); err != nil {
		return err
	}
	if err := s.locals(m, synthetic{pods: 100}, 10); err != nil {
		return err
	}
	resident, most, err := settledMemory(m, n)
	if err != nil {
		return err
	}
	before, err := cpuOf(n.AgentPid())
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(m, time.Duration(seconds)*time.Second); err != nil {
		return err
	}
	after, err := cpuOf(n.AgentPid())
	if err != nil {
		return err
	}
	percent := 100 * float64(after-before) / float64(time.Since(began))
	sizes, err := mapMemory(n.BPFFSDir())
	if err != nil {
		return err
	}
	total := uint64(0)
	for _, v := range sizes {
		total += v
	}
	flows, entries, err := flowBytes(n, sizes)
	if err != nil {
		return err
	}
	largest := &report.Table{Name: "maps", Title: "Maps at their default sizes, 10 pods, MiB", Columns: []string{"MiB"}}
	names := make([]string, 0, len(sizes))
	for name := range sizes {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(int64(sizes[b]) - int64(sizes[a])) })
	for _, name := range names {
		if sizes[name] >= mebi/10 {
			largest.Rows = append(largest.Rows, report.Row{Name: "`" + name + "`", Cells: []report.Figure{report.One(float64(sizes[name])/mebi, "")}})
		}
	}
	largest.Rows = append(largest.Rows, report.Row{Name: "all", Cells: []report.Figure{report.One(float64(total)/mebi, "")}})
	m.Tables = append(m.Tables, &report.Table{Name: "idle", Title: "10 pods, 10 policies, nothing to do", Columns: []string{"figure"}, Rows: []report.Row{
		{Name: "agent, resident, MiB", Cells: []report.Figure{report.One(resident, "")}},
		{Name: "agent, at most, MiB", Cells: []report.Figure{report.One(most, "")}},
		{Name: fmt.Sprintf("agent's CPU over %d s, %% of a core", seconds), Cells: []report.Figure{report.One(percent, "")}},
		{Name: "all maps, MiB", Cells: []report.Figure{report.One(float64(total)/mebi, "")}},
		{Name: fmt.Sprintf("a flow, bytes (%d entries)", entries), Cells: []report.Figure{report.One(flows, "")}},
	}}, largest)
	m.AtMost("resident memory of an idle agent, 10 pods", resident, 64, " MiB")
	m.AtMost("CPU of an idle agent, 10 pods", percent, 0.2, " % of a core")
	m.AtMost("all maps at their default sizes", float64(total)/mebi, 64, " MiB")
	m.AtMost("a further flow, both directions", flows, 304, " B")
	return nil
}

// flowBytes is what the flow table and its helpers take for an entry.
func flowBytes(n *lab.Node, sizes map[string]uint64) (bytes float64, entries uint32, err error) {
	m, err := loadMap(n, bpf.WeirMapFlows)
	if err != nil {
		return 0, 0, err
	}
	defer m.Close()
	entries = m.MaxEntries()
	return float64(sizes[bpf.WeirMapFlows]+sizes[bpf.WeirMapFlowSlots]+sizes[bpf.WeirMapFlowFree]) / float64(entries), entries, nil
}

// additive doubles the members of a peer set, and the rules that name it.
func additive(m *measurement) (failed error) {
	members, rules := pick(m, []int{500, 1000, 2000, 4000}, []int{50, 100}), pick(m, []int{25, 50, 100, 200}, []int{5, 10})
	m.progress("members and rules")
	s, err := newSite(m, "ma", 1, lab.Options{})
	defer func() { failed = errors.Join(failed, s.close()) }()
	if err != nil {
		return err
	}
	if err := s.startAPI(nil); err != nil {
		return err
	}
	if err := s.api.Put("namespaces", apiserver.Namespace(namespaceName(0))); err != nil {
		return err
	}
	n := s.nodes[0]
	if err := n.StartAgent(m); err != nil {
		return err
	}
	if err := s.locals(m, synthetic{pods: 100}, 1); err != nil {
		return err
	}
	empty, err := mapMemory(n.BPFFSDir())
	if err != nil {
		return err
	}
	t := &report.Table{Name: "additive", Title: "Kernel memory of members and rules, KiB", Head: "members, by rules",
		Note: "Each rule names the same peers, each of which has labels of its own, by a port of its own; what the maps take beyond those of a node without policies."}
	for _, r := range rules {
		t.Columns = append(t.Columns, fmt.Sprint(r))
	}
	have := 0
	for _, count := range members {
		row := report.Row{Name: fmt.Sprint(count)}
		for ; have < count; have++ {
			p := apiserver.Pod(namespaceName(0), fmt.Sprintf("member-%d", have), "other", map[string]string{"set": "members", "self": fmt.Sprint(have)}, fmt.Sprintf("10.70.%d.%d", have>>8, have&255))
			if err := s.api.Put("pods", p); err != nil {
				return err
			}
		}
		for r := range slices.Max(rules) {
			if err := s.api.Delete("networkpolicies", memberPolicy(r)); err != nil {
				return err
			}
		}
		for i, count := range rules {
			from := 0
			if i > 0 {
				from = rules[i-1]
			}
			for r := from; r < count; r++ {
				if err := s.api.Put("networkpolicies", memberPolicy(r)); err != nil {
					return err
				}
			}
			if err := n.Wait(m); err != nil {
				return err
			}
			// What nobody wants any more goes a while later.
			if err := pause(m, 1500*time.Millisecond); err != nil {
				return err
			}
			sizes, err := mapMemory(n.BPFFSDir())
			if err != nil {
				return err
			}
			more := 0.0
			for name, bytes := range sizes {
				more += float64(bytes) - float64(empty[name])
			}
			row.Cells = append(row.Cells, report.One(more/1024, ""))
		}
		t.Rows = append(t.Rows, row)
	}
	m.Tables = append(m.Tables, t)
	first, last := t.Rows[0].Cells, t.Rows[len(t.Rows)-1].Cells
	// Of a sum, what more members add is the same whatever the rules are.
	few, many := last[0].Median-first[0].Median, last[len(last)-1].Median-first[len(first)-1].Median
	m.AtMost("what more members add with most rules, to with fewest", many/max(few, 1), 1.1, "x")
	return nil
}

// memberPolicy lets the members, told apart by labels that another selector names, in by a port.
func memberPolicy(r int) *networkingv1.NetworkPolicy {
	from := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"set": "members"},
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "self", Operator: metav1.LabelSelectorOpExists}}}}}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespaceName(0), Name: fmt.Sprintf("rule-%d", r)},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: app(appName(0))}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: from, Ports: []networkingv1.NetworkPolicyPort{portOf("TCP", 1000+r)}}}},
	}
}

// clusters are of all sizes, with a node that is full.
func clusters(m *measurement) error {
	pods, policies := pick(m, []int{1000, 10000, 100000}, []int{100, 1000}), pick(m, []int{10, 1000, 10000}, []int{10, 100})
	local := pick(m, 110, 5)
	agent := &report.Table{Name: "memory", Title: fmt.Sprintf("Agent, resident, MiB; %d pods on the node", local), Head: "pods in the cluster, by policies", Plot: report.NoPlot}
	kernel := &report.Table{Name: "memory-maps", Title: "All maps, MiB", Head: agent.Head,
		Note: "From 50,000 pods on the agent is told to make room for 524,288 addresses (`--map-size`)."}
	for _, p := range policies {
		agent.Columns = append(agent.Columns, fmt.Sprint(p))
	}
	kernel.Columns = agent.Columns
	for i, p := range pods {
		a, k := report.Row{Name: fmt.Sprint(p)}, report.Row{Name: fmt.Sprint(p)}
		for j, q := range policies {
			m.progress("%d pods, %d policies", p, q)
			resident, total, err := full(m, fmt.Sprintf("m%d%d", i, j), synthetic{pods: p, policies: q}, local)
			if m.Err() != nil {
				return m.Err()
			}
			if err != nil {
				m.Note("%d pods, %d policies: not measured: %v", p, q, err)
				resident, total = report.Words("–"), report.Words("–")
			}
			a.Cells, k.Cells = append(a.Cells, resident), append(k.Cells, total)
		}
		agent.Rows, kernel.Rows = append(agent.Rows, a), append(kernel.Rows, k)
	}
	m.Tables = append(m.Tables, agent, kernel)
	return nil
}

func full(m *measurement, name string, c synthetic, local int) (agent, kernel report.Figure, failed error) {
	s, err := newSite(m, name, 1, lab.Options{Agent: roomFor(c)})
	defer func() { failed = errors.Join(failed, s.close()) }()
	if err != nil {
		return agent, kernel, err
	}
	if err := s.startAPI(c.objects()); err != nil {
		return agent, kernel, err
	}
	n := s.nodes[0]
	if err := s.comesUp(m); err != nil {
		return agent, kernel, err
	}
	if err := s.locals(m, c, local); err != nil {
		return agent, kernel, err
	}
	if s.failedAdds > 0 {
		m.Note("%d pods, %d policies: %d ADDs of pods failed and were tried again", c.pods, c.policies, s.failedAdds)
	}
	resident, most, err := settledMemory(m, n)
	if err != nil {
		return agent, kernel, err
	}
	sizes, err := mapMemory(n.BPFFSDir())
	if err != nil {
		return agent, kernel, err
	}
	total := uint64(0)
	for _, bytes := range sizes {
		total += bytes
	}
	return report.Words("%.0f, at most %.0f", resident, most), report.One(float64(total)/mebi, ""), nil
}
