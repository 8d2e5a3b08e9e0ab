package cni

import (
	"context"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// status runs STATUS: code 50 when an ADD would fail now.
func status(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	agent, err := findAgent(c)
	if err != nil {
		return fail(types.ErrPluginNotAvailable, "%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), pingWait)
	defer cancel()
	s, err := agent.Status(ctx, 0)
	if err != nil {
		return fail(types.ErrPluginNotAvailable, "%v", agentError(agent, "ask for status", err))
	}
	if s.Epoch == 0 { // the kernel's begins at 1
		return fail(types.ErrPluginNotAvailable, "the agent at %s has no datapath yet", agent.Socket())
	}
	if c.chained() {
		return nil
	}
	if err := invoke.DelegateStatus(ctx, c.IPAM.Type, c.raw, nil); err != nil {
		return fail(types.ErrPluginNotAvailable, "%v", ipamError(c, err))
	}
	return nil
}
