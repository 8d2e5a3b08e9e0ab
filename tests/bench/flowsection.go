package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/bench/yard"
	"github.com/weirnet/weir/tests/lab"
)

var flowSection = section{
	name: "flows", title: "Flow records", measure: measureFlows,
	method: "Two pods of one node, 10 policies. Ratios: connect/close and TCP bulk as under traffic, on to off, paired by round. " +
		"On: every connection recorded with its process, a record of each flow that goes on every second, spilled to disk, metrics scraped every second, a follower by Hubble's API. " +
		"Off: --flow-records=false, no record is written and no process named. Policy is enforced in both. " +
		"Churn: two pairs of processes at ordinary priority open and close connections, on both CPUs, which the agent and its readers have to share with them; " +
		"each connection is two records. Crafted: a new UDP flow a packet, through from_pod by test runs. " +
		"CPU is the agent's own, from before the first connection until the last record is read, less what it takes with nothing to do. " +
		"Not accounted for: events that were written and neither read nor counted as lost, records that the reader neither took nor lost; of crafted packets, flows made less events written and lost.",
}

const metricsAt = "127.0.0.1:9945"

var (
	recordsOn  = []string{"--metrics-listen", metricsAt, "--flow-update", "1s"}
	recordsOff = []string{"--flow-records=false"}
)

func measureFlows(m *measurement) error {
	if err := flowRatios(m); err != nil {
		return fmt.Errorf("ratios: %w", err)
	}
	if err := flowChurn(m); err != nil {
		return fmt.Errorf("churn: %w", err)
	}
	if err := flowCrafted(m); err != nil {
		return fmt.Errorf("crafted: %w", err)
	}
	return nil
}

// Ratios.

func flowRatios(m *measurement) (failed error) {
	var y yard.YardObjects
	if err := yard.LoadYardObjects(&y, nil); err != nil {
		return err
	}
	defer y.Close()
	off := &subject{name: "off", lab: lab.Options{Agent: recordsOff}, start: ofWeir(10)}
	on := &subject{name: "on: process, updates, spill, metrics, a Hubble follower", lab: lab.Options{Agent: recordsOn}, start: func(ctx context.Context, s *site) error {
		if err := s.weir(ctx, 10); err != nil {
			return err
		}
		scrape(ctx, s.nodes[0])
		_, err := hubbleFollower(s)
		return err
	}}
	alone := &subject{name: "records, nobody follows", start: ofWeir(10)}
	subjects := []*subject{off, on, alone}
	defer func() {
		for _, s := range subjects {
			if s.site != nil {
				failed = errors.Join(failed, s.site.close())
			}
		}
	}()
	for i, s := range subjects {
		m.progress("%s", s.name)
		if err := s.up(m, &y, fmt.Sprintf("o%d", i), 1); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	kinds := []string{"connect", "bulk"}
	for round := range m.rounds {
		m.progress("round %d of %d", round+1, m.rounds)
		for _, kind := range kinds {
			for _, s := range subjects {
				if m.Err() != nil {
					return m.Err()
				}
				rate, err := s.burst(m, &y, kind)
				if err != nil {
					m.Note("%s, %s, round %d: %v", s.name, kind, round+1, err)
				}
				s.rates[kind] = append(s.rates[kind], rate)
			}
		}
	}
	t := &report.Table{Name: "flows-ratio", Title: "To no records", Columns: []string{"connect/close", "TCP bulk"}, Plot: report.Dots}
	for _, s := range subjects {
		row := report.Row{Name: s.name}
		for _, kind := range kinds {
			row.Cells = append(row.Cells, report.Of(report.Ratios(nonzero(s.rates[kind], off.rates[kind])), ""))
		}
		t.Rows = append(t.Rows, row)
	}
	m.Tables = append(m.Tables, t)
	m.AtLeast("connect/close, all records on and followed, to off", t.Rows[1].Cells[0].Median, .95, "x")
	m.AtLeast("TCP bulk, likewise", t.Rows[1].Cells[1].Median, .98, "x")
	return nil
}

// scrape reads the agent's metrics every second until ctx is over.
func scrape(ctx context.Context, n *lab.Node) {
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			err = n.Do(func() error {
				c, err = net.Dial("tcp", metricsAt)
				return err
			})
			return c, err
		}}}
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			if r, err := client.Get("http://" + metricsAt + "/metrics"); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				r.Body.Close()
			}
		}
	}()
}

// hubbleFollower starts one; its end prints what it got.
func hubbleFollower(s *site) (*follower, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return s.follow(exec.Command(self, followCommand, filepath.Join(s.nodes[0].StateDir(), "hubble.sock")), "hubble")
}

// weirFollower is `weir flows -f -o json`.
func weirFollower(s *site) (*follower, error) {
	n := s.nodes[0]
	return s.follow(exec.Command(n.Binary("weir"), "--state-dir", n.StateDir(), "flows", "--follow", "-o", "json"), "flows")
}

// follower is a process that reads flows, by the reader's name in the agent's account.
type follower struct {
	*exec.Cmd
	reader string
}

func (s *site) follow(cmd *exec.Cmd, reader string) (*follower, error) {
	cmd.Stdout, cmd.Stderr = nil, os.Stderr
	n := s.nodes[0]
	if err := n.Start(cmd); err != nil {
		return nil, err
	}
	s.ends = append(s.ends, cmd)
	f := &follower{cmd, reader}
	return f, until(context.Background(), 10*time.Second, reader+" follows", func() bool {
		st, err := statusOf(context.Background(), n)
		return err == nil && f.account(st).Open == 1
	})
}

func (f *follower) account(s *api.Status) api.FlowReader {
	for _, r := range s.Flows.Log.Readers {
		if r.Name == f.reader {
			return r
		}
	}
	return api.FlowReader{}
}

func statusOf(ctx context.Context, n *lab.Node) (*api.Status, error) {
	r := n.Weir(ctx, "status", "-o", "json")
	s := &api.Status{}
	if err := json.Unmarshal([]byte(r.Stdout), s); err != nil {
		return nil, fmt.Errorf("weir status: %w: %s", err, r.Stderr)
	}
	if s.Flows.Log == nil {
		return nil, errors.New("weir status: there is no flow log")
	}
	return s, nil
}

// Churn.

type churn struct {
	name   string
	agent  []string
	follow func(*site) (*follower, error)
}

func flowChurn(m *measurement) error {
	t := &report.Table{Name: "flows-churn", Title: "Connections opened and closed on two cores, records read by", Columns: []string{
		"connections/s", "agent's CPU for 10,000, s", "flows a core-second", "reader's CPU for 10,000, s", "records a connection", "lost in the kernel", "lost by the reader", "not accounted for",
	}}
	m.Tables = append(m.Tables, t)
	for i, c := range []churn{
		{name: "nobody, none kept on disk", agent: []string{"--flow-spill", "none"}},
		{name: "nobody"},
		{name: "metrics and a Hubble follower", agent: recordsOn[:2], follow: hubbleFollower},
		{name: "`weir flows -f -o json`", follow: weirFollower},
		{name: "a file of JSON", agent: []string{"--flow-export-file", "/run/weirt-bench-q4a/flows.json"}},
	} {
		if !m.match.MatchString(c.name) {
			continue
		}
		m.progress("churn, read by %s", c.name)
		row, got, err := c.run(m, fmt.Sprintf("q%d", i))
		if err != nil {
			return fmt.Errorf("read by %s: %w", c.name, err)
		}
		t.Rows = append(t.Rows, row)
		switch i {
		case 1:
			m.AtLeast("new flows of which an agent's core takes care a second, spilled", got.perCore, 100000, "")
		}
		m.AtMost("records lost in the kernel, read by "+c.name, got.lost, 0, "")
		m.AtMost("events not accounted for, read by "+c.name, got.unknown, 0, "")
	}
	return nil
}

type churned struct{ perCore, cpu, lost, unknown float64 }

func (c churn) run(m *measurement, name string) (row report.Row, got churned, failed error) {
	s, err := newSite(m, name, 1, lab.Options{Agent: c.agent})
	defer func() { failed = errors.Join(failed, s.close()) }()
	if err != nil {
		return row, got, err
	}
	if err := s.weir(m, 10); err != nil {
		return row, got, err
	}
	n := s.nodes[0]
	ctx, cancel := context.WithCancel(m)
	defer cancel()
	if len(c.agent) > 0 && c.agent[0] == recordsOn[0] {
		scrape(ctx, n)
	}
	ports := []int{portChurn, portChurn + 1}
	for _, port := range ports {
		cmd, err := end("host", port)
		if err != nil {
			return row, got, err
		}
		if err := s.b.Start(cmd); err != nil {
			return row, got, err
		}
		s.ends = append(s.ends, cmd)
	}
	for _, port := range ports {
		if err := until(ctx, 10*time.Second, "the churn's servers answer", func() bool { n, err := send(s.a, "churn", s.b.Addr4, port, 1); return err == nil && n > 0 }); err != nil {
			return row, got, err
		}
	}
	if err := quiet(ctx, n); err != nil {
		return row, got, err
	}
	var f *follower
	if c.follow != nil {
		if f, err = c.follow(s); err != nil {
			return row, got, err
		}
	}
	readers := time.Duration(0)
	if f != nil {
		if readers, err = cpuOf(f.Process.Pid); err != nil {
			return row, got, err
		}
	}
	idle, err := idleOf(n)
	if err != nil {
		return row, got, err
	}
	before, err := statusOf(ctx, n)
	if err != nil {
		return row, got, err
	}
	cpu, err := cpuOf(n.AgentPid())
	if err != nil {
		return row, got, err
	}
	start := time.Now()
	ms := pick(m, 6000, 500)
	made := make(chan float64)
	errs := make(chan error, len(ports))
	began := time.Now()
	for _, port := range ports {
		go func() {
			n, err := send(s.a, "churn", s.b.Addr4, port, ms)
			errs <- err
			made <- n
		}()
	}
	connections := 0.0
	for range ports {
		err = errors.Join(err, <-errs)
		connections += <-made
	}
	rate := connections / time.Since(began).Seconds()
	if err != nil {
		return row, got, err
	}
	if err := quiet(ctx, n); err != nil {
		return row, got, err
	}
	after, err := statusOf(ctx, n)
	if err != nil {
		return row, got, err
	}
	spent, err := cpuOf(n.AgentPid())
	if err != nil {
		return row, got, err
	}
	per := 1e4 / connections
	got.cpu = ((spent - cpu).Seconds() - idle*time.Since(start).Seconds()) * per
	got.perCore = 1e4 / got.cpu
	got.lost = float64(after.Flows.Lost - before.Flows.Lost)
	produced := float64(after.Flows.Emitted-before.Flows.Emitted) + got.lost
	read := float64(after.Flows.Log.Read - before.Flows.Log.Read)
	got.unknown = max(produced-got.lost-read, read+got.lost-produced)
	byReader, lostByReader := report.Words("–"), report.Words("–")
	if f != nil {
		now, err := cpuOf(f.Process.Pid)
		if err != nil {
			return row, got, err
		}
		was, is := f.account(before), f.account(after)
		byReader = report.One((now-readers).Seconds()*per, "")
		lostByReader = report.One(float64(is.Lost-was.Lost), "")
		records := after.Flows.Log.Records - before.Flows.Log.Records
		if sum := is.Taken + is.Lost - was.Taken - was.Lost; sum != records {
			got.unknown += max(float64(records)-float64(sum), float64(sum)-float64(records))
		}
	}
	row = report.Row{Name: c.name, Cells: []report.Figure{
		report.One(rate, ""), report.One(got.cpu, ""), report.One(got.perCore, ""), byReader, report.One(produced/connections, ""), report.One(got.lost, ""), lostByReader, report.One(got.unknown, ""),
	}}
	return row, got, nil
}

// idleOf is the part of a CPU that the agent takes with nothing to do.
func idleOf(n *lab.Node) (float64, error) {
	before, err := cpuOf(n.AgentPid())
	if err != nil {
		return 0, err
	}
	began := time.Now()
	time.Sleep(3 * time.Second)
	after, err := cpuOf(n.AgentPid())
	return (after - before).Seconds() / time.Since(began).Seconds(), err
}

// portChurn is the first of those that connections come and go at.
const portChurn = 7010

// closing is about how long a flow is told of after its connection has closed.
const closing = 12 * time.Second

// quiet waits until no more records come: flows that are over have been told of, and read.
func quiet(ctx context.Context, n *lab.Node) error {
	last, since := uint64(0), time.Now()
	time.Sleep(closing) // who asks all the time costs the agent more than the flows
	return until(ctx, 2*time.Minute, "flows that are over are told of", func() bool {
		s, err := statusOf(ctx, n)
		if err != nil {
			return false
		}
		if sum := s.Flows.Emitted + s.Flows.Lost + s.Flows.Log.Read; sum != last {
			last, since = sum, time.Now()
		}
		time.Sleep(time.Second)
		return s.Flows.Active == 0 && s.Flows.Log.Read == last-s.Flows.Emitted-s.Flows.Lost && time.Since(since) > 900*time.Millisecond
	})
}
