package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/bench/yard"
	"github.com/weirnet/weir/tests/lab"
	"github.com/weirnet/weir/tests/testnode"
)

func flowCrafted(m *measurement) (failed error) {
	s, err := newSite(m, "x", 1, lab.Options{Agent: append([]string{"--map-size", "flows=2097152", "--map-size", "flow_events=33554432"}, recordsOn...)})
	defer func() { failed = errors.Join(failed, s.close()) }()
	if err != nil {
		return err
	}
	if err := s.weir(m, 0); err != nil {
		return err
	}
	n := s.nodes[0]
	ctx, cancel := context.WithCancel(m)
	defer cancel()
	scrape(ctx, n)
	f, err := hubbleFollower(s)
	if err != nil {
		return err
	}
	c, err := newCrafter(s)
	if err != nil {
		return err
	}
	defer c.yard.Close()
	t := &report.Table{Name: "flows-crafted", Title: "New flows of crafted packets; metrics and a Hubble follower", Columns: []string{
		"flows/s", "made", "lost in the kernel", "lost by the follower", "agent's CPU for 10,000, s", "not accounted for",
	}}
	m.Tables = append(m.Tables, t)
	for _, rate := range []int{50000, 100000, 0} {
		name := fmt.Sprintf("%d a second", rate)
		if rate == 0 {
			name = "as fast as one CPU makes them"
		}
		m.progress("crafted, %s", name)
		before, err := statusOf(ctx, n)
		if err != nil {
			return err
		}
		cpu, err := cpuOf(n.AgentPid())
		if err != nil {
			return err
		}
		long := pick(m, 4*time.Second, 300*time.Millisecond)
		if rate == 0 {
			long = min(long, time.Second) // the table holds no more
		}
		made, took, err := c.make(rate, long)
		if err != nil {
			return err
		}
		var after *api.Status
		err = until(ctx, time.Minute, "all that was written is read", func() bool {
			after, err = statusOf(ctx, n)
			if err != nil {
				return false
			}
			r, l := f.account(after), after.Flows.Log
			return after.Flows.Emitted == l.Read && r.Taken+r.Lost >= f.account(before).Taken+f.account(before).Lost+l.Records-before.Flows.Log.Records
		})
		if err != nil {
			return err
		}
		spent, err := cpuOf(n.AgentPid())
		if err != nil {
			return err
		}
		lost := float64(after.Flows.Lost - before.Flows.Lost)
		unknown := float64(after.Flows.Emitted-before.Flows.Emitted) + lost - float64(made)
		byFollower := float64(f.account(after).Lost - f.account(before).Lost)
		t.Rows = append(t.Rows, report.Row{Name: name, Cells: []report.Figure{
			report.One(float64(made)/took.Seconds(), ""), report.One(float64(made), ""), report.One(lost, ""), report.One(byFollower, ""),
			report.One((spent-cpu).Seconds()*1e4/float64(made), ""), report.One(unknown, ""),
		}})
		if rate == 50000 {
			m.AtMost("records lost in the kernel at 50,000 new flows a second", lost, 0, "")
		}
		m.AtMost("events not accounted for, "+name, max(unknown, -unknown), 0, "")
	}
	return nil
}

// crafter feeds from_pod packets of pod a, each of another flow.
type crafter struct {
	host    *lab.Host
	yard    yard.YardObjects
	ifindex int
	packet  []byte
}

func newCrafter(s *site) (*crafter, error) {
	n := s.nodes[0]
	c := &crafter{host: &n.Host}
	if err := yard.LoadYardObjects(&c.yard, nil); err != nil {
		return nil, err
	}
	stub, err := ebpf.LoadPinnedProgram(filepath.Join(n.BPFFSDir(), "progs", "stub_from_pod"), nil)
	if err != nil {
		return nil, err
	}
	defer stub.Close()
	err = s.a.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err == nil {
			c.ifindex = eth0.Attrs().ParentIndex // the other end of the veth
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pod a's device: %w", err)
	}
	if c.packet, err = testnode.UDP(s.a.Addr4, 1, s.b.Addr4, 1).Serialize(); err != nil {
		return nil, err
	}
	return c, errors.Join(c.yard.Target.Update(uint32(0), stub, ebpf.UpdateAny), c.yard.FeedMode.Set(uint32(next)), c.yard.FeedPort.Set(uint32(1)))
}

// make makes rate flows a second for a while, in portions of a millisecond; 0 = without a pause.
func (c *crafter) make(rate int, d time.Duration) (made int, took time.Duration, err error) {
	err = c.host.Do(func() error {
		var set unix.CPUSet
		set.Set(runtime.NumCPU() - 1)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		began := time.Now()
		for time.Since(began) < d {
			portion := 1000
			if rate > 0 {
				portion = int(time.Since(began).Seconds()*float64(rate)) - made
			}
			if portion > 0 {
				_, err := c.yard.Feed.Run(&ebpf.RunOptions{Data: c.packet, Repeat: uint32(portion), Context: testnode.Context(c.ifindex)})
				if err != nil {
					return err
				}
				made += portion
			}
			if rate > 0 {
				time.Sleep(time.Millisecond)
			}
		}
		took = time.Since(began)
		return nil
	})
	return made, took, err
}
