package cni

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

const (
	pingWait = 2 * time.Second
	addWait  = api.AddAnswerMax
	delWait  = 5 * time.Second
)

// findAgent returns a client of the agent that serves this node: it answers, lives in
// our network namespace and pins where we look.
func findAgent(c *config) (*api.Client, error) {
	agent := api.Dial(c.StateDir)
	ctx, cancel := context.WithTimeout(context.Background(), pingWait)
	defer cancel()
	p, err := agent.Ping(ctx)
	if err != nil {
		return nil, agentError(agent, "ask the agent", err)
	}
	inode, err := netnsInode("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	if p.NetnsInode != inode {
		return nil, fail(types.ErrInvalidNetworkConfig,
			"stateDir: the agent at %s (node %s) runs in network namespace %d, the plugin in %d: run both in the node's",
			agent.Socket(), p.NodeName, p.NetnsInode, inode)
	}
	if !samePath(p.BPFFSDir, c.BPFFSDir) {
		return nil, fail(types.ErrInvalidNetworkConfig,
			"bpffsDir: the agent at %s runs with --bpffs-dir %s, the configuration says %s: make them equal",
			agent.Socket(), p.BPFFSDir, c.BPFFSDir)
	}
	c.pins, c.podMTU = reachBPFFS(c.BPFFSDir, agent), p.MTU
	return agent, nil
}

// samePath compares names first: the agent may live in another mount namespace.
func samePath(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

func netnsInode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return st.Ino, nil
}
