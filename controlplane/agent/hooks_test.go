package agent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/weirnet/weir/controlplane/node"
	"github.com/weirnet/weir/datapath/loader"
)

// The programs read Ethernet: on a device without it nothing that comes in may be taken for
// a packet of a live flow, and the user is told.
func TestUplinkWithoutEthernet(t *testing.T) {
	h := &fakeHooks{attached: map[loader.Attachment]bool{}}
	a := &Agent{Config: Config{Hooks: h, Network: &fakeNetwork{names: map[uint32]string{3: "tun0"}}, Log: slog.New(slog.DiscardHandler)}}
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
	a := &Agent{Config: Config{Hooks: h, Network: &fakeNetwork{names: map[uint32]string{2: "eth0", 3: "weir-vxlan"}}, Log: slog.New(slog.DiscardHandler), Uplinks: []string{"eth0", "weir-vxlan"}}}
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
