package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/weirnet/weir/controlplane/flowlog/format"
)

// pluginName is what the program is called when kubectl runs it (kubectl weir ...): then
// it asks the agents of the cluster's nodes, by `kubectl exec` into their pods.
const pluginName = "kubectl-weir"

func isPlugin(program string) bool { return filepath.Base(program) == pluginName }

const pluginHelp = `Weir on all nodes of a cluster: what they enforce, let through or stop, and why.

  kubectl weir [--node NODE]... [-n NAMESPACE] [--context C] [--kubeconfig F] COMMAND

COMMAND is one of weir's own (status, endpoints, identities, policy list, policy explain, flows), with
its flags: 'kubectl weir flows --help'. Each node's agent is asked, or only those of --node. Flows of several
nodes come as one list, oldest first; other answers node by node, and with -o json as one object by node.
NAMESPACE is where Weir is installed, kube-system by default.`

// plugin is a command line of the plugin, taken apart.
type plugin struct {
	*app
	kubectl   []string // what every call of kubectl has
	namespace string
	nodes     []string // asked for; none = all
	args      []string // for weir on the node
}

// pod is an agent's.
type pod struct{ node, name string }

// runPlugin is run, for the plugin.
func runPlugin(ctx context.Context, args []string, s streams) int {
	a := &app{streams: s, style: format.Style{Colour: coloured(s.out)}, width: width(s.out)}
	p := &plugin{app: a, kubectl: []string{"kubectl"}, namespace: "kube-system"}
	err := p.parse(args)
	if err == nil && (len(p.args) == 0 || slices.Contains([]string{"help", "--help", "-h"}, p.args[0])) {
		fmt.Fprintln(s.out, pluginHelp)
		return exitDone
	}
	if err == nil {
		err = p.run(ctx)
	}
	var ended *exec.ExitError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &ended): // it has said why
		return max(exitFailed, ended.ExitCode())
	}
	fmt.Fprintf(s.err, "kubectl weir: %s\n", a.reason(err))
	if errors.As(err, &usageError{}) {
		return exitUsage
	}
	return exitFailed
}

// parse takes the plugin's own flags out of args, wherever they are.
func (p *plugin) parse(args []string) error {
	for i := 0; i < len(args); i++ {
		name, value, given := strings.Cut(args[i], "=")
		if !slices.Contains([]string{"--node", "-n", "--namespace", "--context", "--kubeconfig"}, name) {
			p.args = append(p.args, args[i])
			continue
		}
		if !given {
			if i++; i == len(args) {
				return usage("%s: missing value", name)
			}
			value = args[i]
		}
		switch name {
		case "--node":
			p.nodes = append(p.nodes, value)
		case "-n", "--namespace":
			p.namespace = value
		default:
			p.kubectl = append(p.kubectl, name+"="+value)
		}
	}
	return nil
}

func (p *plugin) run(ctx context.Context) error {
	pods, err := p.pods(ctx)
	if err != nil {
		return err
	}
	if len(pods) == 1 || slices.Contains(p.args, "--help") || slices.Contains(p.args, "-h") {
		return p.exec(ctx, pods[0], p.args, p.out, p.err)
	}
	if p.args[0] == "flows" {
		return p.flowsOf(ctx, pods)
	}
	return p.eachOf(ctx, pods)
}

// pods are the agents asked for, by node.
func (p *plugin) pods(ctx context.Context) ([]pod, error) {
	args := append(slices.Clone(p.kubectl), "get", "pods", "--namespace="+p.namespace, "--selector=app.kubernetes.io/name=weir", "--output=json")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = p.err
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
			Status   struct{ Phase string }
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("list of agents' pods: %w", err)
	}
	var running []pod
	for _, i := range list.Items {
		switch {
		case i.Status.Phase == "Running":
			running = append(running, pod{i.Spec.NodeName, i.Metadata.Name})
		case len(p.nodes) == 0 || slices.Contains(p.nodes, i.Spec.NodeName):
			fmt.Fprintf(p.err, "%s: nothing of this node: its agent's pod %s is %s\n",
				format.Safe(cmp.Or(i.Spec.NodeName, "(no node yet)")), format.Safe(i.Metadata.Name), format.Safe(cmp.Or(i.Status.Phase, "in no phase")))
		}
	}
	slices.SortFunc(running, func(a, b pod) int { return cmp.Compare(a.node, b.node) })
	return p.chosen(running)
}

func (p *plugin) chosen(running []pod) ([]pod, error) {
	if len(running) == 0 {
		return nil, fmt.Errorf("no pod of Weir runs in namespace %s (name another with -n)", p.namespace)
	}
	for _, n := range p.nodes {
		if !slices.ContainsFunc(running, func(r pod) bool { return r.node == n }) {
			return nil, fmt.Errorf("no pod of Weir runs on node %q", n)
		}
	}
	return slices.DeleteFunc(running, func(r pod) bool { return len(p.nodes) > 0 && !slices.Contains(p.nodes, r.node) }), nil
}

func (p *plugin) exec(ctx context.Context, to pod, args []string, out, errs io.Writer) error {
	line := append(slices.Clone(p.kubectl), "exec", "--namespace="+p.namespace, to.name, "--container=agent", "--", "weir")
	line = append(line, args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = out, errs
	return cmd.Run()
}

// all asks every pod at once. What they say of trouble is told by node; the first error
// counts for all.
func (p *plugin) all(pods []pod, ask func(i int, errs io.Writer) error) error {
	failed, said := make([]error, len(pods)), make([]bytes.Buffer, len(pods))
	var wait sync.WaitGroup
	for i := range pods {
		wait.Go(func() { failed[i] = ask(i, &said[i]) })
	}
	wait.Wait()
	for i := range pods {
		for line := range strings.Lines(said[i].String()) {
			if !strings.HasPrefix(line, "command terminated with exit code") { // kubectl's own
				fmt.Fprintf(p.err, "%s: %s\n", pods[i].node, format.Safe(strings.TrimRight(line, "\n")))
			}
		}
	}
	return cmp.Or(failed...)
}

// eachOf shows answers node by node.
func (p *plugin) eachOf(ctx context.Context, pods []pod) error {
	out := make([]bytes.Buffer, len(pods))
	err := p.all(pods, func(i int, errs io.Writer) error { return p.exec(ctx, pods[i], p.args, &out[i], errs) })
	if output, _ := p.take("-o", "--output"); output == outputJSON {
		return errors.Join(err, p.byNode(pods, out))
	}
	for i := range pods {
		if out[i].Len() == 0 {
			continue
		}
		if err := p.print(p.style.Strong("=== "+format.Safe(pods[i].node)), strings.TrimRight(out[i].String(), "\n"), ""); err != nil {
			return err
		}
	}
	return err
}

func (p *plugin) byNode(pods []pod, out []bytes.Buffer) error {
	answers := map[string]json.RawMessage{}
	for i := range pods {
		if json.Valid(out[i].Bytes()) {
			answers[pods[i].node] = out[i].Bytes()
		}
	}
	return p.json(answers)
}

// take removes a flag with a value from the arguments for the nodes and returns its value.
func (p *plugin) take(names ...string) (value string, given bool) {
	var rest []string
	for i := 0; i < len(p.args); i++ {
		name, v, joined := strings.Cut(p.args[i], "=")
		switch {
		case !slices.Contains(names, name):
			rest = append(rest, p.args[i])
		case joined:
			value, given = v, true
		case i+1 < len(p.args):
			i++
			value, given = p.args[i], true
		}
	}
	p.args = rest
	return value, given
}
