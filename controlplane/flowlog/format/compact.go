package format

import (
	"fmt"
	"strings"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
)

// Compact is a message in one line, without its end:
//
//	Nov 24 19:20:01.123 DROPPED   shop/thief:40001 curl[812] -> shop/db:6379 redis-server[77] TCP SYN: denied by default deny of shop/db (ingress)
func Compact(m *observerpb.GetFlowsResponse, s Style) string {
	at := s.Faint(s.time(m.GetTime().AsTime(), time.StampMilli))
	if lost := m.GetLostEvents(); lost != nil {
		return at + " " + s.Warn("LOST     ") + " " + lostText(lost)
	}
	f := m.GetFlow()
	if f == nil {
		return at + " (a message of another kind)"
	}
	x := Extension(f)
	line := fmt.Sprintf("%s %s %s%s -> %s%s%s", at, verdict(f, s), source(f), processShort(x.Process), destination(f), service(f), processShort(x.Listener))
	if x.Suppressed > 0 {
		return line + ": " + suppressedText(x) + ": " + why(f, x)
	}
	if x.Kind == api.FlowEnded || x.Kind == api.FlowRevoked || x.Kind == api.FlowUpdate {
		return line + " " + protocolName(f) + ": " + story(f, x) // the flags of many packets say little
	}
	return line + " " + protocol(f) + ": " + story(f, x)
}

func verdict(f *flowpb.Flow, s Style) string {
	return s.paint(verdictColour(f), fmt.Sprintf("%-9s", f.GetVerdict()))
}

// story is what happened to the flow, and why.
func story(f *flowpb.Flow, x api.FlowExtension) string {
	switch x.Kind {
	case api.FlowEnded:
		return fmt.Sprintf("ended%s after %s, %s%s; %s", ending(x), lasted(x.Duration), counts(x), connection(x), why(f, x))
	case api.FlowUpdate:
		return fmt.Sprintf("goes on after %s, %s; %s", lasted(x.Duration), counts(x), why(f, x))
	case api.FlowRevoked:
		return fmt.Sprintf("revoked after %s, %s; %s", lasted(x.Duration), counts(x), why(f, x))
	}
	if x.PickedUp {
		return "already going on; " + why(f, x)
	}
	return why(f, x)
}

func ending(x api.FlowExtension) string {
	switch {
	case x.End == "" || x.Kind == api.FlowRevoked:
		return ""
	case x.End == "fin" || x.End == "rst":
		return " by " + strings.ToUpper(x.End)
	case x.End == "revoked":
		return " revoked"
	}
	return " by " + Safe(x.End)
}

func counts(x api.FlowExtension) string {
	if x.Packets == nil || x.Bytes == nil {
		return "not counted"
	}
	return fmt.Sprintf("sent %s in %s, received %s in %s", Bytes(x.Bytes.Sent), packets(x.Packets.Sent),
		Bytes(x.Bytes.Received), packets(x.Packets.Received))
}

func packets(n uint64) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}

func suppressedText(x api.FlowExtension) string {
	return packets(x.Suppressed) + " more, not recorded one by one"
}

var losses = map[flowpb.LostEventSource]string{
	flowpb.LostEventSource_HUBBLE_RING_BUFFER:     "they came faster than this reader took them",
	flowpb.LostEventSource_PERF_EVENT_RING_BUFFER: "they came faster than the kernel's ring was emptied",
	flowpb.LostEventSource_OBSERVER_EVENTS_QUEUE:  "read by an agent that kept them nowhere: it was killed, or kept none, or its past is elsewhere",
}

func lostText(l *flowpb.LostEvent) string {
	if why := losses[l.GetSource()]; why != "" {
		return fmt.Sprintf("%d records: %s", l.GetNumEventsLost(), why)
	}
	return fmt.Sprintf("%d records (%s)", l.GetNumEventsLost(), Safe(l.GetSource().String()))
}

// Bytes is a size in the largest unit that keeps it above 1.
func Bytes(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	i := 0
	for v >= 999.95 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// Duration is a number of seconds with three digits or so.
func Duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Microsecond * 10).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// lasted is how long a flow was, as exactly as that is known: when its newest packet came is, to 100 ms.
func lasted(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond)
	switch {
	case seconds < 0.1:
		return "less than 100ms"
	case d < time.Minute:
		return d.String()
	}
	return d.Round(time.Second).String()
}
