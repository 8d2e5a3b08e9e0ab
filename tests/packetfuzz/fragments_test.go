package packetfuzz

import "net/netip"

// Later fragments have no ports: the judge remembers those of first fragments that passed.

type fragmentKey struct {
	sender       place
	protocol     uint8
	source, dest netip.Addr
	id           uint32
}

// borrow gives a later fragment the ports of its first, as far as that passed.
func (j *judge) borrow(w *way, r *reading) {
	if r.kind == laterFragment {
		r.tuple = j.fragments[keyOfFragment(w, r)]
	}
}

// noteFragment remembers a first fragment that passed in its flow, and forgets one that did
// not. From the network what is not in a flow is not judged yet, and changes nothing.
func (j *judge) noteFragment(w *way, r *reading, cl class) {
	switch {
	case !r.first || r.kind != flowPacket:
	case cl == flowed:
		j.fragments[keyOfFragment(w, r)] = r.tuple
	case r.fault == "" && r.refused == "" && w.hook != "from_network":
		delete(j.fragments, keyOfFragment(w, r))
	}
}

func keyOfFragment(w *way, r *reading) fragmentKey {
	return fragmentKey{w.sender, r.protocol, r.tuple.source, r.tuple.dest, r.id}
}
