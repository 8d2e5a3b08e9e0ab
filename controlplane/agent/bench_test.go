package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
)

// bench is an agent on a real directory with a fake kernel and network. The agent can be
// stopped and started again; the kernel, network and directories stay.
type bench struct {
	t         *testing.T
	manifests string
	stateDir  string
	kernel    *datapath.Fake
	network   *fakeNetwork
	hooks     *fakeHooks
	addWait   time.Duration
	patience  time.Duration

	agent *Agent
	stop  func()

	source Source        // nil: the manifests
	nodes  *source.Nodes // the cluster's
	router Router
	off    bool // host routing by BPF
	shield *fakeShield
	deny   string // the shield's file
}

func newBench(t *testing.T) *bench {
	return &bench{
		t: t, manifests: t.TempDir(), stateDir: t.TempDir(), kernel: &datapath.Fake{},
		network: &fakeNetwork{names: map[uint32]string{}}, hooks: &fakeHooks{attached: map[loader.Attachment]bool{}},
		addWait: 30 * time.Millisecond, patience: 5 * time.Second,
	}
}

// start returns when the agent has answers.
func (b *bench) start() {
	b.t.Helper()
	log := slog.New(slog.NewTextHandler(b.t.Output(), nil))
	state, err := statedir.Open(b.stateDir)
	if err != nil {
		b.t.Fatal(err)
	}
	directory, err := source.NewDirectory(b.manifests, b.stateDir, log)
	if err != nil {
		b.t.Fatal(err)
	}
	from := b.source
	if from == nil {
		from = directory
	}
	if b.nodes != nil {
		from = clusterSource{from, b.nodes}
	}
	var kernel datapath.Kernel = b.kernel
	if b.shield != nil {
		kernel = b.shield
	}
	b.agent, err = New(Config{
		ShieldFile: b.deny,
		StateDir:   state, Source: from, Kernel: kernel, Hooks: b.hooks, Network: b.network, Log: log,
		NodeName: "node", SourceName: "DIR", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		AddWait: b.addWait, Router: b.router, NoHostRouting: b.off,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.agent.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("agent: %v", err)
		}
		_ = state.Close()
	})
	b.t.Cleanup(b.stop)
	select {
	case <-b.agent.Ready():
	case err := <-ended:
		ended <- err
		b.t.Fatalf("agent: %v", err)
	case <-time.After(10 * time.Second):
		b.t.Fatal("agent is not ready after 10 s")
	}
}

// write replaces a manifest by rename.
func (b *bench) write(name, text string) {
	b.t.Helper()
	fresh := filepath.Join(b.t.TempDir(), name)
	if err := os.WriteFile(fresh, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(fresh, filepath.Join(b.manifests, name)); err != nil {
		b.t.Fatal(err)
	}
}

// fakeNetwork has one device, eth0, and the interfaces that were added.
type fakeNetwork struct {
	mu      sync.Mutex
	names   map[uint32]string
	changed func(node.State)
}

func (n *fakeNetwork) state() node.State {
	s := node.State{
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Devices:   []node.Device{{Name: "eth0", Index: 2, DefaultRoute: true}},
		PodSides:  map[string]uint32{},
	}
	for index, name := range n.names {
		s.PodSides[name] = index
	}
	return s
}

func (n *fakeNetwork) Watch(ctx context.Context, changed func(node.State)) error {
	n.mu.Lock()
	s := n.state()
	n.mu.Unlock()
	changed(s)
	n.mu.Lock()
	n.changed = changed
	n.mu.Unlock()
	<-ctx.Done()
	n.mu.Lock()
	n.changed = nil
	n.mu.Unlock()
	return nil
}

func (n *fakeNetwork) Has(ifindex uint32, name string) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names[ifindex] == name || ifindex == 2 && name == "eth0", nil
}

func (n *fakeNetwork) add(ifindex uint32, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[ifindex] = name
}

func (n *fakeNetwork) remove(ifindex uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.names, ifindex)
}

// fakeHooks remembers what is attached.
type fakeHooks struct {
	mu       sync.Mutex
	attached map[loader.Attachment]bool
}

func (h *fakeHooks) attach(ifindex int, name string, hooks ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, hook := range hooks {
		h.attached[loader.Attachment{Name: name, Hook: hook, Ifindex: ifindex}] = true
	}
}

func (h *fakeHooks) AttachPod(ifindex int, name string, shield, _ bool) error {
	h.attach(ifindex, name, "from_pod", "to_pod")
	if shield {
		h.attach(ifindex, name, "shield")
	}
	return nil
}

func (h *fakeHooks) AttachDevice(ifindex int, name string, role loader.Role) error {
	h.attach(ifindex, name, "to_network")
	h.mu.Lock()
	delete(h.attached, loader.Attachment{Name: name, Hook: "from_network", Ifindex: ifindex})
	h.mu.Unlock()
	switch role {
	case loader.Uplink:
		h.attach(ifindex, name, "from_network")
	case loader.Tunnel:
		h.attach(ifindex, name, "from_tunnel")
	}
	return nil
}

func (h *fakeHooks) Restore() (bool, error) { return false, nil }

func (h *fakeHooks) Detach(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for at := range h.attached {
		if at.Name == name {
			delete(h.attached, at)
		}
	}
	return nil
}

func (h *fakeHooks) Release(name string) error { return h.Detach(name) }

func (h *fakeHooks) Attached() ([]loader.Attachment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []loader.Attachment
	for at := range h.attached {
		out = append(out, at)
	}
	return out, nil
}
