package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/lab"
)

var cniSection = section{
	name: "cni", title: "A pod's interface", measure: measureCNI,
	method: "ADD and DEL through libcni as a container runtime calls them, on one node, addresses by host-local for all, in turns; network namespaces are there before " +
		"and are no part of it. Weir's ADD returns when the pod's policies are in force; the cluster has 1,000 pods and 100 policies. Beside it are the reference plugins ptp and " +
		"bridge, which know no policy, and Weir chained to ptp.",
}

// plugin is a network's configuration.
type plugin struct {
	name   string
	list   *libcni.NetworkConfigList
	add    []float64 // ms
	del    []float64
	adds20 []float64
	dels20 []float64
	agent  []float64 // its CPU for one ADD, ms
	failed int
}

const parallel = 20

func measureCNI(m *measurement) (failed error) {
	s, err := newSite(m, "c", 1, lab.Options{})
	defer func() { failed = errors.Join(failed, s.close()) }()
	if err != nil {
		return err
	}
	cluster := synthetic{pods: 1000, policies: 100}
	if err := s.startAPI(cluster.objects()); err != nil {
		return err
	}
	n := s.nodes[0]
	if err := n.StartAgent(m); err != nil {
		return err
	}
	plugins, err := networks(n)
	if err != nil {
		return err
	}
	o := &operations{n: n, runtime: libcni.NewCNIConfigWithCacheDir([]string{m.bin}, filepath.Join(n.RunDir(), "cni"), nil)}
	for i := range parallel {
		if err := shell(m, &n.Host, "ip netns add "+o.netns(i)); err != nil {
			return err
		}
		p := cluster.local(i)
		p.Name = podName(i)
		p.Namespace = namespaceName(0)
		if err := s.api.Put("pods", p); err != nil {
			return err
		}
	}
	if err := n.Wait(m); err != nil {
		return err
	}
	for round := range pick(m, 10*m.rounds, 3) + 1 {
		if round%10 == 1 {
			m.progress("one at a time, round %d", round)
		}
		for _, p := range plugins {
			if err := o.one(m, p, round == 0); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	for round := range pick(m, m.rounds, 1) {
		m.progress("%d in parallel, round %d", parallel, round+1)
		for _, p := range plugins {
			o.many(m, p)
		}
	}
	tables(m, plugins)
	return nil
}

func podName(i int) string { return fmt.Sprintf("new-%d", i) }

func networks(n *lab.Node) ([]*plugin, error) {
	type object = map[string]any
	weir := func() object {
		return object{"type": "weir-cni", "stateDir": n.StateDir(), "bpffsDir": n.BPFFSDir()}
	}
	ipam := func(name, subnet string) object {
		return object{"type": "host-local", "dataDir": filepath.Join(n.RunDir(), "addresses-"+name), "ranges": [][]object{{{"subnet": subnet}}},
			"routes": []object{{"dst": "0.0.0.0/0"}}}
	}
	alone := weir()
	alone["ipam"] = ipam("weir", podCIDR(0))
	var out []*plugin
	for _, c := range []struct {
		name    string
		plugins []object
	}{
		{"ptp", []object{{"type": "ptp", "ipam": ipam("ptp", "10.245.0.0/24")}}},
		{"bridge", []object{{"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ipam("bridge", "10.246.0.0/24")}}},
		{"Weir", []object{alone}},
		{"ptp, Weir chained to it", []object{{"type": "ptp", "ipam": ipam("chained", "10.247.0.0/24")}, weir()}},
	} {
		text, err := json.Marshal(object{"cniVersion": "1.0.0", "name": fmt.Sprintf("net-%d", len(out)), "plugins": c.plugins})
		if err != nil {
			return nil, err
		}
		list, err := libcni.NetworkConfFromBytes(text)
		if err != nil {
			return nil, err
		}
		out = append(out, &plugin{name: c.name, list: list})
	}
	return out, nil
}

// operations are ADDs and DELs on the node.
type operations struct {
	n       *lab.Node
	runtime *libcni.CNIConfig
	next    int
}

func (o *operations) netns(i int) string { return fmt.Sprintf("%s-new%d", o.n.Netns, i) }

// container is a new one in namespace i.
func (o *operations) container(i int) *libcni.RuntimeConf {
	o.next++
	return &libcni.RuntimeConf{ContainerID: fmt.Sprintf("container-%d", o.next), NetNS: "/run/netns/" + o.netns(i), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", namespaceName(0)}, {"K8S_POD_NAME", podName(i)}}}
}

func (o *operations) add(ctx context.Context, p *plugin, c *libcni.RuntimeConf) (ms float64, err error) {
	return o.timed(func() error {
		_, err := o.runtime.AddNetworkList(ctx, p.list, c)
		return err
	})
}

func (o *operations) del(ctx context.Context, p *plugin, c *libcni.RuntimeConf) (ms float64, err error) {
	return o.timed(func() error { return o.runtime.DelNetworkList(ctx, p.list, c) })
}

func (o *operations) timed(f func() error) (ms float64, err error) {
	err = o.n.Do(func() error {
		began := time.Now()
		err := f()
		ms = float64(time.Since(began).Microseconds()) / 1000
		return err
	})
	return ms, err
}

func (o *operations) one(ctx context.Context, p *plugin, warm bool) error {
	c := o.container(0)
	before, err := cpuOf(o.n.AgentPid())
	if err != nil {
		return err
	}
	add, err := o.add(ctx, p, c)
	if err != nil {
		return fmt.Errorf("ADD: %w", err)
	}
	after, err := cpuOf(o.n.AgentPid())
	if err != nil {
		return err
	}
	del, err := o.del(ctx, p, c)
	if err != nil {
		return fmt.Errorf("DEL: %w", err)
	}
	if !warm {
		p.add, p.del = append(p.add, add), append(p.del, del)
		p.agent = append(p.agent, float64((after-before).Microseconds())/1000)
	}
	return nil
}

// many at the same time; what fails is counted.
func (o *operations) many(m *measurement, p *plugin) {
	var containers []*libcni.RuntimeConf
	for i := range parallel {
		containers = append(containers, o.container(i))
	}
	for _, op := range []struct {
		name    string
		call    func(context.Context, *plugin, *libcni.RuntimeConf) (float64, error)
		samples *[]float64
	}{{"ADD", o.add, &p.adds20}, {"DEL", o.del, &p.dels20}} {
		var mu sync.Mutex
		var group sync.WaitGroup
		for _, c := range containers {
			group.Go(func() {
				ms, err := op.call(m, p, c)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					p.failed++
					m.Note("%s, %s of %d: %v", p.name, op.name, parallel, err)
					return
				}
				*op.samples = append(*op.samples, ms)
			})
		}
		group.Wait()
	}
}

func tables(m *measurement, plugins []*plugin) {
	t := &report.Table{Name: "cni", Title: "One at a time, ms", Columns: []string{"ADD p50", "ADD p99", "DEL p50", "DEL p99", "ADD to ptp", "agent's CPU for an ADD"}}
	many := &report.Table{Name: "cni-parallel", Title: fmt.Sprintf("%d in parallel, ms each", parallel), Columns: []string{"ADD p50", "ADD p99", "DEL p50", "DEL p99", "failed"}}
	p := func(samples []float64, q float64) report.Figure { return report.One(report.Quantile(samples, q), "") }
	for _, x := range plugins {
		t.Rows = append(t.Rows, report.Row{Name: x.name, Cells: []report.Figure{
			report.Of(x.add, ""), p(x.add, .99), report.Of(x.del, ""), p(x.del, .99), report.Of(report.Ratios(x.add, plugins[0].add), "x"), report.Of(x.agent, "")}})
		many.Rows = append(many.Rows, report.Row{Name: x.name, Cells: []report.Figure{
			report.Of(x.adds20, ""), p(x.adds20, .99), report.Of(x.dels20, ""), p(x.dels20, .99), report.One(float64(x.failed), "")}})
	}
	m.Tables = append(m.Tables, t, many)
	weir := plugins[slices.IndexFunc(plugins, func(x *plugin) bool { return x.name == "Weir" })]
	m.AtMost("CNI ADD, policy included, to the ptp plugin", median(report.Ratios(weir.add, plugins[0].add)), 1.3, "x")
	m.AtMost(fmt.Sprintf("failures of %d ADDs and DELs in parallel", parallel), float64(weir.failed), 0, "")
}
