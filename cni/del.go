package cni

import (
	"context"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/loader"
)

// del runs DEL. It needs neither the agent, which collects at its next start what it
// was not told, nor the pod's network namespace, nor a flawless configuration.
func del(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil && c.IPAM.Type == "" {
		return err
	}
	return detach(c, api.Attachment{ContainerID: args.ContainerID, IfName: args.IfName})
}

// detach removes an attachment; doing it twice is harmless. The address goes last and
// only if the veth is gone, so that no two pods can hold it.
func detach(c *config, at api.Attachment) error {
	agent := api.Dial(c.StateDir)
	_ = forget(agent, at)
	name := HostIfName(at.ContainerID, at.IfName)
	if c.chained() {
		// The interface is removed after us, by its plugin. Until then its programs drop
		// everything, as they do without an endpoint; what is left of them the agent collects.
		return loader.DetachGone(reachBPFFS(c.BPFFSDir, agent), name)
	}
	node, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink of the node: %w", err)
	}
	defer node.Close()
	if err := deleteHostSide(node, name); err != nil {
		return err
	}
	_ = loader.DetachPod(reachBPFFS(c.BPFFSDir, agent), name) // a pin without an interface is no more than litter
	return release(c, at)
}

// forget tells the agent, which answers when the endpoint is out of the kernel.
func forget(agent *api.Client, at api.Attachment) error {
	ctx, cancel := context.WithTimeout(context.Background(), delWait)
	defer cancel()
	return agent.DeleteEndpoint(ctx, at)
}
