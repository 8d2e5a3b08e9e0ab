package main

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/routing"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath/loader"
)

// granted are the capabilities that the chart gives the agent's container.
func granted(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/chart/templates/_helpers.tpl")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`drop: \[ALL\]\n  add: \[(.*)\]`).FindSubmatch(text)
	if m == nil {
		t.Fatal("the chart does not say which capabilities there are")
	}
	return strings.Split(strings.ToLower(string(m[1])), ", ")
}

// confined makes a command run as in a container: root with these capabilities, never more,
// and with settings of the kernel that are read-only.
func confined(cmd *exec.Cmd, capabilities []string) {
	set := "-all"
	for _, c := range capabilities {
		set += ",+" + c
	}
	const readOnly = `mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"`
	args := append([]string{"unshare", "--mount", "sh", "-c", readOnly, "sh",
		"setpriv", "--bounding-set", set, "--inh-caps", "-all", "--no-new-privs"}, cmd.Args...)
	*cmd = *exec.Command(args[0], args[1:]...)
}

// Where nobody turned on forwarding the agent says so and does not pretend.
func TestForwardingIsTheInitContainers(t *testing.T) {
	r := newRunner(t)
	r.must(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0)) // of this thread's namespace
	cmd, stderr := r.command()
	confined(cmd, granted(t))
	cmd.Stderr = stderr
	if err := cmd.Run(); exitStatus(err) != 1 || !strings.Contains(stderr.String(), "turn on forwarding: open /proc/sys/net/ipv4/ip_forward: read-only file system") {
		t.Errorf("%v\n%s", err, stderr)
	}
}

// The agent does all it does with what the chart grants, and takes itself off the node with it.
// The pod's interface is attached by the CNI plugin, which the runtime runs as it is.
func TestCapabilitiesSuffice(t *testing.T) {
	r := newRunner(t)
	r.must(os.WriteFile(filepath.Join(r.manifests, "shop.yaml"), []byte(manifest), 0o644))
	r.must(exec.Command(r.binary, "install", "--forwarding").Run())
	caps := granted(t)
	extra := append(r.cgroup(), "--recheck", "100ms")
	p := r.startWith(func(cmd *exec.Cmd) { confined(cmd, caps) }, extra...)
	r.eventually("hooks of the node's devices", func() bool {
		return r.hooks("up0") == "from_network to_network" && r.hooks("up1") == "to_network"
	})
	const name = "weir0000000000a"
	index := r.veth(name, "pod0")
	r.must(loader.AttachPod(r.bpffs, index, name, loader.XDPOff))
	e, err := r.client.AddEndpoint(t.Context(), api.AddRequest{
		ContainerID: "c1", IfName: "eth0", HostIfName: name, HostIfindex: uint32(index), MAC: "02:00:00:00:00:01",
		Addresses: []string{"10.77.0.2"}, PodNamespace: "shop", PodName: "web",
	})
	if err != nil || !e.Ready || !e.Ingress.Isolated {
		t.Fatalf("%+v, %v\n%s", e, err, p.stderr)
	}
	// What somebody takes away is put back.
	r.must(loader.DetachPod(r.bpffs, name))
	r.eventually("hooks that somebody took", func() bool { return r.hooks(name) == "from_pod to_pod" })
	r.must(os.WriteFile(filepath.Join(r.manifests, "shop.yaml"), []byte(strings.ReplaceAll(manifest, "deny", "other")), 0o644))
	r.eventually("a changed policy in force", func() bool { s := r.status(); return s.Revision.Applied > 1 && len(s.Errors) == 0 })
	if w := r.status().Warnings; slices.ContainsFunc(w, func(w string) bool { return strings.Contains(w, "permitted") }) {
		t.Errorf("warnings: %q", w)
	}
	r.end(p, unix.SIGKILL)
	p = r.startWith(func(cmd *exec.Cmd) { confined(cmd, caps) }, extra...) // adopts
	r.end(p, unix.SIGTERM)
	for _, line := range strings.Split(p.stderr.String(), "\n") {
		if strings.Contains(line, "permitted") || strings.Contains(line, "level=ERROR") || strings.Contains(line, "records have less") {
			t.Errorf("said: %s", line)
		}
	}
	r.uninstalls(caps)
}

func (r *runner) uninstalls(caps []string) {
	r.Helper()
	pods := []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}
	r.must(routing.Routes(source.Node{Name: "node", PodCIDRs: pods}, nil))
	r.must(routing.Masquerade(pods, nil, nil))
	cmd := exec.Command(r.binary, "uninstall", "--cni-conf", filepath.Join(r.manifests, "none.conflist"), "--bpffs-dir", r.bpffs, "--state-dir", r.state)
	confined(cmd, caps)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("shop/web")) {
		r.Fatalf("uninstall: %v\n%s", err, out)
	}
	for _, dir := range []string{r.bpffs, r.state} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			r.Errorf("%s: %v", dir, err)
		}
	}
	left, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routing.Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(left) > 0 {
		r.Errorf("routes left: %v, %v", left, err)
	}
}

// None of them is for nothing.
func TestCapabilitiesAreNeeded(t *testing.T) {
	r := newRunner(t)
	r.must(exec.Command(r.binary, "install", "--forwarding").Run())
	for _, without := range granted(t) {
		cmd, stderr := r.command()
		confined(cmd, slices.DeleteFunc(granted(t), func(c string) bool { return c == without }))
		cmd.Stderr = stderr
		r.must(cmd.Start())
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		select {
		case <-ended:
			t.Logf("without %s: %s", without, stderr)
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			t.Errorf("without %s the agent runs:\n%s", without, stderr)
		}
	}
}

func TestInstallCommand(t *testing.T) {
	r := newRunner(t)
	to := t.TempDir()
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"install"}, 2, "nothing to do"},
		{[]string{"install", "extra"}, 2, `unexpected argument "extra"`},
		{[]string{"install", "--cni-bin-dir", to, "--frobnicate"}, 2, "frobnicate"},
		{[]string{"install", "--cni-bin-dir", filepath.Join(to, "none")}, 1, "no directory " + filepath.Join(to, "none")},
		{[]string{"install", "--cni-bin-dir", to}, 1, "install weir-cni in " + to}, // nothing is beside the agent
		{[]string{"uninstall", "--state-dir", r.state, "--bpffs-dir", r.bpffs}, 2, "--cni-conf must be given"},
		{[]string{"uninstall", "--cni-conf", "x"}, 2, "--bpffs-dir must be given"},
	} {
		out, err := exec.Command(r.binary, c.args...).CombinedOutput()
		if exitStatus(err) != c.status || !strings.HasPrefix(string(out), "weir-agent: ") || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v, want status %d and %q\n%s", c.args, err, c.status, c.want, out)
		}
	}
	for _, p := range []string{"weir-cni", "host-local", "portmap"} { // as in the image
		r.must(os.WriteFile(filepath.Join(filepath.Dir(r.binary), p), []byte(p), 0o755))
	}
	if out, err := exec.Command(r.binary, "install", "--cni-bin-dir", to).CombinedOutput(); err != nil || !strings.Contains(string(out), "installed "+to+"/weir-cni") {
		t.Errorf("%v: %s", err, out)
	}
}

// cgroup makes one that stands for the node's root, below a cgroup2 that this test mounts.
func (r *runner) cgroup() []string {
	r.Helper()
	root, err := os.MkdirTemp("/run", "weirt-")
	r.must(err)
	r.must(unix.Mount("cgroup2", root, "cgroup2", 0, ""))
	dir := filepath.Join(root, filepath.Base(root))
	r.must(os.Mkdir(dir, 0o755))
	r.Cleanup(func() {
		if err := errors.Join(os.Remove(dir), unix.Unmount(root, unix.MNT_DETACH), os.Remove(root)); err != nil {
			r.Errorf("remove cgroup: %v", err)
		}
	})
	return []string{"--cgroup-root", dir}
}

// A pod that took Weir off its node stays until it is deleted, and does nothing twice.
func TestUninstallStays(t *testing.T) {
	r := newRunner(t)
	r.must(os.Mkdir(r.state, 0o700))
	conf := filepath.Join(r.manifests, "05-weir.conflist")
	r.must(os.WriteFile(conf, nil, 0o600))
	cmd := exec.Command(r.binary, "uninstall", "--cni-conf", conf, "--bpffs-dir", r.bpffs, "--state-dir", r.state, "--stay")
	out, err := cmd.StdoutPipe()
	r.must(err)
	r.must(cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "Weir is off this node") {
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil { // it still runs
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(conf); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
