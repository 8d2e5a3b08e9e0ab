package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

// gc runs GC: every attachment of this network that the runtime does not list gets a
// DEL. It is known by its host side's alias, or, if its network namespace and so its
// veth are gone or another plugin's, by the agent's endpoint. Another network's attachments
// are left alone.
func gc(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	agent, err := findAgent(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), addWait)
	defer cancel()
	endpoints, err := agent.Endpoints(ctx)
	if err != nil {
		return agentError(agent, "list endpoints", err)
	}
	ours, theirs, err := attachments(c.Name)
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		at := api.Attachment{ContainerID: e.ContainerID, IfName: e.IfName}
		if e.Network != "" && e.Network != c.Name {
			theirs[at] = true
		} else {
			ours[at] = true
		}
	}
	keep := theirs
	for _, v := range c.Valid {
		keep[api.Attachment(v)] = true
	}
	errs := []error{}
	for at := range ours {
		if !keep[at] {
			errs = append(errs, detach(c, at))
		}
	}
	if err := agent.GC(ctx, api.GCRequest{Valid: keys(keep)}); err != nil {
		errs = append(errs, agentError(agent, "collect endpoints", err))
	}
	if c.chained() {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, settle(c), gcAddresses(ctx, c))...)
}

func keys(set map[api.Attachment]bool) []api.Attachment {
	list := make([]api.Attachment, 0, len(set))
	for at := range set {
		list = append(list, at)
	}
	return list
}

// attachments reads the host sides on the node: those of the network, and those of others.
func attachments(network string) (ours, theirs map[api.Attachment]bool, err error) {
	node, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("netlink of the node: %w", err)
	}
	defer node.Close()
	links, err := node.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list interfaces: %w", err)
	}
	ours, theirs = map[api.Attachment]bool{}, map[api.Attachment]bool{}
	for _, l := range links {
		name, at, ok := parseAlias(l.Attrs().Alias)
		switch {
		case !ok || l.Attrs().Name != HostIfName(at.ContainerID, at.IfName):
		case name == network:
			ours[at] = true
		default:
			theirs[at] = true
		}
	}
	return ours, theirs, nil
}
