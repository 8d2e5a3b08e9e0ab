package agent

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/datapath"
)

// Sockets are looked after only where some may have been left behind.
func TestBackendsGone(t *testing.T) {
	state := func(protocol uint8, backends ...string) *datapath.State {
		s := &datapath.Service{}
		for _, b := range backends {
			s.Backends = append(s.Backends, netip.MustParseAddrPort(b))
		}
		f := datapath.Frontend{Addr: netip.MustParseAddr("10.96.0.10"), Protocol: protocol, Port: 53}
		return &datapath.State{Services: map[datapath.Frontend]*datapath.Service{f: s}}
	}
	const a, b = "10.0.0.1:53", "10.0.0.2:53"
	for name, c := range map[string]struct {
		was, is *datapath.State
		want    bool
	}{
		"start":           {&datapath.State{}, state(datapath.UDP, a), false},
		"nothing changed": {state(datapath.UDP, a), state(datapath.UDP, a), false},
		"one came":        {state(datapath.UDP, a), state(datapath.UDP, a, b), false},
		"one went":        {state(datapath.UDP, a, b), state(datapath.UDP, b), true},
		"replaced":        {state(datapath.UDP, a), state(datapath.UDP, b), true},
		"Service went":    {state(datapath.UDP, a), &datapath.State{}, true},
		"Service came":    {&datapath.State{}, state(datapath.UDP, a), false},
		"TCP":             {state(datapath.TCP, a), state(datapath.TCP, b), false},
	} {
		if got := backendsGone(c.was.Services, c.is.Services); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
