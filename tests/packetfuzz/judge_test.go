package packetfuzz

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/tests/testnode"
)

// judge compares what the programs did with what the reference says a frame is. What Weir
// took a frame for is read where it counts: the entry of the flow table that the frame
// moved, the mark it left with, and whether it was redirected.
type judge struct {
	*scene
	reader    reader
	fragments map[fragmentKey]tuple        // first fragments that passed, with their ports
	seen      map[bpf.WeirFlowKey]seenFlow // entries as last read
	misread   func(frame []byte) []byte    // what the reference is shown instead; nil = the frame
	untracked uint64                       // passes without an entry, as the kernel counts them
	pastStack int                          // redirects to and from another node
}

type seenFlow struct {
	created        uint64
	packets, bytes [2]uint64
}

// class is how a sample ended.
type class int

const (
	dropped   class = iota
	flowed          // by a flow's entry
	unentered       // allowed, without one
	related         // an ICMP error
	plain           // ARP and NDP, and errors of the node
	unjudged        // handed on, to be judged where it re-emerges
	classes
)

func (c class) String() string {
	return [...]string{"dropped", "flow", "untracked", "related", "plain", "unjudged"}[c]
}

// disagreement is a frame that Weir and the reference take for different things.
type disagreement struct {
	sample
	says    string // what is wrong
	alike   string // the part of it that shrinking keeps
	answer  answer
	reading *reading
	took    string
}

func (d *disagreement) Error() string { return d.String() }

func newJudge(s *scene) *judge {
	return &judge{scene: s, fragments: map[fragmentKey]tuple{}, seen: map[bpf.WeirFlowKey]seenFlow{}}
}

// try runs a sample and judges it.
func (j *judge) try(c sample) (class, *reading, *disagreement, error) {
	a, err := j.run(c)
	if err != nil {
		return dropped, nil, nil, err
	}
	r := j.read(c)
	j.borrow(c.way, r)
	cl, wrong, err := j.compare(c, a, r)
	if err != nil {
		return cl, r, nil, err
	}
	j.noteFragment(c.way, r, cl)
	if wrong == "" && !a.passed() && j.mustPass(c.way, r) {
		wrong = "dropped: a whole packet that policy allows"
	}
	if wrong == "" {
		return cl, r, nil, nil
	}
	return cl, r, &disagreement{sample: c, says: wrong, alike: alikeness(wrong), answer: a, reading: r, took: j.took(c, r)}, nil
}

// read asks the reference.
func (j *judge) read(c sample) *reading {
	frame := c.frame
	if j.misread != nil {
		frame = j.misread(slices.Clone(frame))
	}
	return j.reader.read(frame, c.segments)
}

// compare says what became of the sample, and what is wrong with that.
func (j *judge) compare(c sample, a answer, r *reading) (class, string, error) {
	if !a.passed() {
		return dropped, "", nil
	}
	if wrong := j.changed(c, a); wrong != "" {
		return dropped, wrong, nil
	}
	if c.way.hook == "from_network" && a.mark == 0 && a.verdict == testnode.Next {
		if own := placeOf(r.source); r.fault == "" && r.refused == "" && r.kind < arpMessage && r.kind != nothing && (isPod(own) || own == host) {
			return unjudged, "passed: from outside with a source of this node", nil
		}
		return unjudged, "", nil
	}
	if r.fault != "" {
		return dropped, "passed: not a whole packet: " + r.fault, nil
	}
	if r.refused != "" {
		return dropped, "passed: " + r.refused, nil
	}
	if r.body != "" && c.way.sender != host {
		return dropped, "passed: " + r.body, nil
	}
	switch r.kind {
	case arpMessage, neighbour:
		return plain, j.wrongNeighbour(c.way, a, r), nil
	case icmpError:
		if c.way.sender == host {
			return plain, "", nil
		}
		wrong, err := j.wrongError(c.way, r)
		return related, wrong, err
	case flowPacket, laterFragment:
		return j.compareFlow(c, a, r)
	}
	return dropped, "passed: " + r.kind.String(), nil
}

// changed holds a frame's contents: only a redirect changes any, and only its MACs.
func (j *judge) changed(c sample, a answer) string {
	from := 0
	if a.verdict == testnode.Redirect {
		to := placeOf(j.read(c).dest)
		if c.way.hook == "from_pod" && to == outside { // to the next hop
			to = nowhere
		} else {
			from = 12
		}
		want := append([]byte{2, 0, 0, 0, 0, byte(to)}, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee)
		if from != 0 && (!isPod(to) || !bytes.Equal(a.frame[:12], want)) {
			return fmt.Sprintf("redirected to MACs %x", a.frame[:12])
		}
		if c.way.hook != "from_pod" && c.way.hook != "from_network" {
			return "redirected by " + c.way.hook
		}
		if c.way.hook == "from_network" || from == 0 {
			j.pastStack++
		}
	}
	if !bytes.Equal(a.frame[from:], c.frame[from:]) {
		return "the frame's contents changed"
	}
	return ""
}

// wrongNeighbour: a pod asks for its gateway and answers for itself; the node may say anything.
func (j *judge) wrongNeighbour(w *way, a answer, r *reading) string {
	if w.sender == host && w.hook == "to_pod" {
		return ""
	}
	own, gateway := addresses[w.sender][0], gateways[0]
	answers := r.code[0] == 2
	if r.kind == neighbour {
		own, gateway, answers = addresses[w.sender][1], gateways[1], r.code[0] == 136
	}
	switch {
	case w.hook != "from_pod" || a.verdict != testnode.Next || a.mark != 0:
		return fmt.Sprintf("passed: %s by %s with mark %#x", r.kind, w.hook, a.mark)
	case r.kind == arpMessage && (r.source != own || r.code[0] != 1 && r.code[0] != 2):
		return fmt.Sprintf("passed: ARP operation %d of %s", r.code[0], r.source)
	case answers && r.kind == neighbour && r.target != own, !answers && r.target != gateway:
		return fmt.Sprintf("passed: %s about %s", r.kind, r.target)
	}
	return ""
}

// wrongError: an error answers a packet of a live flow: it goes to who sent that, and from a
// pod it comes from whom that was sent to.
func (j *judge) wrongError(w *way, r *reading) (string, error) {
	q := r.inner
	var f bpf.WeirFlow
	key, side := keyOf(q.tuple)
	ok, err := j.tables.Flow(&key, &f)
	switch {
	case err != nil:
		return "", err
	case !ok:
		return "passed: ICMP error about no flow", nil
	case q.source != r.dest || w.hook == "from_pod" && q.dest != r.source:
		return "passed: ICMP error to or from somebody else", nil
	case w.hook == "from_pod" && int(f.Ifindex[side^1]) != j.ifindex(w.sender):
		return "passed: ICMP error about another's flow", nil
	case w.hook == "to_pod" && int(f.Ifindex[side]) != j.ifindex(w.at):
		return "passed: ICMP error about another's packet", nil
	case w.hook == "from_network" && placeOf(r.dest) != j.place(f.Ifindex[side]):
		return "passed: ICMP error about another's packet", nil
	case w.hook == "to_network":
		return "passed: ICMP error by " + w.hook, nil
	}
	return "", nil
}

// compareFlow: the packet has to have moved the entry of its tuple, and that to be one that
// policy lets begin; or to be on its own a packet that policy allows.
func (j *judge) compareFlow(c sample, a answer, r *reading) (class, string, error) {
	if r.kind == laterFragment && !r.tuple.source.IsValid() {
		return flowed, "passed: a later fragment of no first that passed", nil
	}
	if c.way.hook == "from_pod" && a.verdict == testnode.Next && a.mark&(testnode.MarkEgress|testnode.MarkIngress) == 0 {
		if placeOf(r.dest) != service || !slices.Contains(services, port{r.protocol, r.port}) || r.source != ownAddress(c.way.sender, r) {
			return unjudged, "passed: undecided, but it is for no service", nil
		}
		return unjudged, "", nil
	}
	key, side := keyOf(r.tuple)
	var f bpf.WeirFlow
	ok, err := j.tables.Flow(&key, &f)
	if err != nil {
		return flowed, "", err
	}
	if ok {
		moved, wrong := j.moved(key, &f, side, c.segments, r)
		if wrong != "" {
			return flowed, wrong, nil
		}
		if moved {
			return flowed, j.forbidden(c.way, a, &f, r, side), nil
		}
	}
	return j.compareUntracked(c, r)
}

func keyOf(t tuple) (bpf.WeirFlowKey, int) {
	source, dest := netip.AddrPortFrom(t.source, t.sourcePort), netip.AddrPortFrom(t.dest, t.port)
	return testnode.FlowKey(source, dest, t.protocol)
}

// moved reports whether the entry counted this packet, all of it and nothing else, since it
// was last read.
func (j *judge) moved(key bpf.WeirFlowKey, f *bpf.WeirFlow, side, segments int, r *reading) (bool, string) {
	was := j.see(key, f)
	is := j.seen[key]
	if was.created != is.created {
		was = seenFlow{}
	}
	if is.packets == was.packets {
		return false, ""
	}
	packets, bytes := uint64(max(segments, 1)), uint64(r.length)
	if segments > 1 && r.kind == flowPacket && (r.protocol == tcp || r.protocol == udp) {
		bytes += uint64((segments - 1) * r.headers)
	}
	if is.packets[side]-was.packets[side] != packets || is.packets[side^1] != was.packets[side^1] {
		return true, fmt.Sprintf("passed: its flow's packets went from %v to %v, side %d should have %d more", was.packets, is.packets, side, packets)
	}
	if is.bytes[side]-was.bytes[side] != bytes || is.bytes[side^1] != was.bytes[side^1] {
		return true, fmt.Sprintf("passed: its flow's bytes went from %v to %v, side %d should have %d more", was.bytes, is.bytes, side, bytes)
	}
	return true, ""
}

// see notes an entry as it is, and returns how it was.
func (j *judge) see(key bpf.WeirFlowKey, f *bpf.WeirFlow) (was seenFlow) {
	was = j.seen[key]
	is := seenFlow{created: f.Created}
	for i := range f.Side {
		is.packets[i], is.bytes[i] = f.Side[i].Packets, f.Side[i].Bytes
	}
	j.seen[key] = is
	return was
}

// forbidden holds the flow that a packet moved against the policy: who began it, as the entry
// has it, must have been allowed to, by each half that the packet left as judged.
func (j *judge) forbidden(w *way, a answer, f *bpf.WeirFlow, r *reading, side int) string {
	begun, from, to := r.tuple, j.place(f.Ifindex[side]), j.place(f.Ifindex[side^1])
	if int(f.State&uint32(bpf.WeirFlowStateFLOW_INITIATOR)) != side {
		begun, from, to = begun.reversed(), to, from
	}
	if !isPod(to) {
		to = placeOf(begun.dest)
	}
	both := a.verdict == testnode.Redirect || w.hook == "to_pod" || a.mark&testnode.MarkIngress != 0
	if !j.permits(from, to, begun, both) {
		return fmt.Sprintf("passed: %s of a flow that began as %s, from %s to %s", r.tuple, begun, from, to)
	}
	if int(f.Ifindex[side]) != j.iface(w.sender) {
		return fmt.Sprintf("passed: sent by %s in the flow of %s", w.sender, j.place(f.Ifindex[side]))
	}
	return ""
}

// compareUntracked: what passes without an entry is allowed by itself, and counted.
func (j *judge) compareUntracked(c sample, r *reading) (class, string, error) {
	n, err := j.counter(bpf.WeirCounterCOUNT_UNTRACKED)
	if err != nil {
		return unentered, "", err
	}
	was := j.untracked
	if j.untracked = n; n != was+1 {
		return unentered, "passed: no flow of this packet moved", nil
	}
	both := c.way.hook != "to_network"
	if j.permits(c.way.sender, placeOf(r.dest), r.tuple, both) {
		return unentered, "", nil
	}
	from, to := placeOf(r.dest), placeOf(r.source)
	if isPod(c.way.sender) {
		to = c.way.sender
	}
	if r.protocol == tcp && r.flags == (flags{ack: true}) && j.permits(from, to, r.reversed(), both) {
		return unentered, "", nil // it may be the answer of a flow that was not seen to begin
	}
	return unentered, "passed: without a flow, and policy does not allow it", nil
}

func (j *judge) counter(c bpf.WeirCounter) (sum uint64, err error) {
	var perCPU []uint64
	err = j.counters.Lookup(uint32(c), &perCPU)
	for _, n := range perCPU {
		sum += n
	}
	return sum, err
}

// iface is how flow entries name where a sender's packets come from.
func (j *judge) iface(p place) int {
	switch {
	case isPod(p):
		return j.ifindex(p)
	case p == host:
		return int(bpf.WeirIfaceClassIFACE_HOST)
	}
	return int(bpf.WeirIfaceClassIFACE_OUTSIDE)
}

func (j *judge) place(iface uint32) place {
	for p := podA; p <= outside; p++ {
		if j.iface(p) == int(iface) {
			return p
		}
	}
	return nowhere
}
