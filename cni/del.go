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
// was not told, nor the pod's network namespace, nor a flawless configuration: a pod that
// cannot go holds its node, and whoever has to mend the configuration.
func del(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		c.orDefaults()
	}
	return detach(c, api.Attachment{ContainerID: args.ContainerID, IfName: args.IfName})
}

// orDefaults replaces directories that cannot be meant.
func (c *config) orDefaults() {
	if absolute("stateDir", c.StateDir) != nil {
		c.StateDir = DefaultStateDir
	}
	if absolute("bpffsDir", c.BPFFSDir) != nil {
		c.BPFFSDir = DefaultBPFFSDir
	}
}

// detach removes an attachment; doing it twice is harmless. The address goes last and
// only if the veth is gone, so that no two pods can hold it.
func detach(c *config, at api.Attachment) error {
	agent := api.Dial(c.StateDir)
	_ = forget(agent, at)
	name := HostIfName(at.ContainerID, at.IfName)
	node, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink of the node: %w", err)
	}
	defer node.Close()
	made, err := deleteHostSide(node, name) // a chained interface has a name that its plugin gave it
	if err != nil {
		return err
	}
	if c.chained() && !made && !c.has("ipam") {
		// The interface is removed after us, by its plugin. Until then its programs drop
		// everything, as they do without an endpoint; what is left of them the agent collects.
		return loader.DetachGone(reachBPFFS(c.BPFFSDir, agent), name)
	}
	_ = loader.DetachPod(reachBPFFS(c.BPFFSDir, agent), name) // a pin without an interface is no more than litter
	if err := release(c, at); err != nil {
		return owe(c, at, err)
	}
	return nil
}

// forget tells the agent, which answers when the endpoint is out of the kernel.
func forget(agent *api.Client, at api.Attachment) error {
	ctx, cancel := context.WithTimeout(context.Background(), delWait)
	defer cancel()
	return agent.DeleteEndpoint(ctx, at)
}
