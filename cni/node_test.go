package cni_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/cni"
	"github.com/weirnet/weir/controlplane/api"
)

// binDir holds the built plugins; CNI_PATH.
var binDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weirt-cni-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binDir = dir
	for _, pkg := range []string{"github.com/weirnet/weir/cmd/weir-cni", "github.com/containernetworking/plugins/plugins/ipam/host-local"} {
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(pkg)), pkg).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
			return 1
		}
	}
	return m.Run()
}

// node is a network namespace that the runtime (libcni) runs the plugin in, with its
// own state directory, bpffs and address pool:
//
//	node  weirXXXXXXXXXXX ── eth0  pod (one namespace each)
type node struct {
	t     *testing.T
	name  string
	netns ns.NetNS
	dir   string // state, bpffs, pool and the runtime's cache are below
	agent *fakeAgent
	conf  map[string]any
	stubs *ebpf.Collection
}

var sequence atomic.Int32

// newNode makes a node whose agent runs.
func newNode(t *testing.T, ranges ...string) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	n := &node{t: t, dir: t.TempDir()}
	n.name = n.newNetns("node")
	var err error
	if n.netns, err = ns.GetNS("/var/run/netns/" + n.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.netns.Close() })
	for _, d := range []string{"state", "bpf", "pool"} {
		if err := os.Mkdir(filepath.Join(n.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	bpffs := filepath.Join(n.dir, "bpf")
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bpffs, unix.MNT_DETACH) })
	n.loadPrograms()
	n.conf = map[string]any{
		"type": "weir-cni", "stateDir": n.stateDir(), "bpffsDir": n.bpffsDir(),
		"ipam": map[string]any{"type": "host-local", "dataDir": filepath.Join(n.dir, "pool"), "ranges": poolOf(ranges)},
	}
	n.startAgent()
	return n
}

func poolOf(ranges []string) [][]map[string]any {
	pool := [][]map[string]any{}
	for _, subnet := range ranges {
		pool = append(pool, []map[string]any{{"subnet": subnet}})
	}
	return pool
}

func (n *node) stateDir() string { return filepath.Join(n.dir, "state") }
func (n *node) bpffsDir() string { return filepath.Join(n.dir, "bpf", "weir") }

func (n *node) startAgent() {
	n.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(n.netns.Path(), &st); err != nil {
		n.t.Fatal(err)
	}
	n.agent = startAgent(n.t, n.stateDir(), api.Ping{NodeName: "n1", BPFFSDir: n.bpffsDir(), NetnsInode: st.Ino})
}

// newNetns makes a namespace, named for the test, that is gone after it.
func (n *node) newNetns(role string) string {
	n.t.Helper()
	name := fmt.Sprintf("weirt-cni-%d-%s%d", os.Getpid(), role, sequence.Add(1))
	n.sh("ip netns add " + name)
	n.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	return name
}

// sh runs a command that must succeed and returns what it printed.
func (n *node) sh(line string) string {
	n.t.Helper()
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// ip runs ip(8) in a namespace.
func (n *node) ip(netns, args string) string {
	n.t.Helper()
	return n.sh("ip -n " + netns + " " + args)
}

// container is a pod's sandbox, as the runtime knows it.
type container struct {
	node  *node
	netns string // name
	rt    *libcni.RuntimeConf
}

func (n *node) newContainer(id string) *container {
	n.t.Helper()
	name := n.newNetns("pod")
	args := [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", id}, {"K8S_POD_UID", "uid-" + id},
		{"K8S_POD_INFRA_CONTAINER_ID", id}, {"SOMETHING_NEW", "1"}}
	return &container{node: n, netns: name, rt: &libcni.RuntimeConf{
		ContainerID: id, NetNS: "/var/run/netns/" + name, IfName: "eth0", Args: args,
	}}
}

// list is the network configuration with changes; a nil value removes a key.
func (n *node) list(name string, changes map[string]any) *libcni.NetworkConfigList {
	n.t.Helper()
	plugin := map[string]any{}
	for _, from := range []map[string]any{n.conf, changes} {
		for k, v := range from {
			if plugin[k] = v; v == nil {
				delete(plugin, k)
			}
		}
	}
	b, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": name, "plugins": []any{plugin}})
	if err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(b)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// runtime calls f in the node's namespace, as the kubelet's runtime would.
func (n *node) runtime(f func(*libcni.CNIConfig) error) error {
	return n.netns.Do(func(ns.NetNS) error {
		return f(libcni.NewCNIConfigWithCacheDir([]string{binDir}, filepath.Join(n.dir, "cache"), nil))
	})
}

func (c *container) addWith(list *libcni.NetworkConfigList) (*current.Result, error) {
	var r *current.Result
	err := c.node.runtime(func(cnic *libcni.CNIConfig) error {
		result, err := cnic.AddNetworkList(context.Background(), list, c.rt)
		if err == nil {
			r, err = current.NewResultFromResult(result)
		}
		return err
	})
	return r, err
}

func (c *container) add() (*current.Result, error) { return c.addWith(c.node.list("weir", nil)) }

func (c *container) mustAdd() *current.Result {
	c.node.t.Helper()
	r, err := c.add()
	if err != nil {
		c.node.t.Fatalf("ADD %s: %v", c.rt.ContainerID, err)
	}
	return r
}

func (c *container) del() error {
	return c.node.runtime(func(cnic *libcni.CNIConfig) error {
		return cnic.DelNetworkList(context.Background(), c.node.list("weir", nil), c.rt)
	})
}

func (c *container) check() error {
	return c.node.runtime(func(cnic *libcni.CNIConfig) error {
		return cnic.CheckNetworkList(context.Background(), c.node.list("weir", nil), c.rt)
	})
}

// destroy ends the container's namespace and waits for the kernel to have done so.
func (c *container) destroy() {
	c.node.t.Helper()
	c.node.sh("ip netns del " + c.netns)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !strings.Contains(c.node.ip(c.node.name, "-br link"), c.hostIfName()) {
			return
		}
	}
	c.node.t.Fatalf("%s outlives its namespace", c.hostIfName())
}

func (c *container) hostIfName() string { return cni.HostIfName(c.rt.ContainerID, c.rt.IfName) }

// left is everything of ours that exists: interfaces on the node and in the
// containers, pins, allocated addresses, endpoints.
func (n *node) left(containers ...*container) string {
	n.t.Helper()
	var b strings.Builder
	for _, line := range strings.Split(n.ip(n.name, "-br link"), "\n") {
		if strings.HasPrefix(line, "weir") {
			fmt.Fprintln(&b, "node:", strings.Fields(line)[0])
		}
	}
	for _, c := range containers {
		for _, line := range strings.Split(n.ip(c.netns, "-br link"), "\n") {
			if line != "" && !strings.HasPrefix(line, "lo ") {
				fmt.Fprintln(&b, "pod:", strings.Fields(line)[0])
			}
		}
	}
	for _, name := range append(n.pins(), n.pool()...) {
		fmt.Fprintln(&b, name)
	}
	if k := n.agent.known(); k > 0 {
		fmt.Fprintln(&b, "endpoints:", k)
	}
	return b.String()
}

// pins are the files below the bpffs directory that name a host side.
func (n *node) pins() (found []string) {
	_ = filepath.WalkDir(n.bpffsDir(), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.Contains(strings.TrimPrefix(path, n.bpffsDir()), "weir") {
			found = append(found, "pin: "+path)
		}
		return nil
	})
	return found
}

// pool are the addresses host-local has given out.
func (n *node) pool() (found []string) {
	entries, err := os.ReadDir(filepath.Join(n.dir, "pool", "weir"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789abcdef.:_") == "" {
			found = append(found, "address: "+e.Name())
		}
	}
	return found
}

func (n *node) mustLeaveNothing(containers ...*container) {
	n.t.Helper()
	if left := n.left(containers...); left != "" {
		n.t.Errorf("left behind:\n%s", left)
	}
}

// wantCode checks a CNI error's code and that its message holds every text.
func wantCode(t *testing.T, err error, code uint, texts ...string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v (%T), want CNI code %d", err, err, code)
	}
	for _, text := range texts {
		if !strings.Contains(e.Error(), text) {
			t.Errorf("got %q, want %q in it", e.Error(), text)
		}
	}
}

// raw runs the plugin without libcni; before is a shell command that runs first, in a
// mount namespace of the plugin's own.
func (n *node) raw(before, stdin string, env ...string) (string, error) {
	plugin := filepath.Join(binDir, "weir-cni")
	cmd := exec.Command("unshare", "-m", "sh", "-c", before+" && exec "+plugin)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), append(env, "CNI_PATH="+binDir)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := n.netns.Do(func(ns.NetNS) error { return cmd.Run() })
	return out.String(), err
}

// env is what a runtime sets for a container.
func (c *container) env(command string) []string {
	args := ""
	for _, kv := range c.rt.Args {
		args += ";" + kv[0] + "=" + kv[1]
	}
	return []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + c.rt.ContainerID, "CNI_NETNS=" + c.rt.NetNS,
		"CNI_IFNAME=" + c.rt.IfName, "CNI_ARGS=" + strings.TrimPrefix(args, ";")}
}

// stdin is the configuration of the one plugin, as a runtime would write it.
func (n *node) stdin() string {
	n.t.Helper()
	conf := map[string]any{"cniVersion": "1.1.0", "name": "weir"}
	for k, v := range n.conf {
		conf[k] = v
	}
	b, err := json.Marshal(conf)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}
