package bypass

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/lab"
)

// beyond are addresses that the node reaches by its uplink and that nobody has.
const beyond4, beyond6 = "203.0.113.9", "2001:db8:1::9"

// scene is a node with its agent and the pods of package bypass's picture.
type scene struct {
	*lab.Node
	ctx    context.Context
	client *api.Client

	mallory, eve, alice, bob, outside *end

	counters *ebpf.Map
	sent     []time.Time // frames that were dropped and recorded, lately

	mu      sync.Mutex
	records []lab.Flow // of denials, since the last quiet
}

// newScene builds it; agent are further flags of the agent.
func newScene(t *testing.T, agent ...string) *scene {
	t.Helper()
	s := newNode(t, lab.Options{Agent: agent})
	s.write(t, "pods.yaml", pods)
	s.write(t, "policy.yaml", policies)
	s.start(t)
	s.mallory, s.eve = s.add(t, "ns", "mallory"), s.add(t, "ns", "eve")
	s.alice, s.bob = s.add(t, "ns", "alice"), s.add(t, "ns", "bob")
	s.silence(t)
	s.outside = openEnd(t, s.Outside, "up0", false, s.macOf(t, "up0"))
	return s
}

// newNode builds a node without an agent and without pods.
func newNode(t *testing.T, o lab.Options) *scene {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes network namespaces and loads BPF programs")
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "weir-agent")); err != nil {
		t.Fatalf("run `make build` first: %v", err)
	}
	run := fmt.Sprintf("weirt-%x", time.Now().UnixNano()&0xffffff)
	o.Prefix, o.Run, o.Bin = run+"-", "/run/"+run, bin
	n, err := lab.Up(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	s := &scene{Node: n, ctx: ctx, client: api.Dial(n.StateDir())}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log ends:\n%s", n.LogTail())
			t.Logf("weir status:\n%s", n.Weir(ctx, "status").Stdout)
		}
		cancel()
		if err := n.Down(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// start starts the agent and follows its flow log.
func (s *scene) start(t *testing.T) {
	t.Helper()
	must(t, s.StartAgent(s.ctx))
	if s.counters == nil {
		m, err := ebpf.LoadPinnedMap(maps.Path(s.BPFFSDir(), bpf.WeirMapCounters), &ebpf.LoadPinOptions{ReadOnly: true})
		must(t, err)
		t.Cleanup(func() { m.Close() })
		s.counters = m
	}
	following := make(chan error, 1)
	go func() {
		following <- s.client.Flows(s.ctx, api.FlowQuery{Follow: true, New: true, Kinds: []string{api.FlowDenied}}.Values(), s.record)
	}()
	select {
	case err := <-following:
		t.Fatalf("follow the flow log: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
}

func (s *scene) record(line []byte) error {
	var r struct {
		Flow lab.Flow `json:"flow"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, r.Flow)
	return nil
}

// add attaches a pod and takes its stack away, so that only we speak for it: its frames
// are ours, and what it is sent has no answer.
func (s *scene) add(t *testing.T, namespace, name string) *end {
	t.Helper()
	return s.addAs(t, namespace, name, "")
}

func (s *scene) addAs(t *testing.T, namespace, name, suffix string) *end {
	t.Helper()
	p, err := s.AddSandbox(s.ctx, namespace, name, suffix)
	must(t, err)
	t.Cleanup(func() { _ = s.DelPod(s.ctx, p) })
	out, err := p.Run(s.ctx, "sh", "-c", "ip addr flush dev eth0 && echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
	if err != nil {
		t.Fatalf("take away the stack of %s: %v: %s", p.Name, err, out)
	}
	return openEnd(t, &p.Host, "eth0", true, hostMAC)
}

// silence makes the outside say nothing of addresses that nobody has.
func (s *scene) silence(t *testing.T) {
	t.Helper()
	for _, to := range []string{"203.0.113.0/24", "2001:db8:1::/64"} {
		if out, err := s.Outside.Run(s.ctx, "ip", "route", "add", "blackhole", to); err != nil {
			t.Fatalf("blackhole %s: %v: %s", to, err, out)
		}
	}
}

// macOf is the address of a device of the node.
func (s *scene) macOf(t *testing.T, device string) (mac net.HardwareAddr) {
	t.Helper()
	must(t, s.Do(func() error {
		link, err := net.InterfaceByName(device)
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	}))
	return mac
}

func (s *scene) write(t *testing.T, file, text string) {
	t.Helper()
	must(t, s.Write(file, text))
}

// apply enforces a file until the attempt is over.
func (a *attempt) apply(file, text string) {
	a.Helper()
	before, err := os.ReadFile(filepath.Join(a.Manifests(), file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		a.Fatal(err)
	}
	must(a.T, a.Apply(a.ctx, file, text))
	a.Cleanup(func() {
		if before == nil {
			must(a.T, a.Remove(file))
			must(a.T, a.Wait(a.ctx))
		} else {
			must(a.T, a.Apply(a.ctx, file, string(before)))
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shell runs a script in the node's namespace.
func (s *scene) shell(script string) (string, error) { return s.Node.Run(s.ctx, "sh", "-c", script) }

// eventually waits for what comes by itself.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

// drops are the counts by reason, of what the programs drop: what arrives mostly has no socket to go to.
func (s *scene) drops(t *testing.T) map[datapath.Reason]uint64 {
	t.Helper()
	out := map[datapath.Reason]uint64{}
	var perCPU []uint64
	for r := datapath.ReasonNone; r < datapath.Reasons; r++ {
		if r == datapath.ReasonKernel {
			continue
		}
		must(t, s.counters.Lookup(uint32(bpf.WeirCounterCOUNT_DROP)+uint32(r), &perCPU))
		for _, n := range perCPU {
			out[r] += n
		}
	}
	return out
}

// since is what was counted after before, without what pods' interfaces say of themselves.
func (s *scene) since(t *testing.T, before map[datapath.Reason]uint64) map[datapath.Reason]uint64 {
	t.Helper()
	now := s.drops(t)
	for r, n := range before {
		if now[r] -= n; now[r] == 0 {
			delete(now, r)
		}
	}
	return now
}

// denied counts the records of a reason that name the sender.
func (s *scene) denied(from *end, reason datapath.Reason) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, f := range s.records {
		x, err := f.Extension()
		if err == nil && x.Reason == reason.String() && (!from.pod || f.Source.String() == from.Name) {
			n++
		}
	}
	return n
}

func (s *scene) ends() []*end {
	return []*end{s.mallory, s.eve, s.alice, s.bob, s.outside}
}

// quiet forgets what was received and recorded.
func (s *scene) quiet(*attempt) {
	for _, e := range s.ends() {
		e.forget()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = nil
}

const quota = 90 // an endpoint has 100 denied packets a second recorded one by one

// pace waits until n more denied packets are sure to be recorded.
func (s *scene) pace(n int) {
	for {
		now := time.Now()
		for len(s.sent) > 0 && now.Sub(s.sent[0]) > 1100*time.Millisecond {
			s.sent = s.sent[1:]
		}
		if len(s.sent) == 0 || len(s.sent)+n <= quota {
			break
		}
		time.Sleep(1100*time.Millisecond - now.Sub(s.sent[0]) + time.Millisecond)
	}
	s.spend(n)
}

// spend notes n denied packets of now.
func (s *scene) spend(n int) {
	for range n {
		s.sent = append(s.sent, time.Now())
	}
}

// isQuiet are reasons that are counted and not recorded: every host has such chatter.
func isQuiet(r datapath.Reason) bool {
	return r == multicast || r == neighbour
}

// drop sends frames and holds that all of them are dropped, for just that reason, that the
// flow log tells of each, and that nothing arrives anywhere.
func (a *attempt) drop(what string, from *end, reason datapath.Reason, frames ...[]byte) {
	a.Helper()
	a.quiet(a)
	a.pace(len(frames))
	before := a.drops(a.T)
	a.send(what, from, frames)
	want := uint64(len(frames))
	a.settled(what, before, func(d map[datapath.Reason]uint64) bool {
		total := uint64(0)
		for r, n := range d {
			if r == reason || !isQuiet(r) {
				total += n
			}
		}
		return total >= want
	})
	d := a.since(a.T, before)
	for r, n := range d {
		if r != reason && !isQuiet(r) || r == reason && !isQuiet(r) && n != want {
			a.Errorf("%s: dropped for %v, want %d for %q", what, d, want, reason)
			break
		}
	}
	a.nothingArrives(what)
	if !isQuiet(reason) {
		a.recorded(what, from, reason, len(frames))
	}
	a.note(fmt.Sprintf("dropped: %s", reason), len(frames))
}

func (a *attempt) send(what string, from *end, frames [][]byte) {
	a.Helper()
	for _, f := range frames {
		if err := from.send(f); err != nil {
			a.T.Fatalf("%s: send %x: %v", what, f, err)
		}
	}
}

// recorded waits for the records of what was dropped.
func (a *attempt) recorded(what string, from *end, reason datapath.Reason, want int) {
	a.Helper()
	for end := time.Now().Add(patience); a.denied(from, reason) < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			a.Errorf("%s: %d records of %q that name %s, want %d", what, a.denied(from, reason), reason, from.Name, want)
			return
		}
	}
}

// settled waits until the counts are as they have to be; that they become so is judged by
// the caller.
func (a *attempt) settled(what string, before map[datapath.Reason]uint64, ok func(map[datapath.Reason]uint64) bool) {
	a.Helper()
	for end := time.Now().Add(patience); !ok(a.since(a.T, before)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			a.Errorf("%s: only %v dropped%s", what, a.since(a.T, before), a.arrivals())
			return
		}
	}
}

func (a *attempt) arrivals() string {
	var b strings.Builder
	for _, e := range a.ends() {
		for _, f := range e.received() {
			fmt.Fprintf(&b, "\n%s received %x", e.Name, f)
		}
	}
	return b.String()
}

// arrives sends frames and holds that each makes something arrive that is as told, with
// nothing dropped; it returns the last.
func (a *attempt) arrives(what string, from, to *end, is func([]byte) bool, frames ...[]byte) []byte {
	a.Helper()
	before := a.drops(a.T)
	var last []byte
	for _, f := range frames {
		a.quiet(a)
		a.send(what, from, [][]byte{f})
		if last = to.find(is); last == nil {
			a.Fatalf("%s: nothing that %x makes arrives at %s; dropped: %v%s", what, f, to.Name, a.since(a.T, before), a.arrivals())
		}
	}
	for r, n := range a.since(a.T, before) {
		if !isQuiet(r) {
			a.Errorf("%s: arrived, and %d dropped for %q", what, n, r)
		}
	}
	a.note("passed", len(frames))
	return last
}

func (a *attempt) nothingArrives(what string) {
	a.Helper()
	if got := a.arrivals(); got != "" {
		a.Errorf("%s: arrived:%s", what, got)
	}
}

// pass sends frames and holds that each arrives, with nothing dropped.
func (a *attempt) pass(what string, from, to *end, frames ...[]byte) {
	a.Helper()
	a.quiet(a)
	before := a.drops(a.T)
	a.send(what, from, frames)
	for _, f := range frames {
		if !to.await(f) {
			a.Errorf("%s: %x does not arrive at %s; dropped: %v%s", what, f, to.Name, a.since(a.T, before), a.arrivals())
			return
		}
	}
	for r, n := range a.since(a.T, before) {
		if !isQuiet(r) {
			a.Errorf("%s: arrived, and %d dropped for %q", what, n, r)
		}
	}
	a.note("passed", len(frames))
}
