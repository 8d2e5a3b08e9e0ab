package packetfuzz

import (
	"github.com/weirnet/weir/tests/testnode"
)

// way is a hook as a frame meets it: at whose interface, and who the sender is, as the
// interface or the mark says. An address never does.
type way struct {
	hook   string
	at     place // whose interface; outside = the uplink
	sender place
}

var ways = []way{
	{"from_pod", podA, podA},
	{"from_pod", podB, podB},
	{"from_pod", podC, podC},
	{"from_pod", podD, podD},
	{"to_pod", podA, outside},
	{"to_pod", podB, outside},
	{"to_pod", podC, outside},
	{"to_pod", podB, podA},
	{"to_pod", podA, podB},
	{"to_pod", podB, host},
	{"to_pod", podA, host},
	{"to_network", outside, podA},
	{"from_network", outside, outside},
}

func (w *way) String() string {
	return w.hook + " at " + w.at.String() + ", sent by " + w.sender.String()
}

func (p place) String() string {
	return [...]string{"nowhere", "pod a", "pod b", "pod c", "pod d", "the node", "outside", "a service", "a stranger"}[p]
}

func (s *scene) ifindex(p place) int {
	if isPod(p) {
		return s.pods[p].Ifindex
	}
	return s.uplink
}

// sample is a frame at a way. segments > 1: segmentation offload made it, for as many.
type sample struct {
	way      *way
	frame    []byte
	segments int
}

// answer is what the hook did.
type answer struct {
	verdict int
	mark    uint16
	frame   []byte // as it left it; good until the next
}

func (a answer) passed() bool { return a.verdict != testnode.Drop }

// run hands the sample to the kernel.
func (s *scene) run(c sample) (answer, error) {
	h := s.hooks[c.way.hook]
	h.Segments = c.segments
	ingress, mark := s.ifindex(c.way.sender), uint16(0)
	switch c.way.hook {
	case "to_pod":
		if c.way.sender == host {
			ingress = 0
		} else if isPod(c.way.sender) {
			mark = uint16(s.pods[c.way.sender].Number) | testnode.MarkEgress
		}
	case "to_network":
		mark = uint16(s.pods[c.way.sender].Number)
	}
	verdict, err := h.Run(c.frame, s.ifindex(c.way.at), ingress, mark)
	return answer{verdict, h.Mark, h.Out[:len(c.frame)]}, err
}
