package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/bench/yard"
	"github.com/weirnet/weir/tests/lab"
)

var trafficSection = section{
	name: "traffic", title: "Traffic between pods", measure: measureTraffic,
	method: "Two pods, IPv4. Ping-pong: a byte there and back on an open TCP connection. Connect/close: a connection for each such byte. " +
		"UDP: datagrams of 22 bytes of one flow whose ends have heard each other before, counted where they enter the pod. Bulk: TCP as fast as it goes. Each is what plain routing does, times a factor: " +
		"all subjects of a table are up at once, each in namespaces of its own, and take turns; both ends, and daemons that packets wait for, run on one CPU " +
		"at real-time priority, and such a daemon has nothing left to do when a burst begins. Policies are those of one pod: each lets one peer in by one port, the last the pod that sends. What iptables and nftables " +
		"are given is what a controller of that kind writes, on the node of that pod: a chain for the pod, a chain for each policy, an open connection goes on at once; " +
		"one set for all policies is what such a controller could do at best (on one node only). " +
		"kube-network-policies is v1.1.1; where the kernel has no nftables queue it gets the packets by its rules as iptables has them, an open connection goes past it. " +
		"The shield is on the pods' interfaces, and over two nodes on the uplinks, too.",
}

// subject is who stands between the pods.
type subject struct {
	name  string
	lab   lab.Options
	start func(context.Context, *site) error
	site  *site
	rates map[string][]float64
}

// settles is how long a daemon may work on what came before.
const settles = 15 * time.Second

const plainName = "plain routing"

var trafficKinds = []string{"pingpong", "connect", "udp", "bulk"}

var trafficColumns = []string{"ping-pong", "connect/close", "UDP", "TCP bulk"}

func measureTraffic(m *measurement) error {
	var y yard.YardObjects
	if err := yard.LoadYardObjects(&y, nil); err != nil {
		return err
	}
	defer y.Close()
	for _, place := range []struct {
		name, title string
		nodes       int
		subjects    []*subject
	}{
		{"traffic", "On one node", 1, oneNode(m)},
		{"native", "Over two nodes, routed", 2, twoNodes(m, false)},
		{"vxlan", "Over two nodes, in VXLAN", 2, twoNodes(m, true)},
	} {
		if err := runTraffic(m, &y, place.name, place.title, place.nodes, place.subjects); err != nil {
			return fmt.Errorf("%s: %w", place.title, err)
		}
	}
	return nil
}

// plain makes pods and has rules written.
func plain(rules func(a, b string) []ruleset) func(context.Context, *site) error {
	return func(ctx context.Context, s *site) error {
		if err := s.addPods(ctx); err != nil {
			return err
		}
		if rules == nil {
			return nil
		}
		return apply(ctx, s.last(), rules(s.a.Addr4, s.b.Addr4)...)
	}
}

// tracked is one rule that asks for a connection's state, as any node has that kube-proxy is on.
func tracked(string, string) []ruleset {
	return []ruleset{{nft, "table inet tracked { chain c { type filter hook forward priority 0; ct state invalid counter; }; }\n"}}
}

// ofWeir is Weir with policies.
func ofWeir(policies int) func(context.Context, *site) error {
	return func(ctx context.Context, s *site) error { return s.weir(ctx, policies) }
}

func oneNode(m *measurement) []*subject {
	subjects := []*subject{
		{name: plainName, start: plain(nil)},
		{name: "plain routing, once more", start: plain(nil)},
		{name: "plain routing, connections tracked", start: plain(tracked)},
	}
	subjects = append(subjects, weirs(lab.Options{}, lab.Options{XDP: "generic"}, lab.Options{XDP: "native"})...)
	subjects = append(subjects,
		&subject{name: "Weir, 1000 policies, flows followed", start: followed},
		&subject{name: "Weir, 1000 policies, nobody reads flows", start: unread})
	for _, n := range []int{10, 1000} {
		subjects = append(subjects, &subject{name: fmt.Sprintf("nftables with one set, %d policies", n), start: plain(func(a, b string) []ruleset { return oneSet(n, a, b) })})
	}
	return append(subjects, peers(m, plain)...)
}

// weirs is Weir without a shield, with few policies and many, and with one.
func weirs(off, generic, native lab.Options) (subjects []*subject) {
	for _, n := range []int{0, 10, 1000} {
		subjects = append(subjects, &subject{name: fmt.Sprintf("Weir, %d policies", n), lab: off, start: ofWeir(n)})
	}
	return append(subjects,
		&subject{name: "Weir, 1000 policies, shield generic", lab: generic, start: ofWeir(1000)},
		&subject{name: "Weir, 1000 policies, shield native", lab: native, start: ofWeir(1000)})
}

// peers are whoever else enforces policies, with few and with many; by is how pods and rules are made.
func peers(m *measurement, by func(func(a, b string) []ruleset) func(context.Context, *site) error) (subjects []*subject) {
	for _, n := range []int{10, 1000} {
		subjects = append(subjects,
			&subject{name: fmt.Sprintf("iptables, %d policies", n), start: by(func(a, b string) []ruleset { return iptables(n, a, b, false) })},
			&subject{name: fmt.Sprintf("iptables with ipset, %d policies", n), start: by(func(a, b string) []ruleset { return iptables(n, a, b, true) })},
			&subject{name: fmt.Sprintf("nftables, %d policies", n), start: by(func(a, b string) []ruleset { return nftables(n, a, b, false) })},
			&subject{name: fmt.Sprintf("nftables with sets, %d policies", n), start: by(func(a, b string) []ruleset { return nftables(n, a, b, true) })})
	}
	for _, n := range []int{10, 1000} {
		subjects = append(subjects, &subject{name: fmt.Sprintf("kube-network-policies, %d policies", n), start: kubeNetworkPolicies(m.bin, n, by(nil))})
	}
	return subjects
}

func twoNodes(m *measurement, vxlan bool) []*subject {
	routed := func(rules func(a, b string) []ruleset) func(context.Context, *site) error {
		return func(ctx context.Context, s *site) error {
			if err := plain(rules)(ctx, s); err != nil {
				return err
			}
			return s.routes(ctx, vxlan)
		}
	}
	mode := "native"
	if vxlan {
		mode = "vxlan"
	}
	weir := func(shield string) lab.Options {
		o := lab.Options{Agent: []string{"--uplink", "up0", "--uplink", "join", "--routing", mode, "--masquerade=false"}}
		if shield != "" {
			o.XDP, o.Agent = shield, append(o.Agent, "--uplink-xdp", shield)
		}
		return o
	}
	subjects := []*subject{
		{name: plainName, start: routed(nil)},
		{name: "plain routing, once more", start: routed(nil)},
		{name: "plain routing, connections tracked", start: routed(tracked)},
	}
	subjects = append(subjects, weirs(weir(""), weir("generic"), weir("native"))...)
	return append(subjects, peers(m, routed)...)
}

// followed has somebody read flow records as they come.
func followed(ctx context.Context, s *site) error {
	if err := s.weir(ctx, 1000); err != nil {
		return err
	}
	n := s.nodes[0]
	cmd := exec.Command(n.Binary("weir"), "--state-dir", n.StateDir(), "flows", "--follow", "-o", "json")
	cmd.Stdout = io.Discard
	if err := n.Start(cmd); err != nil {
		return err
	}
	s.ends = append(s.ends, cmd)
	return nil
}

// unread has no agent: what is enforced stays, records are lost once the ring is full.
func unread(ctx context.Context, s *site) error {
	if err := s.weir(ctx, 1000); err != nil {
		return err
	}
	return s.nodes[0].StopAgent()
}

// kubeNetworkPolicies starts a peer that judges in its own process, on each node. All new
// connections' packets wait for it, so it runs where they do.
func kubeNetworkPolicies(bin string, policies int, pods func(context.Context, *site) error) func(context.Context, *site) error {
	return func(ctx context.Context, s *site) error {
		if err := pods(ctx, s); err != nil {
			return err
		}
		objects := cluster(policies)
		objects["pods"] = append(objects["pods"], podObject(s, "a"), podObject(s, "b"))
		if err := s.startAPI(objects); err != nil {
			return err
		}
		for i, n := range s.nodes {
			if err := s.startJudge(ctx, bin, i); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
		return nil
	}
}

func (s *site) startJudge(ctx context.Context, bin string, node int) error {
	n := s.nodes[node]
	cmd := exec.Command("taskset", "-c", fmt.Sprint(runtime.NumCPU()-1), "chrt", "-r", "20", filepath.Join(bin, "kube-network-policies"),
		"-kubeconfig", filepath.Join(n.RunDir(), "kubeconfig"), "-hostname-override", nodeName(node), "-disable-nri", "-v", "0")
	log, err := os.Create(filepath.Join(n.RunDir(), "kube-network-policies.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.Start(cmd); err != nil {
		return err
	}
	s.ends, s.judges = append(s.ends, cmd), append(s.judges, cmd.Process.Pid)
	own, said := false, ""
	err = until(ctx, 10*time.Second, "kube-network-policies has rules, or says that it cannot", func() bool {
		out, err := n.Run(ctx, "nft", "list", "ruleset")
		text, _ := os.ReadFile(log.Name())
		own, said = err == nil && len(out) > 0, string(text)
		return own || strings.Contains(said, "nftables sync failed")
	})
	if err != nil {
		return fmt.Errorf("%w: it says: %s", err, end300(said))
	}
	if own {
		return nil
	}
	if n != s.last() {
		return apply(ctx, n, queueRules("")...)
	}
	return apply(ctx, n, queueRules(s.b.Addr4)...)
}

// until waits for something to come about.
func until(ctx context.Context, limit time.Duration, what string, ok func() bool) error {
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("not within %v: %s", limit, what)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// runTraffic has the subjects take turns.
func runTraffic(m *measurement, y *yard.YardObjects, name, title string, nodes int, subjects []*subject) (failed error) {
	defer func() {
		var sites []*site
		for _, s := range subjects {
			if s.site != nil {
				sites = append(sites, s.site)
			}
		}
		failed = errors.Join(failed, closeAll(sites...))
	}()
	var up []*subject
	for i, s := range subjects {
		if i > 0 && !m.match.MatchString(s.name) {
			continue
		}
		m.progress("%s: %s", title, s.name)
		if err := s.up(m, y, fmt.Sprintf("%s%d", name[:1], i), nodes); err != nil {
			if i == 0 || m.Err() != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			m.Note("%s, %s: not measured: %v", title, s.name, err)
			continue
		}
		up = append(up, s)
	}
	for round := range m.rounds {
		m.progress("%s: round %d of %d", title, round+1, m.rounds)
		for _, s := range up {
			for _, kind := range trafficKinds {
				if m.Err() != nil {
					return m.Err()
				}
				rate, err := s.burst(m, y, kind)
				if err != nil {
					m.Note("%s, %s, round %d: %v", title, s.name, round+1, err)
				}
				s.rates[kind] = append(s.rates[kind], rate)
			}
		}
	}
	t := &report.Table{Name: "traffic-" + name, Title: title + ", to plain routing", Head: "", Columns: trafficColumns, Plot: report.Dots}
	for _, s := range up {
		row := report.Row{Name: s.name}
		for _, kind := range trafficKinds {
			row.Cells = append(row.Cells, report.Of(report.Ratios(nonzero(s.rates[kind], up[0].rates[kind])), ""))
		}
		t.Rows = append(t.Rows, row)
	}
	rates := report.Row{Name: plainName}
	for i, unit := range []string{"/s", "/s", "/s", " GB/s"} {
		samples := up[0].rates[trafficKinds[i]]
		if unit == " GB/s" {
			samples = report.Ratios(samples, repeat(1e9, len(samples)))
		}
		rates.Cells = append(rates.Cells, report.Of(samples, unit))
	}
	m.Tables = append(m.Tables, t, &report.Table{Name: name + "-plain", Title: title + ", what plain routing does", Columns: trafficColumns, Rows: []report.Row{rates}})
	trafficGoals(m, t, name)
	return nil
}

func repeat(v float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = v
	}
	return out
}

// nonzero leaves out the rounds in which either failed.
func nonzero(a, b []float64) (x, y []float64) {
	for i := range a {
		if i < len(b) && a[i] > 0 && b[i] > 0 {
			x, y = append(x, a[i]), append(y, b[i])
		}
	}
	return x, y
}

// where names tables' goals.
var where = map[string]string{"traffic": "", "native": ", two nodes, routed", "vxlan": ", two nodes, VXLAN"}

func trafficGoals(m *measurement, t *report.Table, name string) {
	find := func(name string, column int) float64 {
		for _, r := range t.Rows {
			if r.Name == name {
				return r.Cells[column].Median
			}
		}
		return 0
	}
	const weir = "Weir, 1000 policies"
	m.AtLeast("ping-pong to plain routing, 1,000 policies, flow records on"+where[name], find(weir, 0), 1, "x")
	m.AtLeast("connect/close to plain routing, likewise", find(weir, 1), 1, "x")
	m.AtLeast("UDP to plain routing, likewise", find(weir, 2), 1.15, "x")
	if peer := find("kube-network-policies, 1000 policies", 1); peer > 0 {
		m.AtLeast("connect/close to kube-network-policies"+where[name], find(weir, 1)/peer, 3, "x")
	}
}

// up starts the subject and sees that its pods talk.
func (s *subject) up(m *measurement, y *yard.YardObjects, name string, nodes int) (err error) {
	s.rates = map[string][]float64{}
	if s.site, err = newSite(m, name, nodes, s.lab); err != nil {
		return err
	}
	if err := s.start(m, s.site); err != nil {
		return err
	}
	if err := s.site.serve(); err != nil {
		return err
	}
	err = s.site.b.Do(func() error {
		eth0, err := device("eth0")
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: eth0, Program: y.Sink, Attach: ebpf.AttachTCXIngress})
		sinks = append(sinks, l) // it goes with the process
		return err
	})
	if err != nil {
		return err
	}
	_, err = send(s.site.a, "connect", s.site.b.Addr4, portEcho, 20)
	return err
}

var sinks []link.Link

// burst is one kind of traffic for a while.
func (s *subject) burst(m *measurement, y *yard.YardObjects, kind string) (float64, error) {
	if err := s.settled(m); err != nil {
		return 0, err
	}
	ms := pick(m, 250, 60)
	if len(s.site.nodes) > 1 { // there are more of these
		ms = pick(m, 200, 60)
	}
	to := s.site.b.Addr4
	switch kind {
	case "bulk":
		return send(s.site.a, kind, to, portTake, ms)
	case "udp":
		return s.udp(m, y, to, ms)
	}
	return send(s.site.a, kind, to, portEcho, ms)
}

// udp counts what arrives: who drops is fast. The flow is open before: each end has heard
// the other.
func (s *subject) udp(m *measurement, y *yard.YardObjects, to string, ms int) (float64, error) {
	if err := y.SinkCount.Set(uint64(0)); err != nil {
		return 0, err
	}
	heard := make(chan error, 1)
	go func() {
		_, err := send(s.site.a, "opening", to, portSink, 900)
		heard <- err
	}()
	var count uint64
	err := until(m, time.Second, "the first datagram has come", func() bool { return y.SinkCount.Get(&count) == nil && count > 0 })
	if err == nil {
		_, err = send(s.site.b, "answer", s.site.a.Addr4, portFrom, 1)
	}
	if err = errors.Join(err, <-heard, s.settled(m)); err != nil {
		return 0, err
	}
	if err := y.SinkCount.Set(uint64(0)); err != nil {
		return 0, err
	}
	rate, err := send(s.site.a, "udp", to, portSink, ms)
	if err != nil {
		return 0, err
	}
	if err := y.SinkCount.Get(&count); err != nil {
		return 0, err
	}
	sent := rate * float64(ms) / 1000
	return rate * min(1, float64(count)/sent), nil
}

// settled waits until a daemon that packets wait for has no more of them to judge: what is
// left of one burst would be in the way of the next.
func (s *subject) settled(ctx context.Context) error {
	for _, pid := range s.site.judges {
		var busy error
		err := until(ctx, settles, "the daemon has nothing left to judge", func() bool {
			before, err := cpuOf(pid)
			time.Sleep(30 * time.Millisecond)
			after, again := cpuOf(pid)
			busy = errors.Join(err, again)
			return busy != nil || after-before < time.Millisecond
		})
		if err = errors.Join(err, busy); err != nil {
			return err
		}
	}
	return nil
}
