package packetfuzz

import (
	"net/netip"
	"slices"
)

// permits is the policy on a packet that begins a flow: both says whether its receiver's half
// counts as well as its sender's. A pod is where its interface is; NAT may have changed the
// address.
func (j *judge) permits(from, to place, t tuple, both bool) bool {
	p := port{t.protocol, t.port}
	if t.protocol == icmp4 || t.protocol == icmp6 {
		p.number = 0
	}
	if isPod(from) && from == to {
		return true
	}
	if isPod(from) && !says(egress, from, to, p) {
		return false
	}
	if !both || !isPod(to) || from == host {
		return true
	}
	if !isPod(from) {
		from = placeOf(t.source)
	}
	return says(ingress, from, to, p)
}

// mustPass: a whole packet that begins what policy allows, from who it says it is from.
func (j *judge) mustPass(w *way, r *reading) bool {
	if r.fault != "" || r.refused != "" || r.kind != flowPacket || w.hook == "from_network" {
		return false
	}
	if (r.protocol == icmp4 || r.protocol == icmp6) && !r.isRequest() {
		return false
	}
	from := placeOf(r.source)
	switch {
	case w.hook != "to_pod" || isPod(w.sender):
		if from != w.sender {
			return false
		}
	case w.sender == outside && from != outside:
		return false
	}
	if w.hook == "to_pod" && placeOf(r.dest) != w.at {
		return false
	}
	if w.hook == "to_network" && placeOf(r.dest) == w.sender {
		return false // what is for the pod itself does not leave
	}
	if w.hook == "from_pod" && placeOf(r.dest) == service && slices.Contains(services, port{r.protocol, r.port}) {
		return true
	}
	return j.permits(w.sender, placeOf(r.dest), r.tuple, w.hook != "to_network")
}

func ownAddress(p place, r *reading) netip.Addr {
	if r.source.Is4() {
		return addresses[p][0]
	}
	return addresses[p][1]
}
