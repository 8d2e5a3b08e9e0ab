package cni

import (
	"context"
	"errors"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/loader"
)

// adding is one ADD under way.
type adding struct {
	conf  *config
	pod   pod
	at    api.Attachment
	netns string
	agent *api.Client
	addrs addresses
	veth  *veth

	answer chan error // of the agent, once it is asked for the endpoint
	hangUp func()     // on the agent, which then undoes what it has done

	before types.Result   // of the plugins before, if chained
	steps  []func() error // back, see onUndo
}

// add runs ADD. What it made is undone, in the order of DEL, if a later step fails.
func add(args *skel.CmdArgs) error {
	a := &adding{at: api.Attachment{ContainerID: args.ContainerID, IfName: args.IfName}, netns: args.Netns}
	result, err := a.run(args)
	if err != nil {
		return withUndo(err, a.undo())
	}
	return types.PrintResult(result, a.conf.CNIVersion)
}

func (a *adding) run(args *skel.CmdArgs) (types.Result, error) {
	if err := a.read(args); err != nil {
		return nil, err
	}
	podNetns, err := openNetns(args.Netns)
	if err != nil {
		return nil, err
	}
	defer podNetns.Close()
	if a.veth, err = openVeth(a.at, podNetns); err != nil {
		return nil, err
	}
	steps := []func() error{a.meetAgent, a.veth.absent, a.allocate, a.create, a.ask, a.attach, a.configure, a.enforced}
	if a.conf.chained() {
		steps = []func() error{a.meetAgent, a.inherit, a.veth.follow, a.ask, a.attachChained, a.enforced}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if a.conf.chained() {
		return a.before, nil
	}
	return a.result(), nil
}

func (a *adding) read(args *skel.CmdArgs) (err error) {
	if a.conf, err = parseConfig(args.StdinData); err != nil {
		return err
	}
	if err = a.conf.placed(); err != nil {
		return err
	}
	a.pod, err = parsePod(args.Args)
	return err
}

func (a *adding) meetAgent() (err error) {
	a.agent, err = findAgent(a.conf)
	return err
}

func (a *adding) allocate() (err error) {
	if err = settle(a.conf); err != nil {
		return err
	}
	if a.addrs, err = allocate(a.conf, a.at); err == nil {
		a.onUndo(func() error { return release(a.conf, a.at) })
	}
	return err
}

// create also promises the removal of the links: they may go only after the veth, or
// the pod would be free for a moment.
func (a *adding) create() error {
	if err := a.veth.create(a.conf.MTU, a.conf.podMTU); err != nil {
		return err
	}
	a.onUndo(func() error { return loader.DetachPod(a.conf.pins, a.veth.pins) })
	a.onUndo(func() error {
		_, err := deleteHostSide(a.veth.node, a.veth.hostName)
		return err
	})
	return a.veth.learn(alias(a.conf.Name, a.at))
}

func (a *adding) attach() error {
	return loader.AttachPod(a.conf.pins, a.veth.hostIndex, a.veth.pins, a.conf.xdp)
}

func (a *adding) configure() error { return a.veth.configure(a.addrs) }

// ask has the agent make the endpoint while the interface gets ready: what either waits for is
// no work of the other's. Nothing passes before both are done, see configure; only a chained
// interface is up when we come.
func (a *adding) ask() error {
	cookie, err := a.veth.cookie()
	if err != nil {
		return err
	}
	req := api.AddRequest{
		ContainerID: a.at.ContainerID, IfName: a.at.IfName, Netns: a.netns, NetnsCookie: cookie,
		Network: a.conf.Name, Chained: a.conf.chained(), Pins: a.veth.pins,
		HostIfName: a.veth.hostName, HostIfindex: uint32(a.veth.hostIndex), MAC: a.veth.podMAC.String(),
		PodNamespace: a.pod.Namespace, PodName: a.pod.Name, PodUID: a.pod.UID,
	}
	for _, ip := range a.addrs.list() {
		req.Addresses = append(req.Addresses, ip.String())
	}
	ctx, cancel := context.WithTimeout(context.Background(), addWait)
	a.answer, a.hangUp = make(chan error, 1), cancel
	go func() {
		_, err := a.agent.AddEndpoint(ctx, req)
		a.answer <- err
	}()
	a.onUndo(func() error {
		a.hangUp()
		return forget(a.agent, a.at)
	})
	return nil
}

// enforced waits until the endpoint's policy is.
func (a *adding) enforced() error {
	defer a.hangUp()
	if err := <-a.answer; err != nil {
		return agentError(a.agent, "add pod "+a.pod.String(), err)
	}
	return nil
}

// onUndo registers what takes a step back; the last registered runs first.
func (a *adding) onUndo(f func() error) { a.steps = append(a.steps, f) }

func (a *adding) undo() error {
	var errs []error
	for i := len(a.steps) - 1; i >= 0; i-- {
		errs = append(errs, a.steps[i]())
	}
	return errors.Join(errs...)
}

// result tells the runtime what the pod got.
func (a *adding) result() *current.Result {
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: a.veth.hostName, Mac: hostMAC.String(), Mtu: a.veth.mtu},
			{Name: a.at.IfName, Mac: a.veth.podMAC.String(), Mtu: a.veth.mtu, Sandbox: a.netns},
		},
		DNS: a.conf.DNS,
	}
	if !a.addrs.DNS.IsEmpty() {
		r.DNS = a.addrs.DNS
	}
	for _, ip := range a.addrs.list() {
		gw, dst := gatewayOf(ip)
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(1), Address: *ipNet(host(ip)), Gateway: net.IP(gw.AsSlice())})
		r.Routes = append(r.Routes, &types.Route{Dst: *ipNet(dst), GW: net.IP(gw.AsSlice())})
	}
	return r
}
