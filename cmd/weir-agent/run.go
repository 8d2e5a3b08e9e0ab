package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/controlplane/agent"
	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/build"
	"github.com/weirnet/weir/controlplane/cniconf"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/export"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/flowlog/spill"
	"github.com/weirnet/weir/controlplane/hubble"
	"github.com/weirnet/weir/controlplane/kube"
	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/routing"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/parked"
	"github.com/weirnet/weir/datapath/reader"
	"github.com/weirnet/weir/datapath/sockets"
)

// run is the agent's life: hold the directories, read what was, load the programs,
// enforce, answer.
func run(ctx context.Context, o *options) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed to load programs and to change the network")
	}
	collectAt(garbageAtStart)
	state, err := statedir.Open(o.stateDir)
	if err != nil {
		return err
	}
	defer state.Close()
	from, err := objects(ctx, o)
	if err != nil {
		return err
	}
	kernel, err := load(o, state)
	if err != nil {
		return err
	}
	defer kernel.close()
	if err := forward(o); err != nil {
		return err
	}
	left, err := sockets.Open(o.bpffsDir, kernel.set)
	if err != nil {
		return err
	}
	defer left.Close()
	var metrics *export.Metrics // made once the agent is: it is what they show
	a, err := agent.New(agent.Config{
		Committed:  func(took time.Duration, err error) { metrics.Committed(took, err) },
		CgroupRoot: o.cgroupRoot, Sockets: left,
		StateDir: state, Source: from.Source, Report: from.report, Router: from.router, Announce: from.announce, Unready: from.unready(), NoHostRouting: !o.hostRouting, Kernel: kernel, Network: node.Network{}, Log: o.log,
		Hooks:    agent.BPF{Dir: o.bpffsDir, UplinkXDP: o.xdp, Programs: o.programs(), Observed: kernel.observed.Load},
		NodeName: o.nodeName, Version: build.Read().String(), BPFFSDir: o.bpffsDir, SourceName: from.name,
		ClusterCIDRs: o.cidrs, NodeEgressAllow: o.nodeEgress == "allow", Uplinks: o.uplinks, ShieldFile: o.shieldDeny, ShieldOff: o.xdp == loader.XDPOff, APIServer: from.server, AddWait: o.addWait, Recheck: o.recheck,
	})
	if err != nil {
		return err
	}
	past, noPast := o.openSpill()
	flows := flowlog.New(a, flowlog.Options{Off: !o.flowRecords, Spill: past, Node: o.nodeName, Version: build.Read().String(), Size: o.flowLog, Denials: kernel.Denials, Counters: kernel.Counters})
	exports := o.exports.flows(flows, o.nodeName, o.log)
	whole := &observed{a, flows, exports, o.hubble.tcp, from.cni, noPast}
	metrics = export.NewMetrics(export.Sources{
		Status: func(ctx context.Context) (api.Status, error) { return whole.Status(ctx, 0) }, Policies: a.Policies,
		Counters: kernel.Counters, Denials: kernel.Denials, Rule: a.Rule, Records: flows.Counts, Log: o.log,
	})
	whole.exports = append(exports, o.exports.metrics(metrics, o.nodeName, o.log)...)
	return serve(ctx, o, parts{a, whole, flows, whole.exports, metrics, hubbleServer(o, a, flows), kernel.inForce})
}

// parts are what serve runs.
type parts struct {
	agent   *agent.Agent
	node    api.Node
	flows   *flowlog.Log
	exports exports
	metrics *export.Metrics
	hubble  *hubble.Server
	inForce <-chan struct{}
}

// observed is the agent with what its flow log and who serves it say of themselves.
type observed struct {
	*agent.Agent
	flows   *flowlog.Log
	exports exports
	hubble  *hubble.TCP
	cni     *cniconf.File
	noPast  []string // warnings
}

// Status implements api.Node.
func (n observed) Status(ctx context.Context, wait time.Duration) (api.Status, error) {
	s, err := n.Agent.Status(ctx, wait)
	log := n.flows.Status()
	s.Flows.Log, s.Flows.Off = &log, n.flows.Off() != nil
	s.Warnings = append(s.Warnings, n.hubble.Warnings()...)
	s.Warnings = append(s.Warnings, n.cni.Warnings()...)
	n.exports.add(&s)
	s.Warnings = append(s.Warnings, spillWarnings(log.Spill)...)
	s.Warnings = append(s.Warnings, n.noPast...)
	return s, err
}

// spillWarnings are of a past on disk that cannot be written.
func spillWarnings(s *api.FlowSpillStatus) []string {
	if s == nil || s.Error == "" {
		return nil
	}
	return []string{fmt.Sprintf("flows are not spilled to disk (--flow-spill), %d records so far: they will be missing after a restart of the agent: %s", s.Lost, s.Error)}
}

// openSpill opens the past on disk. An agent that has none enforces all the same.
func (o *options) openSpill() (*spill.Store, []string) {
	dir := o.spill
	if !o.flowRecords {
		dir = "none"
	}
	switch dir {
	case "none":
		return nil, nil
	case "":
		dir = filepath.Join(o.stateDir, "flows")
	}
	store, err := spill.Open(spill.Options{Dir: dir, Size: int64(o.spillSize) << 20, Age: o.spillAge, Log: o.log})
	if err != nil {
		o.log.Error("flows will not outlive this agent", "error", err)
		return nil, []string{fmt.Sprintf("flows will not outlive this agent: --flow-spill: %v", err)}
	}
	return store, nil
}

const routingVXLAN = "vxlan"

// cluster is where objects come from.
type cluster struct {
	Source agent.Source
	name   string
	server string // its name or address, none = there is no API server
	report agent.Report
	router agent.Router
	// announce new pods to other nodes
	announce agent.Announce
	cni      *cniconf.File // nil: somebody else writes the container runtime's configuration
}

func (c cluster) unready() func() []string {
	if c.cni == nil {
		return nil
	}
	return c.cni.Unready
}

func objects(ctx context.Context, o *options) (cluster, error) {
	if o.standalone != "" {
		d, err := source.NewDirectory(o.standalone, o.stateDir, o.log)
		return cluster{Source: d, name: o.standalone}, err
	}
	kube.SetLog(o.log)
	client, err := kube.Connect(o.kubeconfig, "weir-agent/"+build.Read().Version)
	if err != nil {
		return cluster{}, err
	}
	o.log.Info("objects come from an API server", "server", client.Host)
	config := kube.Config{Client: client, NodeName: o.nodeName, Log: o.log, AnnounceIn: o.announceIn}
	objects := kube.New(config)
	out := cluster{Source: objects, name: "API server " + client.Host, server: hostOf(client.Host), report: kube.NewRecorder(ctx, config).Report}
	if o.announceIn != "" {
		out.announce = func(ctx context.Context, r *endpoint.Record) error {
			return objects.Announce(ctx, kube.Announced{Namespace: r.Namespace, Name: r.Name, UID: r.LastPod.UID, Addresses: r.Addresses()})
		}
	}
	if o.cniConf != "" {
		out.report, out.cni = withCNIConf(ctx, o, out.report)
	}
	switch o.routing {
	case "native":
		out.router = routing.Native{Masquerade: o.masquerade}
	case "none":
		out.router = routing.None{}
	case routingVXLAN:
		out.router = routing.VXLAN{Masquerade: o.masquerade, Port: o.tunnelPort, Attach: func(ifindex int, name string) error {
			return loader.AttachNetwork(o.bpffsDir, ifindex, name, loader.Tunnel, loader.XDPOff)
		}}
	}
	return out, nil
}

// hostOf is an API server's name or address; a client may be given HOST:PORT as well.
func hostOf(server string) string {
	if u, err := url.Parse(server); err == nil && u.Host != "" {
		return u.Hostname()
	}
	if host, _, err := net.SplitHostPort(server); err == nil {
		return host
	}
	return server
}

// withCNIConf writes the container runtime's configuration, too.
func withCNIConf(ctx context.Context, o *options, report agent.Report) (agent.Report, *cniconf.File) {
	file := &cniconf.File{Path: o.cniConf, StateDir: o.stateDir, BPFFSDir: o.bpffsDir, Chain: o.cniChain, HostPorts: o.hostPorts, Log: o.log}
	if o.cniChain != "" {
		follow := sync.OnceFunc(func() { go file.Follow(ctx) })
		return func(u *source.Update, r *policy.Result) {
			report(u, r)
			follow()
		}, file
	}
	return func(u *source.Update, r *policy.Result) {
		report(u, r)
		if u.Nodes != nil && u.Nodes.Own != nil {
			file.Want(u.Nodes.Own.PodCIDRs)
		}
	}, file
}

// serve runs everything until ctx is over or one of it fails. Nobody is answered before
// the kernel has what the state directory says.
func serve(ctx context.Context, o *options, p parts) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.agent.Run(ctx) })
	group.Go(func() error {
		if err := awaitReady(ctx, o, p.agent); err != nil || ctx.Err() != nil {
			return err
		}
		group.Go(func() error { p.exports.run(ctx); return nil })
		group.Go(func() error { return readFlows(ctx, o, p.flows, p.inForce) })
		group.Go(func() error { return sendParked(ctx, o, p.agent, p.inForce) })
		group.Go(func() error { return p.hubble.Run(ctx) })
		if o.metrics != "" {
			group.Go(func() error { return p.metrics.Serve(ctx, o.metrics, o.log) })
		}
		return answer(ctx, o, p)
	})
	err := group.Wait()
	o.log.Info("agent ends; what is enforced stays")
	return err
}

// awaitReady says in the state directory what it waits for: nobody is answered before.
func awaitReady(ctx context.Context, o *options, a *agent.Agent) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.Ready():
			return api.SayWaiting(o.stateDir, nil)
		case <-time.After(time.Second):
		}
		if w, ok := a.Source.(interface{ Warnings() []string }); ok {
			if err := api.SayWaiting(o.stateDir, w.Warnings()); err != nil {
				return err
			}
		}
	}
}

func readFlows(ctx context.Context, o *options, flows *flowlog.Log, inForce <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-inForce:
	}
	events, err := reader.Open(o.bpffsDir)
	if err != nil {
		return err
	}
	return flows.Run(ctx, events)
}

func sendParked(ctx context.Context, o *options, a *agent.Agent, inForce <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-inForce:
	}
	frames, err := parked.Open(o.bpffsDir, o.markShift)
	if err != nil {
		return err
	}
	defer frames.Release()
	return a.SendParked(ctx, frames)
}

func answer(ctx context.Context, o *options, p parts) error {
	socket, err := api.Listen(o.stateDir)
	if err != nil {
		return err
	}
	defer os.Remove(o.stateDir + "/" + api.SocketName)
	collectAt(garbage)
	if _, err := releaseProgram(); err != nil {
		o.log.Debug("the pages that the start used stay mapped", "error", err)
	}
	o.log.Info("agent is ready", "node", o.nodeName, "version", build.Read().String(), "stateDir", o.stateDir, "bpffsDir", o.bpffsDir)
	return api.Serve(ctx, socket, api.NewHandler(p.node, p.agent, p.flows), o.log)
}

func (o *options) programs() loader.Config {
	c := loader.Config{BPFFSDir: o.bpffsDir, NodeEgressAllow: o.nodeEgress == "allow", MarkShift: o.markShift, Sizes: o.sizes, CgroupRoot: o.cgroupRoot, Pickup: o.pickUp,
		NoRecords: !o.flowRecords, NoProcess: !o.process, NoHostRouting: !o.hostRouting, Update: o.flowUpdate}
	if o.flowUpdate == 0 {
		c.Update = -1
	}
	if o.pickUp == 0 {
		c.Pickup = -1
	}
	if o.routing == routingVXLAN {
		c.TunnelPort = uint16(o.tunnelPort)
	}
	return c
}

func forward(o *options) error {
	changed, err := node.EnableForwarding()
	if len(changed) > 0 {
		o.log.Info("forwarding was off in this network namespace: turned on", "sysctls", strings.Join(changed, " "))
	}
	return err
}
