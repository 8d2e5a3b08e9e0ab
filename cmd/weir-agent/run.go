package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/agent"
	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/cniconf"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/kube"
	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/routing"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/datapath/reader"
	"github.com/weirnet/weir/datapath/sockets"
)

// run is the agent's life: hold the directories, read what was, load the programs,
// enforce, answer.
func run(ctx context.Context, o *options) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed to load programs and to change the network")
	}
	state, err := statedir.Open(o.stateDir)
	if err != nil {
		return err
	}
	defer state.Close()
	from, err := objects(ctx, o)
	if err != nil {
		return err
	}
	unlock, err := load(o)
	if err != nil {
		return err
	}
	defer unlock()
	kernel, err := maps.Open(o.bpffsDir)
	if err != nil {
		return err
	}
	defer kernel.Close()
	if err := forward(o); err != nil {
		return err
	}
	left, err := sockets.Open(o.bpffsDir)
	if err != nil {
		return err
	}
	defer left.Close()
	a, err := agent.New(agent.Config{
		CgroupRoot: o.cgroupRoot, Sockets: left,
		StateDir: state, Source: from.Source, Report: from.report, Router: from.router, Kernel: kernel, Network: node.Network{}, Log: o.log,
		Hooks:    agent.BPF{Dir: o.bpffsDir, UplinkXDP: o.xdp, Programs: o.programs()},
		NodeName: o.nodeName, Version: version(), BPFFSDir: o.bpffsDir, SourceName: from.name,
		ClusterCIDRs: o.cidrs, NodeEgressAllow: o.nodeEgress == "allow", Uplinks: o.uplinks, AddWait: o.addWait, Recheck: o.recheck,
	})
	if err != nil {
		return err
	}
	flows := flowlog.New(a, flowlog.Options{Node: o.nodeName, Version: version(), Size: o.flowLog, Denials: kernel.Denials})
	return serve(ctx, o, a, flows)
}

// cluster is where objects come from.
type cluster struct {
	Source agent.Source
	name   string
	report agent.Report
	router agent.Router
}

func objects(ctx context.Context, o *options) (cluster, error) {
	if o.standalone != "" {
		d, err := source.NewDirectory(o.standalone, o.stateDir, o.log)
		return cluster{Source: d, name: o.standalone}, err
	}
	kube.SetLog(o.log)
	client, err := kube.Connect(o.kubeconfig, "weir-agent/"+version())
	if err != nil {
		return cluster{}, err
	}
	o.log.Info("objects come from an API server", "server", client.Host)
	config := kube.Config{Client: client, NodeName: o.nodeName, Log: o.log}
	out := cluster{Source: kube.New(config), name: "API server " + client.Host, report: kube.NewRecorder(ctx, config).Report}
	if o.cniConf != "" {
		out.report = withCNIConf(o, out.report)
	}
	if o.routing == "native" {
		out.router = routing.Native{Masquerade: o.masquerade}
	}
	return out, nil
}

// withCNIConf writes the container runtime's configuration, too.
func withCNIConf(o *options, report agent.Report) agent.Report {
	file := &cniconf.File{Path: o.cniConf, StateDir: o.stateDir, BPFFSDir: o.bpffsDir, Log: o.log}
	return func(u *source.Update, r *policy.Result) {
		report(u, r)
		if u.Nodes != nil && u.Nodes.Own != nil {
			file.Want(u.Nodes.Own.PodCIDRs)
		}
	}
}

// serve runs everything until ctx is over or one of it fails. Nobody is answered before
// the kernel has what the state directory says.
func serve(ctx context.Context, o *options, a *agent.Agent, flows *flowlog.Log) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.Run(ctx) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-a.Ready():
		}
		events, err := reader.Open(o.bpffsDir)
		if err != nil {
			return err
		}
		group.Go(func() error { return flows.Run(ctx, events) })
		return answer(ctx, o, a, flows)
	})
	err := group.Wait()
	o.log.Info("agent ends; what is enforced stays")
	return err
}

func answer(ctx context.Context, o *options, a *agent.Agent, flows *flowlog.Log) error {
	socket, err := api.Listen(o.stateDir)
	if err != nil {
		return err
	}
	defer os.Remove(o.stateDir + "/" + api.SocketName)
	o.log.Info("agent is ready", "node", o.nodeName, "version", version(), "stateDir", o.stateDir, "bpffsDir", o.bpffsDir)
	return api.Serve(ctx, socket, api.NewHandler(a, a, flows), o.log)
}

func (o *options) programs() loader.Config {
	return loader.Config{BPFFSDir: o.bpffsDir, NodeEgressAllow: o.nodeEgress == "allow", MarkShift: o.markShift, Sizes: o.sizes, CgroupRoot: o.cgroupRoot}
}

// load loads the programs. The bpffs directory is locked first where it exists: two
// agents with two state directories must not share maps.
func load(o *options) (unlock func(), err error) {
	lock, err := lockDir(o.bpffsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	loaded, err := loader.Load(o.programs())
	if err != nil {
		_ = lock.Close() // of nil, too: the error says more
		return nil, err
	}
	o.log.Info("programs are in force", "bpffsDir", o.bpffsDir, "adopted", loaded.Adopted, "abi", loaded.Abi)
	if err := loaded.Close(); err != nil {
		return nil, fmt.Errorf("close programs: %w", err)
	}
	if lock == nil {
		if lock, err = lockDir(o.bpffsDir); err != nil {
			return nil, err
		}
	}
	return func() { _ = lock.Close() }, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open bpffs directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another agent holds --bpffs-dir %s: %w", dir, err)
	}
	return f, nil
}

func forward(o *options) error {
	changed, err := node.EnableForwarding()
	if len(changed) > 0 {
		o.log.Info("forwarding was off in this network namespace: turned on", "sysctls", strings.Join(changed, " "))
	}
	return err
}
