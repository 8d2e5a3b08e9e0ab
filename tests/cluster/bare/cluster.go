// Package bare brings up a real Kubernetes without a network for its pods: what a CNI is
// installed on. Nodes are namespaces with a container runtime and a kubelet each; nothing of
// the machine's own network, cgroups or sysctls changes.
//
//	node1 --- eth0 ---+                          etcd, kube-apiserver, kube-controller-manager,
//	                  +--- nodes (a bridge) --- kube-scheduler; and the way out of the nodes, which
//	node2 --- eth0 ---+     198.18.0.1          ends there
package bare

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/cluster/control"
	"github.com/weirnet/weir/tests/lab"
)

// The nodes' network, below net4 and net6, and the pods'.
const (
	net4, net6   = "198.18.0.", "fd18::"
	pods4, pods6 = "10.244.0.0/16", "fd44::/56"
	patience     = 3 * time.Minute
)

// Options of a cluster.
type Options struct {
	Bin    string   // of Kubernetes' programs (tests/cluster/build.sh)
	Nodes  int      // how many
	Images []string // archives that every node has from the start
}

// Cluster is one that runs.
type Cluster struct {
	*control.Server
	Host  lab.Host // the control plane's network: neighbour of the nodes
	Nodes []*Node
	Dir   string // its files
	Name  string // what the names of all that it made begin with

	t    testing.TB
	opts Options
}

// Up brings one up, to where its nodes wait for a network; it goes with the test.
func Up(t testing.TB, o Options) *Cluster {
	t.Helper()
	c := &Cluster{t: t, opts: o, Name: fmt.Sprintf("weirt-%06x", time.Now().UnixNano()&0xffffff)}
	// Not in /run, which is memory: images are here, and what pods write.
	c.Dir = "/var/tmp/" + c.Name
	c.must(os.Mkdir(c.Dir, 0o755))
	t.Cleanup(func() { c.must(os.RemoveAll(c.Dir)) })
	c.network()
	c.Server = control.StartAt(t, o.Bin, c.Dir, control.Place{
		Netns: c.Host.Netns, Addresses: []string{c.Host.Addr4, c.Host.Addr6}, Pods: []string{pods4, pods6},
	})
	c.script("k", "nsenter", "--net="+c.Host.Path(), "--", filepath.Join(o.Bin, "kubectl"), "--kubeconfig="+c.Kubeconfig(c.Addr(), ""))
	c.images()
	for i := range o.Nodes {
		c.Nodes = append(c.Nodes, c.newNode(i+1))
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	for _, n := range c.Nodes {
		n.awaitRanges()
	}
	return c
}

func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// network of the control plane and the nodes.
func (c *Cluster) network() {
	c.t.Helper()
	c.Host = lab.Host{Name: "control", Netns: c.Name + "-c", Addr4: net4 + "1", Addr6: net6 + "1"}
	c.addNetns(c.Host.Netns)
	c.t.Cleanup(func() { c.ip("netns del %s", c.Host.Netns) })
	// An address of its own: a bridge without has a port's, another when a node reboots, which
	// the others' neighbour tables would learn seconds later.
	c.ip("-n %s link add nodes address 02:00:00:00:18:01 type bridge", c.Host.Netns)
	c.must(c.Host.Address("nodes", c.Host.Addr4+"/24", c.Host.Addr6+"/64"))
}

func (c *Cluster) addNetns(name string) {
	c.t.Helper()
	c.ip("netns add %s", name)
	c.ip("-n %s link set lo up", name)
}

func (c *Cluster) ip(format string, args ...any) {
	c.t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	if out, err := exec.Command("ip", words...).CombinedOutput(); err != nil {
		c.t.Fatalf("ip %s: %v: %s", strings.Join(words, " "), err, out)
	}
}

// images of the programs that were built join those that were given.
func (c *Cluster) images() {
	c.t.Helper()
	for i, image := range images(c.opts.Bin) {
		path := filepath.Join(c.Dir, fmt.Sprintf("image%d.tar", i))
		c.must(image.write(path))
		c.opts.Images = append(c.opts.Images, path)
	}
}

// script writes a command for people, who may give it more arguments.
func (c *Cluster) script(name string, words ...string) {
	c.t.Helper()
	c.must(os.WriteFile(filepath.Join(c.Dir, name), []byte("#!/bin/sh\nexec "+strings.Join(words, " ")+" \"$@\"\n"), 0o755))
}

// Kubectl as the cluster's admin, where the control plane is.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlWith(ctx, "", args...)
}

// KubectlWith gives it something to read.
func (c *Cluster) KubectlWith(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Dir, "k"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Ready waits for all nodes.
func (c *Cluster) Ready(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "node", "--all", "--timeout="+patience.String())
	return err
}
