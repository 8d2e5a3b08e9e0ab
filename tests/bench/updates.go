package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weirnet/weir/tests/bench/apiserver"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/lab"
)

var updates = section{
	name: "updates", title: "A change of policy", measure: measureUpdates,
	method: "An agent on a node with ten pods watches an API server's watch events, in protobuf as from a real one: ten pods in the cluster for each policy, in namespaces of a " +
		"hundred. A change is sent as one event; it is in force when the epoch that programs read has moved. Writes are counted from outside: entries that bpf(2) puts or " +
		"deletes, and words of the maps that the agent has in its memory. CPU is the agent's, until it is quiet again. Beside rules a pod of one node has all the policies, for Weir too, and " +
		"one of them gets another port; in a row of its own Weir has as many in a cluster, ten of them of pods here. What iptables and nftables are given is a chain " +
		"for the policy that changed, or everything, as a controller writes that keeps no account. All of these take turns.",
}

const localPods = 10

func measureUpdates(m *measurement) error {
	sizes := slices.DeleteFunc(pick(m, []int{10, 1000, 10000}, []int{10, 100}), func(n int) bool { return !m.match.MatchString(fmt.Sprintf("%d policies", n)) })
	latency := &report.Table{Name: "updates", Title: "From the event to its being in force, ms", Head: "policies in the cluster", Plot: report.Lines}
	cpu := &report.Table{Name: "updates-cpu", Title: "The agent's CPU for it, ms", Head: latency.Head, Plot: report.Lines}
	counts := &report.Table{Name: "updates-writes", Title: "Map writes for it: entries + words", Head: latency.Head,
		Note: "Where something comes. What is gone means nothing at once (3 words); its entries leave the maps with others' within a second, at the cost that churn has."}
	rest := &report.Table{Name: "updates-rest", Title: "Start and churn", Head: latency.Head}
	rules := &report.Table{Name: "updates-others", Title: "The same change by rules, ms", Head: "policies", Plot: report.Lines,
		Note: "Rules: until the command has ended, its start is in it; iptables has the kernel take a whole table for any change. Weir: from the event to its being in force. " +
			"Rules of the second row's node would be those of its ten policies: the first column."}
	tables := []*report.Table{latency, cpu, counts, rest, rules}
	for _, t := range tables {
		for _, n := range sizes {
			t.Columns = append(t.Columns, fmt.Sprint(n))
		}
	}
	for i, n := range sizes {
		u := &update{m: m, cluster: synthetic{pods: 10 * n, policies: n}, last: i == len(sizes)-1}
		if err := u.run(fmt.Sprintf("u%d", i), latency, cpu, counts, rest, rules); err != nil {
			if m.Err() != nil {
				return err
			}
			m.Note("%d policies, %d pods: not measured to the end: %v", n, 10*n, err)
		}
		for _, t := range tables {
			pad(t, i+1)
		}
	}
	m.Tables = append(m.Tables, tables...)
	return nil
}

// pad has each row have a cell for each size so far.
func pad(t *report.Table, cells int) {
	for i := range t.Rows {
		for len(t.Rows[i].Cells) < cells {
			t.Rows[i].Cells = append(t.Rows[i].Cells, report.Words("–"))
		}
	}
}

// update is a node in a cluster of one size.
type update struct {
	*observer
	m       *measurement
	cluster synthetic
	site    *site
	last    bool
}

// change is what is sent, back and forth.
type change struct {
	name string
	send func(u *update, round int) error
	// inForce says whether it is, since the epoch was that; nil: there is nothing to see.
	inForce func(u *update, round int, since uint64) bool
}

// moved is the epoch's.
func moved(u *update, _ int, since uint64) bool { return atomic.LoadUint64(u.epoch) != since }

// changes are those of policies, then those of pods elsewhere, which come together and go together.
var changes = []change{
	{"a policy of a pod here", func(u *update, round int) error {
		return u.site.api.Put("networkpolicies", u.cluster.policy(0, 2000+round%2))
	}, moved},
	{"a policy of pods elsewhere", func(u *update, round int) error {
		i := min(u.cluster.policies-1, u.cluster.namespaces()-1)
		return u.site.api.Put("networkpolicies", u.cluster.policy(i, 2000+round%2))
	}, nil},
	{"a pod comes or goes", func(u *update, round int) error { return u.comes(u.cluster.pods, nil, round) }, moved},
	{"an identity comes or goes that no rule names", func(u *update, round int) error {
		return u.comes(u.newcomer(100+round/2), map[string]string{"app": fmt.Sprint("new-", round/2)}, round)
	}, moved},
	{"an identity comes or goes that a rule names", func(u *update, round int) error {
		return u.comes(u.newcomer(200+round/2), map[string]string{"app": newcomerApp(round / 2)}, round)
	}, moved},
}

// newcomer is the number of a pod beyond the cluster's, of the second namespace.
func (u *update) newcomer(i int) int {
	return u.cluster.pods + i*u.cluster.namespaces() + 1%u.cluster.namespaces()
}

// comes has pod number i come in even rounds and go in odd ones.
func (u *update) comes(i int, labels map[string]string, round int) error {
	p := u.cluster.pod(i)
	maps.Copy(p.Labels, labels)
	if round%2 == 1 {
		return u.site.api.Delete("pods", p)
	}
	return u.site.api.Put("pods", p)
}

func (u *update) run(name string, latency, cpu, counts, rest, rules *report.Table) (failed error) {
	m := u.m
	m.progress("%d policies, %d pods: the cluster", u.cluster.policies, u.cluster.pods)
	var err error
	defer func() {
		if u.observer != nil {
			u.observer.close()
		}
		if u.site != nil {
			failed = errors.Join(failed, u.site.close())
		}
	}()
	took, most, err := u.start(name)
	if err != nil {
		return err
	}
	put(rest, "from nothing to in force, s", report.One(took.Seconds(), ""))
	put(rest, "memory at most, MiB", report.One(most, ""))
	if u.last {
		m.AtMost("start from nothing, largest cluster", took.Seconds(), 20, " s")
		m.AtMost("resident memory then, at most", most, 300, " MiB")
	}
	if u.observer, err = observe(u.site.nodes[0]); err != nil {
		return err
	}
	for _, group := range [][]change{changes[:1], changes[1:2], changes[2:]} {
		if err := u.measure(group, latency, cpu, counts); err != nil {
			return err
		}
	}
	if err := u.beside(name+"r", rules); err != nil {
		return fmt.Errorf("beside rules: %w", err)
	}
	share, err := u.churn()
	if err != nil {
		return err
	}
	put(rest, "CPU at 100 pod events/s, % of a core", report.One(share, ""))
	if u.last {
		m.AtMost("agent CPU for one policy change, largest cluster", median(lastOf(cpu, changes[0].name)), 5, " ms")
		m.AtMost("agent CPU for a policy of pods elsewhere, largest cluster", median(lastOf(cpu, changes[1].name)), 5, " ms")
		m.AtMost("100 pod events/s, largest cluster", share, 5, " % of a core")
	}
	return nil
}

// put adds a figure to a row, which is made at first.
func put(t *report.Table, name string, f report.Figure) {
	for i := range t.Rows {
		if t.Rows[i].Name == name {
			t.Rows[i].Cells = append(t.Rows[i].Cells, f)
			return
		}
	}
	t.Rows = append(t.Rows, report.Row{Name: name, Cells: []report.Figure{f}})
}

// lastOf is a row's last samples.
func lastOf(t *report.Table, name string) []float64 {
	for _, r := range t.Rows {
		if r.Name == name {
			return r.Cells[len(r.Cells)-1].Samples
		}
	}
	return nil
}

// start has the agent come to a cluster that is there, then its pods.
func (u *update) start(name string) (took time.Duration, most float64, err error) {
	if u.site, err = newSite(u.m, name, 1, lab.Options{Agent: roomFor(u.cluster)}); err != nil {
		return 0, 0, err
	}
	objects := u.cluster.objects()
	objects["networkpolicies"] = append(objects["networkpolicies"], u.cluster.newcomers())
	if err := u.site.startAPI(objects); err != nil {
		return 0, 0, err
	}
	n := u.site.nodes[0]
	began := time.Now()
	if err := u.site.comesUp(u.m); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	u.m.progress("in force after %s", took.Round(time.Millisecond))
	if err := u.site.locals(u.m, u.cluster, localPods); err != nil {
		return 0, 0, err
	}
	if u.site.failedAdds > 0 {
		u.m.Note("%d policies, %d pods: %d ADDs of pods failed and were tried again", u.cluster.policies, u.cluster.pods, u.site.failedAdds)
	}
	_, most, err = memoryOf(n.AgentPid())
	return took, most, err
}

// comesUp starts the agent, which may take long among many objects.
func (s *site) comesUp(ctx context.Context) error {
	n := s.nodes[0]
	if err := n.LaunchAgent(); err != nil {
		return err
	}
	err := until(ctx, 4*time.Minute, "the agent enforces what the cluster has", func() bool { return n.Wait(ctx) == nil })
	if err != nil {
		return fmt.Errorf("%w: %s", err, end300(n.LogTail()))
	}
	return nil
}

// roomFor is what the agent of so large a cluster is told about its maps.
func roomFor(c synthetic) []string {
	if c.pods < 50000 {
		return nil
	}
	return []string{"--map-size", "addresses=524288"}
}

// locals attaches this node's pods.
func (s *site) locals(ctx context.Context, c synthetic, count int) error {
	n := s.nodes[0]
	for i := range count {
		p := c.local(i)
		if err := s.api.Put("pods", p); err != nil {
			return err
		}
		attached, err := s.insist(ctx, p)
		if err != nil {
			return err
		}
		if err := s.api.Put("pods", apiserver.Pod(p.Namespace, p.Name, "node-a", p.Labels, attached.Addr4, attached.Addr6)); err != nil {
			return err
		}
	}
	return n.Wait(ctx)
}

// insist adds a pod as kubelet does, again and again; what failed is told of.
func (s *site) insist(ctx context.Context, p *corev1.Pod) (attached *lab.Pod, err error) {
	failed := 0
	var last error
	err = until(ctx, 3*time.Minute, "ADD of "+p.Name, func() bool {
		if attached, last = s.nodes[0].AddPod(ctx, p.Namespace, p.Name); last != nil {
			failed++
		}
		return last == nil
	})
	if err != nil {
		return nil, errors.Join(err, last)
	}
	s.failedAdds += failed
	return attached, nil
}

// gone is how long what is gone may stay in the maps, to leave them with others.
const gone = 1200 * time.Millisecond

// goneAlone is likewise, of one that goes alone.
const goneAlone = 200 * time.Millisecond

// measure sends the changes to and fro; the first time is not counted.
func (u *update) measure(group []change, latency, cpu, counts *report.Table) error {
	type samples struct {
		ms, busy []float64
		wrote    []writes
	}
	all := make([]samples, len(group))
	for round := range 2 * (u.m.rounds + 1) {
		for i, c := range group {
			if u.m.Err() != nil {
				return u.m.Err()
			}
			if round == 0 {
				u.m.progress("%d policies: %s", u.cluster.policies, c.name)
			}
			one, err := u.once(c, round)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if len(group) > 1 && round%2 == 1 {
				time.Sleep(goneAlone) // or its leaving is taken for the next being in force
			}
			if round < 2 {
				continue
			}
			s := &all[i]
			s.busy = append(s.busy, one.busy)
			if round%2 == 0 {
				s.wrote = append(s.wrote, one.writes)
			}
			if c.inForce != nil {
				s.ms = append(s.ms, one.ms)
			}
		}
		if len(group) > 1 && round%2 == 1 {
			time.Sleep(gone)
		}
	}
	for i, c := range group {
		if len(all[i].ms) > 0 {
			put(latency, c.name, report.Of(all[i].ms, ""))
		} else {
			put(latency, c.name, report.Words("nothing to change"))
		}
		put(cpu, c.name, report.Of(all[i].busy, ""))
		put(counts, c.name, report.Words("%s", usual(all[i].wrote)))
	}
	return nil
}

// usual is what most of them are; a look at the maps may come between.
func usual(all []writes) (most writes) {
	times := map[string]int{}
	for _, w := range all {
		if times[w.String()]++; times[w.String()] > times[most.String()] || len(times) == 1 {
			most = w
		}
	}
	return most
}

// one change as it was seen.
type seen struct {
	ms, busy float64
	writes
}

func (u *update) once(c change, round int) (s seen, err error) {
	if err := u.quiet(); err != nil {
		return s, err
	}
	before, pages, epoch := writes{}, u.snapshot(), atomic.LoadUint64(u.epoch)
	if before, err = u.counted(); err != nil {
		return s, err
	}
	busy, err := cpuOf(u.pid)
	if err != nil {
		return s, err
	}
	began := time.Now()
	if err := c.send(u, round); err != nil {
		return s, err
	}
	for c.inForce != nil && !c.inForce(u, round, epoch) {
		if time.Since(began) > 20*time.Second {
			return s, errors.New("it was not in force after 20 s")
		}
		time.Sleep(20 * time.Microsecond)
	}
	s.ms = float64(time.Since(began).Microseconds()) / 1000
	if err := u.quiet(); err != nil {
		return s, err
	}
	after, err := cpuOf(u.pid)
	if err != nil {
		return s, err
	}
	s.busy = float64((after - busy).Microseconds()) / 1000
	done, err := u.counted()
	s.calls, s.entries = done.calls-before.calls, done.entries-before.entries
	s.words = u.changed(pages)
	return s, err
}

// quiet waits until the agent does next to nothing for a while.
func (u *update) quiet() error {
	time.Sleep(60 * time.Millisecond) // changes soon after a commit join the next
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		before, err := cpuOf(u.pid)
		if err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
		after, err := cpuOf(u.pid)
		if err != nil {
			return err
		}
		if after-before < 3*time.Millisecond {
			return nil
		}
	}
	return nil // it is busy with itself, and that is its CPU
}

// churn is a hundred pods a second that come and go, and what of a core the agent takes.
func (u *update) churn() (percent float64, err error) {
	seconds := pick(u.m, 10, 2)
	u.m.progress("%d policies: 100 pod events/s for %d s", u.cluster.policies, seconds)
	before, err := cpuOf(u.pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range 100 * seconds {
		<-tick.C
		if err := u.comes(u.newcomer(300)+i/2, nil, i); err != nil {
			return 0, err
		}
	}
	after, err := cpuOf(u.pid)
	return 100 * float64(after-before) / float64(time.Since(began)), err
}
