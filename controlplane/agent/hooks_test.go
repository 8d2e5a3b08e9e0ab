package agent

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath/loader"
)

func agentOfHooks(t *testing.T, h *fakeHooks, names map[uint32]string) *Agent {
	t.Helper()
	state, err := statedir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = state.Close() })
	a := &Agent{Config: Config{Hooks: h, Network: &fakeNetwork{names: names}, Log: slog.New(slog.DiscardHandler)}}
	if a.records, err = endpoint.Open(state); err != nil {
		t.Fatal(err)
	}
	return a
}

// A chained pod's interface is a device of the node until its pod is known, and no longer.
// The bridge that it is a port of is no uplink then: the pods' own packets come in by it.
func TestChainedInterfaceIsNoDevice(t *testing.T) {
	h := &fakeHooks{attached: map[loader.Attachment]bool{}}
	a := agentOfHooks(t, h, map[uint32]string{4: "br0", 5: "veth1", 6: "ens3", 7: "veth2"})
	devices := []node.Device{
		{Name: "br0", Index: 4, DefaultRoute: true}, {Name: "veth1", Index: 5, Master: 4}, {Name: "ens3", Index: 6, Master: 4}, {Name: "veth2", Index: 7, Master: 4},
	}
	at := func(hook, name string, index int) bool {
		return h.attached[loader.Attachment{Name: name, Hook: hook, Ifindex: index}]
	}
	a.attachDevices(&node.State{Devices: devices})
	if !at("to_network", "veth1", 5) || !at("from_network", "br0", 4) {
		t.Fatalf("before its pod is known: %v", h.attached)
	}
	r, err := endpoint.FromRequest(api.AddRequest{
		ContainerID: "c1", IfName: "eth0", HostIfName: "veth1", HostIfindex: 5, MAC: "02:00:00:00:00:01", Addresses: []string{"10.0.0.1"},
		PodNamespace: "shop", PodName: "web", Chained: true, Pins: "weir0123456789a", Network: "cbr0",
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, _, err = a.records.Add(r, func(uint32) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if l := r.Local().Endpoint; !l.NoRedirect || !l.Shared {
		t.Errorf("endpoint %+v: want a shared link, by the stack", l)
	}
	h.attach(5, r.Pins(), "from_pod", "to_pod") // as the plugin did
	a.detachAsDevice(r)
	a.attachDevices(&node.State{Devices: devices})
	for _, hook := range []string{"from_pod", "to_pod"} {
		if !at(hook, r.Pins(), 5) {
			t.Errorf("the pod lost %s", hook)
		}
	}
	if at("to_network", "veth1", 5) || !at("to_network", "veth2", 7) || !at("to_network", "ens3", 6) {
		t.Errorf("attached %v: want to_network at the bridge's other ports", h.attached)
	}
	if at("from_network", "br0", 4) {
		t.Error("from_network is still at the pods' bridge")
	}
	_, warnings := a.hooked.report()
	if len(warnings) != 1 || !strings.Contains(warnings[0], "uplink br0: it shares a bridge with pods") {
		t.Errorf("warnings %q, want one about br0", warnings)
	}
}

// The programs read Ethernet: on a device without it nothing that comes in may be taken for
// a packet of a live flow, and the user is told.
func TestUplinkWithoutEthernet(t *testing.T) {
	h := &fakeHooks{attached: map[loader.Attachment]bool{}}
	a := agentOfHooks(t, h, map[uint32]string{3: "tun0"})
	a.attachDevices(&node.State{Devices: []node.Device{
		{Name: "eth0", Index: 2, DefaultRoute: true}, {Name: "tun0", Index: 3, DefaultRoute: true, Raw: true},
	}})
	for at, want := range map[loader.Attachment]bool{
		{Name: "eth0", Hook: "from_network", Ifindex: 2}: true,
		{Name: "tun0", Hook: "to_network", Ifindex: 3}:   true,
		{Name: "tun0", Hook: "from_network", Ifindex: 3}: false,
	} {
		if h.attached[at] != want {
			t.Errorf("%+v attached: %v, want %v", at, h.attached[at], want)
		}
	}
	_, warnings := a.hooked.report()
	if len(warnings) != 1 || !strings.Contains(warnings[0], "uplink tun0") {
		t.Errorf("warnings %q, want one about tun0", warnings)
	}
}

// What comes out of the tunnel meets the tunnel's own program, whatever else the device is
// said to be.
func TestTunnelHasItsOwnHook(t *testing.T) {
	h := &fakeHooks{attached: map[loader.Attachment]bool{}}
	a := agentOfHooks(t, h, map[uint32]string{2: "eth0", 3: "weir-vxlan"})
	a.Uplinks = []string{"eth0", "weir-vxlan"}
	a.attachDevices(&node.State{Devices: []node.Device{
		{Name: "eth0", Index: 2}, {Name: "weir-vxlan", Index: 3, Tunnel: true, DefaultRoute: true},
	}})
	for at, want := range map[loader.Attachment]bool{
		{Name: "eth0", Hook: "from_network", Ifindex: 2}:       true,
		{Name: "weir-vxlan", Hook: "from_tunnel", Ifindex: 3}:  true,
		{Name: "weir-vxlan", Hook: "from_network", Ifindex: 3}: false,
	} {
		if h.attached[at] != want {
			t.Errorf("%+v attached: %v, want %v", at, h.attached[at], want)
		}
	}
}

// The plugin attaches to a new pod's interface while its endpoint is made; one that died in
// between leaves it to the agent.
func TestProgramsOfAPodThatBegins(t *testing.T) {
	h := &fakeHooks{attached: map[loader.Attachment]bool{}}
	a := agentOfHooks(t, h, map[uint32]string{5: "weir0123456789a"})
	r, err := endpoint.FromRequest(api.AddRequest{
		ContainerID: "c1", IfName: "eth0", HostIfName: "weir0123456789a", HostIfindex: 5, MAC: "02:00:00:00:00:01", Addresses: []string{"10.0.0.1"},
		PodNamespace: "shop", PodName: "web", Pins: "weir0123456789a", Network: "weir",
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, _, err = a.records.Add(r, func(uint32) bool { return false }); err != nil {
		t.Fatal(err)
	}
	a.begin.note(r)
	for _, late := range []bool{false, true} {
		if late {
			a.begin.since[r.Number] = time.Now().Add(-2 * beginsWithin)
		}
		if err := a.attachPods(); err != nil {
			t.Fatal(err)
		}
		if got := h.attached[loader.Attachment{Name: r.Pins(), Hook: "from_pod", Ifindex: 5}]; got != late {
			t.Errorf("late=%t: attached=%t", late, got)
		}
	}
}
