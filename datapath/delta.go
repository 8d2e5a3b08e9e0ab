package datapath

import "net/netip"

// Delta is where a State may differ from the one that was committed before it. What it does
// not name is the same; what it names need not differ. Endpoints are compared whole: a node
// has few.
type Delta struct {
	Peers     []netip.Prefix
	Facts     []Fact
	Masks     map[MaskKey]Mask // what State.Masks has there now; the zero Mask: nothing
	Rulesets  []uint32
	Frontends []Frontend
	Services  []Frontend
	Origins   bool
	Ways      bool
}
