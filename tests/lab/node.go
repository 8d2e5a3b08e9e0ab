// Package lab builds a node out of network namespaces and runs the real binaries in it, for
// the demo and the node tests.
//
//	  outside                   node                         pod shop/web
//	 PREFIXoutside            PREFIXnode                    PREFIXshop-web
//	+-------------+      +---------------------+           +-------------+
//	| 192.0.2.10  | veth | 192.0.2.1           |   veth    | eth0        |
//	| 2001:db8::10|------| 2001:db8::1         |-----------| 10.77.0.x   |
//	+-------------+ up0  | weir-agent weir-cni | weir..... | fd77::x     |
//	                     +---------------------+           +-------------+
//
// All of it lies below one run directory: the manifests, the agent's state and log, the
// address pool and a bpffs. Down, or `clean.sh PREFIX RUN`, removes it.
package lab

import (
	"bytes"
	"cmp"
	"context"
	_ "embed" // clean.sh
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options says what to build. Zero values mean the defaults.
type Options struct {
	Prefix    string // of the namespaces' names; begins with "weir"
	Run       string // directory of the run; begins with /run/weir
	Bin       string // where the binaries are
	Pool4     string // pods' addresses
	Pool6     string
	RangeLast int // last host number of the pool that is given out, 0 = no limit (address reuse)

	Chain      string   // plugin that makes pods' interfaces in weir-cni's place, which follows it: bridge or ptp
	RangeFirst int      // first host number that is given out, 0 = the pool's first
	Agent      []string // further flags of weir-agent
	Name       string   // the agent's --node-name; "" = node
	XDP        string   // of pods' interfaces: generic, native, auto; "" = off
}

// Node is a node and all that belongs to it. Methods are for one goroutine, but those of
// Host.
type Node struct {
	Host
	Outside *Host // beyond the node's uplink
	opts    Options
	source  []string
	binary  string // of the agent, "" = weir-agent
	agent   *exec.Cmd
	exited  chan struct{}
	pods    map[string]*Pod
}

// Up removes what an earlier run of the same names left, builds the namespaces and mounts
// the bpffs. The agent is not started. On an error nothing is left.
func Up(o Options) (*Node, error) {
	if o.Pool4 == "" {
		o.Pool4, o.Pool6 = "10.77.0.0/24", "fd77::/112"
	}
	n := &Node{opts: o, pods: map[string]*Pod{}}
	n.Host = Host{Name: "node", Netns: o.Prefix + "node", Addr4: "192.0.2.1", Addr6: "2001:db8::1"}
	n.Outside = &Host{Name: "outside", Netns: o.Prefix + "outside", Addr4: "192.0.2.10", Addr6: "2001:db8::10"}
	if err := errors.Join(n.Down(), n.build()); err != nil {
		return nil, errors.Join(err, n.Down())
	}
	return n, nil
}

func (n *Node) build() error {
	for _, dir := range []string{n.Manifests(), n.StateDir(), n.bpffs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("bpf", n.bpffs(), "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", n.bpffs(), err)
	}
	for _, h := range []*Host{&n.Host, n.Outside} {
		if err := h.addNetns(); err != nil {
			return err
		}
	}
	return n.connectOutside()
}

// connectOutside makes the uplink. The outside knows the way to the pods.
func (n *Node) connectOutside() error {
	steps := []string{
		fmt.Sprintf("-n %s link add up0 type veth peer name up0 netns %s", n.Netns, n.Outside.Netns),
		fmt.Sprintf("-n %s route add default via %s", n.Netns, n.Outside.Addr4),
		fmt.Sprintf("-n %s -6 route add default via %s", n.Netns, n.Outside.Addr6),
		fmt.Sprintf("-n %s route add %s via %s", n.Outside.Netns, n.opts.Pool4, n.Addr4),
		fmt.Sprintf("-n %s -6 route add %s via %s", n.Outside.Netns, n.opts.Pool6, n.Addr6),
	}
	up := func(h *Host) []string {
		return []string{
			fmt.Sprintf("-n %s addr add %s/24 dev up0", h.Netns, h.Addr4),
			fmt.Sprintf("-n %s addr add %s/64 dev up0 nodad", h.Netns, h.Addr6),
			fmt.Sprintf("-n %s link set up0 up", h.Netns),
		}
	}
	all := append(steps[:1:1], append(up(&n.Host), append(up(n.Outside), steps[1:]...)...)...)
	for _, step := range all {
		if err := ip("%s", step); err != nil {
			return err
		}
	}
	return nil
}

// Paths below the run directory.
func (n *Node) Manifests() string { return filepath.Join(n.opts.Run, "manifests") } // the agent's DIR
func (n *Node) StateDir() string  { return filepath.Join(n.opts.Run, "state") }
func (n *Node) Log() string       { return filepath.Join(n.opts.Run, "agent.log") }
func (n *Node) bpffs() string     { return filepath.Join(n.opts.Run, "bpf") }
func (n *Node) BPFFSDir() string  { return filepath.Join(n.bpffs(), "weir") }
func (n *Node) RunDir() string    { return n.opts.Run }

// Binary is the path of one of ours.
func (n *Node) Binary(name string) string { return filepath.Join(n.opts.Bin, name) }

// Write puts a file into the agent's directory by rename, as one change.
func (n *Node) Write(file, text string) error {
	temporary := filepath.Join(n.opts.Run, file+".new")
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(n.Manifests(), file))
}

// Remove takes a file out of the agent's directory.
func (n *Node) Remove(file string) error { return os.Remove(filepath.Join(n.Manifests(), file)) }

// Source replaces the directory of manifests: flags of the agent that say where objects come from.
func (n *Node) Source(flags ...string) { n.source = flags }

// Build says what StartAgent starts: another of the binaries, with these further flags.
func (n *Node) Build(binary string, flags ...string) { n.binary, n.opts.Agent = binary, flags }

// Flags are further flags of the agent, from its next start on: the last of a kind counts.
func (n *Node) Flags(flags ...string) { n.opts.Agent = slices.Concat(n.opts.Agent, flags) }

// StartAgent starts the agent in the node's namespace and returns when it answers.
func (n *Node) StartAgent(ctx context.Context) error {
	if err := n.LaunchAgent(); err != nil {
		return err
	}
	return n.awaitAgent(ctx)
}

// LaunchAgent starts the agent, and does not wait for it.
func (n *Node) LaunchAgent() error {
	log, err := os.OpenFile(n.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	source := n.source
	if source == nil {
		source = []string{"--standalone", n.Manifests(), "--cluster-cidr", n.opts.Pool4, "--cluster-cidr", n.opts.Pool6}
	}
	flags := []string{"--state-dir", n.StateDir(), "--bpffs-dir", n.BPFFSDir(), "--node-name", cmp.Or(n.opts.Name, "node")}
	cmd := exec.Command(n.Binary(cmp.Or(n.binary, "weir-agent")), slices.Concat(source, flags, n.opts.Agent)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.Start(cmd); err != nil {
		return fmt.Errorf("start weir-agent: %w", err)
	}
	n.agent, n.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(n.exited)
	return nil
}

// AgentPid is that of the agent started last.
func (n *Node) AgentPid() int { return n.agent.Process.Pid }

func (n *Node) awaitAgent(ctx context.Context) error {
	// An emulated machine takes half a minute to verify the programs.
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		if r := n.Weir(ctx, "status"); r.Status == 0 {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("weir-agent ended: %v\n%s", n.agent.ProcessState, n.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("weir-agent does not answer: %w\n%s", ctx.Err(), n.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// KillAgent ends the agent with SIGKILL and returns when it is gone.
func (n *Node) KillAgent() error { return n.signalAgent(unix.SIGKILL) }

// StopAgent ends the agent politely and returns when it is gone.
func (n *Node) StopAgent() error { return n.signalAgent(unix.SIGTERM) }

func (n *Node) signalAgent(s os.Signal) error {
	if err := n.agent.Process.Signal(s); err != nil {
		return err
	}
	select {
	case <-n.exited:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("weir-agent still runs 10 s after %v", s)
	}
}

// LogTail returns the end of the agent's log.
func (n *Node) LogTail() string {
	text, _ := os.ReadFile(n.Log())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Status         int // exit status; -1: it did not run, or a signal ended it
}

// Weir runs the CLI against this node's agent.
func (n *Node) Weir(ctx context.Context, args ...string) Result {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, n.Binary("weir"), append([]string{"--state-dir", n.StateDir()}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Status: -1}
	if cmd.ProcessState != nil {
		r.Status = cmd.ProcessState.ExitCode()
	} else {
		r.Stderr += err.Error()
	}
	return r
}

// Wait returns when all that is in the agent's directory is enforced, or why it is not.
func (n *Node) Wait(ctx context.Context) error {
	if r := n.Weir(ctx, "status", "--wait"); r.Status != 0 {
		return fmt.Errorf("weir status --wait: exit status %d: %s", r.Status, strings.TrimSpace(r.Stderr))
	}
	return nil
}

// Apply writes a file and waits until it is enforced.
func (n *Node) Apply(ctx context.Context, file, text string) error {
	if err := n.Write(file, text); err != nil {
		return err
	}
	return n.Wait(ctx)
}

//go:embed clean.sh
var cleanScript string

// Down removes everything, processes included, also what an earlier process made under
// the same names. It may be called again.
func (n *Node) Down() error {
	cmd := exec.Command("bash", "-s", n.opts.Prefix, n.opts.Run)
	cmd.Stdin = strings.NewReader(cleanScript)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // an interrupt must not stop it half way
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("clean up %s*: %w: %s", n.opts.Prefix, err, out)
	}
	return nil
}
