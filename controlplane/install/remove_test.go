package install

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/routing"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/sandbox"
)

const podSide = "weir0000000000a"

// installed is a node with all that Weir puts on one: programs pinned and attached to an
// uplink and to a pod's interface, routes, translation, state, files.
func installed(t *testing.T) Removal {
	t.Helper()
	bpffs := sandbox.BPFFS(t)
	sandbox.Netns(t)
	dir := t.TempDir()
	r := Removal{
		CNIConf: filepath.Join(dir, "05-weir.conflist"), BPFFSDir: filepath.Join(bpffs, "weir"),
		StateDir: filepath.Join(dir, "state"), CNIBinDir: filepath.Join(dir, "bin"),
		Say: func(string) {},
	}
	must(t, os.WriteFile(r.CNIConf, []byte("{}"), 0o644))
	must(t, os.Mkdir(r.CNIBinDir, 0o755))
	must(t, Binaries(brought(t, "plugin", "local"), r.CNIBinDir, r.Say))

	loaded, err := loader.Load(loader.Config{BPFFSDir: r.BPFFSDir})
	must(t, err)
	must(t, loaded.Close())
	up, pod := veth(t, "up0", "up1"), veth(t, podSide, "pod0")
	must(t, loader.AttachNetwork(r.BPFFSDir, up, "up0", loader.Uplink, loader.XDPOff))
	must(t, loader.AttachPod(r.BPFFSDir, pod, podSide, loader.XDPGeneric))

	pods := []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}
	must(t, routing.Routes(source.Node{Name: "n", PodCIDRs: pods}, nil))
	must(t, routing.Masquerade(pods, nil, nil))

	state, err := statedir.Open(r.StateDir)
	must(t, err)
	store, err := endpoint.Open(state)
	must(t, err)
	_, _, err = store.Add(&endpoint.Record{
		ContainerID: "c", IfName: "eth0", HostIfName: podSide, HostIfindex: uint32(pod), MAC: "02:00:00:00:00:01",
		Addr4: netip.MustParseAddr("10.0.1.2"), Namespace: "shop", Name: "web", LastPod: &policy.Pod{},
	}, func(uint32) bool { return false })
	must(t, err)
	must(t, os.WriteFile(state.Path("agent.sock"), nil, 0o600)) // as a killed agent leaves it
	must(t, state.Close())
	return r
}

func veth(t *testing.T, name, peer string) int {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l.Attrs().Index
}

func (r *Removal) run(t *testing.T) string {
	t.Helper()
	var said []string
	r.Say = func(line string) { said = append(said, line) }
	must(t, r.Run())
	return strings.Join(said, "\n")
}

func TestRemovalLeavesNothing(t *testing.T) {
	r := installed(t)
	said := r.run(t)
	for _, want := range []string{
		"removed " + r.CNIConf, "programs, maps and links in " + r.BPFFSDir, "1 running pods", "shop/web",
		"nftables", "state in " + r.StateDir, "removed " + r.CNIBinDir + "/weir-cni",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said:\n%s", want, said)
		}
	}
	if strings.Index(said, r.CNIConf) > strings.Index(said, r.BPFFSDir) {
		t.Errorf("the runtime's configuration does not go first:\n%s", said)
	}
	for _, gone := range []string{r.CNIConf, r.BPFFSDir, r.StateDir, filepath.Join(r.CNIBinDir, "weir-cni")} {
		if _, err := os.Lstat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if _, err := os.Stat(filepath.Join(r.CNIBinDir, "host-local")); err != nil {
		t.Errorf("somebody else's plugin: %v", err)
	}
	nothingAttached(t)
	nothingRouted(t)
	if said := r.run(t); strings.Contains(said, "pods keep") || strings.Contains(said, r.BPFFSDir) || !strings.Contains(said, "Weir is off this node") {
		t.Errorf("again:\n%s", said)
	}
}

func nothingAttached(t *testing.T) {
	t.Helper()
	for _, name := range []string{"up0", podSide} {
		l, err := netlink.LinkByName(name)
		must(t, err)
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			left, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
			if err != nil || len(left.Programs) > 0 {
				t.Errorf("%s %v: %v, %v", name, at, left, err)
			}
		}
		if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
			t.Errorf("%s still has an XDP program", name)
		}
	}
}

func nothingRouted(t *testing.T) {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routing.Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) > 0 {
		t.Errorf("routes: %v, %v", routes, err)
	}
	c, err := nftables.New()
	must(t, err)
	if tables, err := c.ListTables(); err != nil || len(tables) > 0 {
		t.Errorf("nftables: %v, %v", tables, err)
	}
}

// While an agent lives nothing is touched: it would put back half of it.
func TestRemovalRefusesWhileAnAgentRuns(t *testing.T) {
	r := installed(t)
	state, err := statedir.Open(r.StateDir)
	must(t, err)
	if err := r.Run(); err == nil || !strings.Contains(err.Error(), "an agent (pid ") {
		t.Fatalf("with an agent: %v", err)
	}
	must(t, state.Close())
	hold := holdDir(t, r.BPFFSDir) // an agent with another state directory
	if err := r.Run(); err == nil || !strings.Contains(err.Error(), "an agent holds bpffs directory "+r.BPFFSDir) {
		t.Fatalf("with an agent on the bpffs: %v", err)
	}
	hold.Close()
	for _, stays := range []string{r.CNIConf, r.BPFFSDir, r.StateDir} {
		if _, err := os.Stat(stays); err != nil {
			t.Errorf("it is gone: %v", err)
		}
	}
	if attached, err := loader.Attached(r.BPFFSDir); err != nil || len(attached) != 5 {
		t.Errorf("attached: %v, %v", attached, err)
	}
	r.run(t)
}

// Only what an agent held as its state directory is emptied.
func TestRemovalTouchesNoOtherDirectory(t *testing.T) {
	sandbox.Netns(t)
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	must(t, os.WriteFile(precious, nil, 0o600))
	r := Removal{CNIConf: filepath.Join(dir, "none", "05-weir.conflist"), BPFFSDir: filepath.Join(dir, "bpf"), StateDir: dir}
	r.run(t)
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	r.BPFFSDir = dir
	if err := r.Run(); err == nil || !strings.Contains(err.Error(), "not on a bpffs") {
		t.Errorf("a bpffs directory that is none: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// A configuration that cannot be removed leaves all in force: new pods would run open.
func TestRemovalStopsAtTheConfiguration(t *testing.T) {
	r := installed(t)
	must(t, os.Remove(r.CNIConf))
	must(t, os.MkdirAll(filepath.Join(r.CNIConf, "in-the-way"), 0o755))
	if err := r.Run(); err == nil || !strings.Contains(err.Error(), r.CNIConf) {
		t.Fatalf("%v", err)
	}
	if attached, err := loader.Attached(r.BPFFSDir); err != nil || len(attached) != 5 {
		t.Errorf("attached: %v, %v", attached, err)
	}
}

func holdDir(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	return f
}

// In a pod the state directory is mounted, in a root file system that is read-only: it stays,
// empty.
func TestRemoveWhatIsMounted(t *testing.T) {
	sandbox.Root(t)
	r := installed(t)
	root := t.TempDir()
	must(t, unix.Mount("tmpfs", root, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(root, unix.MNT_DETACH)) })
	mounted := filepath.Join(root, "state")
	must(t, os.Mkdir(mounted, 0o755))
	must(t, unix.Mount(r.StateDir, mounted, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(mounted, unix.MNT_DETACH)) })
	must(t, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	r.StateDir = mounted
	if said := r.run(t); !strings.Contains(said, "shop/web") || !strings.Contains(said, "Weir is off this node") {
		t.Errorf("said\n%s", said)
	}
	if left, err := os.ReadDir(mounted); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
