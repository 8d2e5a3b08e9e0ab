package bare

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/control"
	"github.com/weirnet/weir/tests/lab"
)

//go:embed node.sh
var nodeScript []byte

// Node is one that runs pods.
type Node struct {
	lab.Host
	Dir string // its files: log/, and what it has for /opt, /etc and /var/lib

	c       *Cluster
	groups  []string
	process *control.Process
}

func (c *Cluster) newNode(number int) *Node {
	c.t.Helper()
	n := &Node{c: c}
	n.Host = lab.Host{Name: fmt.Sprint("node", number), Netns: fmt.Sprint(c.Name, "-", number), Addr4: fmt.Sprint(net4, 10+number), Addr6: fmt.Sprint(net6, 10+number)}
	n.Dir = filepath.Join(c.Dir, n.Name)
	c.must(os.Mkdir(n.Dir, 0o755))
	n.network(number)
	c.t.Cleanup(func() { c.ip("netns del %s", n.Netns) })
	c.UserKubeconfig(filepath.Join(c.Dir, n.Name+".kubeconfig"), pkix.Name{Organization: []string{"system:nodes"}, CommonName: "system:node:" + n.Name}, n.Addr4, n.Addr6)
	n.cgroups()
	c.t.Cleanup(func() {
		if c.t.Failed() {
			for _, name := range []string{"containerd", "kubelet"} {
				c.t.Logf("%s of %s logged\n%s", name, n.Name, control.Tail(filepath.Join(n.Dir, "log", name+".log")))
			}
		}
		n.Stop()
	})
	return n
}

func (n *Node) network(number int) {
	c := n.c
	c.t.Helper()
	c.addNetns(n.Netns)
	c.ip("-n %s link add node%d type veth peer name eth0 netns %s", c.Host.Netns, number, n.Netns)
	c.ip("-n %s link set node%d master nodes up", c.Host.Netns, number)
	c.must(n.Address("eth0", n.Addr4+"/24", n.Addr6+"/64"))
	for _, via := range []string{c.Host.Addr4, c.Host.Addr6} {
		c.ip("-n %s route add default via %s", n.Netns, via)
	}
}

// cgroups of the node's own, one in each hierarchy: the roots that it sees. Else kubelets
// would end each other's pods.
func (n *Node) cgroups() {
	n.c.t.Helper()
	n.groups = nil
	for _, h := range n.hierarchies() {
		group := filepath.Join(h, n.Netns)
		n.c.must(os.Mkdir(group, 0o755))
		n.groups = append(n.groups, group)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in v1: nothing could run
			if have, err := os.ReadFile(filepath.Join(group, file)); err == nil && len(bytes.TrimSpace(have)) == 0 {
				if all, err := os.ReadFile(filepath.Join(h, file)); err == nil {
					n.c.must(os.WriteFile(filepath.Join(group, file), all, 0))
				}
			}
		}
	}
}

// hierarchies of cgroups that the machine has: one, or those of cgroup v1.
func (n *Node) hierarchies() (all []string) {
	n.c.t.Helper()
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
		return []string{root}
	}
	entries, err := os.ReadDir(root)
	n.c.must(err)
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, filepath.Join(root, e.Name()))
		}
	}
	return all
}

// removeGroup removes a cgroup with all below it, once what ran there is gone.
func removeGroup(dir string) (err error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var dirs []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if err = nil; len(dirs) == 0 {
			return nil
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			err = unix.Rmdir(dirs[i])
		}
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}

// Start boots the node. Its bpffs is empty: the first node mounts one, as systemd would; the
// others have none.
func (n *Node) Start() {
	n.c.t.Helper()
	script := filepath.Join(n.Dir, "node.sh")
	n.c.must(os.WriteFile(script, nodeScript, 0o755))
	cmd := control.In(n.Netns, "bash", append([]string{script}, n.groups...)...)
	mounted := ""
	if n == n.c.Nodes[0] {
		mounted = "yes"
	}
	cmd.Env = append(os.Environ(), "NODE="+n.Name, "ADDRESSES="+n.Addr4+","+n.Addr6, "BIN="+n.c.opts.Bin, "DIR="+n.Dir, "PKI="+n.c.Dir,
		"BPFFS="+mounted, "IMAGES="+strings.Join(n.c.opts.Images, " "))
	var err error
	n.process, err = control.Spawn(filepath.Join(n.Dir, "node.log"), cmd)
	n.c.must(err)
	n.c.script("on-"+n.Name, n.enter()...)
}

// Stop is a node that loses power: all that runs on it is gone at once.
func (n *Node) Stop() {
	n.c.t.Helper()
	n.process.Stop(unix.SIGKILL)
	n.process = nil
	for _, group := range n.groups {
		n.c.must(removeGroup(group))
	}
	n.groups = nil
}

// Reboot is a loss of power: the node has its disk, and nothing else, when it starts again.
func (n *Node) Reboot() {
	n.c.t.Helper()
	n.Stop()
	number := slices.Index(n.c.Nodes, n) + 1
	n.c.ip("-n %s link del node%d", n.c.Host.Netns, number)
	n.c.ip("netns del %s", n.Netns)
	n.network(number)
	n.cgroups()
	n.Start()
}

// Path of a file as seen on the node.
func (n *Node) Path(path string) string {
	n.c.t.Helper()
	return filepath.Join("/proc", n.enter()[2], "root", path)
}

// enter are the words of a command that runs another inside the node.
func (n *Node) enter() []string {
	n.c.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		n.c.must(n.process.Running())
		if pid := child(n.process.Pid()); pid != 0 {
			return []string{"nsenter", "-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--"}
		}
		if time.Now().After(end) {
			n.c.t.Fatalf("%s does not start\n%s", n.Name, n.process.Tail())
		}
	}
}

// child of a process; 0 if it has none yet.
func child(pid int) int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		if text, _ := os.ReadFile(task); len(text) > 0 {
			first, _, _ := strings.Cut(string(text), " ")
			id, _ := strconv.Atoi(first)
			return id
		}
	}
	return 0
}

// Inside runs a command on the node, among its files and processes.
func (n *Node) Inside(ctx context.Context, args ...string) (string, error) {
	words := append(n.enter(), args...)
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w\n%s", n.Name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// awaitRanges waits for the node to be registered and to have its part of the pods' addresses.
func (n *Node) awaitRanges() {
	n.c.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		node, err := n.c.Admin.CoreV1().Nodes().Get(n.c.t.Context(), n.Name, metav1.GetOptions{})
		if err == nil && len(node.Spec.PodCIDRs) == 2 {
			return
		}
		n.c.must(n.process.Running())
		if time.Now().After(end) {
			n.c.t.Fatalf("%s is not registered after %s: %v\n%s", n.Name, patience, err, n.process.Tail())
		}
	}
}
