package format

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
)

// Dict is a message as a block of "KEY: value" lines, without the last one's end.
func Dict(m *observerpb.GetFlowsResponse, s Style) string {
	var lines []string
	add := func(key, value string) {
		if value != "" {
			lines = append(lines, fmt.Sprintf("%11s: %s", key, value))
		}
	}
	add("TIME", s.time(m.GetTime().AsTime(), time.RFC3339Nano))
	add("NODE", Safe(m.GetNodeName()))
	if lost := m.GetLostEvents(); lost != nil {
		add("LOST", lostText(lost))
		return strings.Join(lines, "\n")
	}
	f := m.GetFlow()
	if f == nil {
		add("RECORD", "a message of another kind")
		return strings.Join(lines, "\n")
	}
	x := Extension(f)
	add("UUID", Safe(f.GetUuid()))
	add("VERDICT", s.paint(verdictColour(f), f.GetVerdict().String())+reasonText(x))
	add("RECORD", record(x))
	add("SOURCE", source(f)+detail(f.GetSource(), f.GetIP().GetSource()))
	add("LABELS", labels(f.GetSource()))
	add("PROCESS", processText(x.Process, s))
	add("DESTINATION", destination(f)+detail(f.GetDestination(), f.GetIP().GetDestination()))
	add("LABELS", labels(f.GetDestination()))
	add("SERVICE", serviceName(f.GetDestinationService()))
	add("LISTENER", processText(x.Listener, s))
	add("PROTOCOL", protocol(f))
	add("EGRESS", sideText(x.Egress))
	add("INGRESS", sideText(x.Ingress))
	if x.Kind != api.FlowDenied {
		add("COUNTED", counts(x))
		add("TCP", strings.TrimPrefix(connection(x), ", "))
	}
	add("PATH", Safe(x.Path))
	add("EPOCH", fmt.Sprint(x.Epoch))
	add("EXPLAIN", explain(f, x))
	return strings.Join(lines, "\n")
}

func verdictColour(f *flowpb.Flow) string {
	if f.GetVerdict() == flowpb.Verdict_FORWARDED {
		return green
	}
	return red
}

func reasonText(x api.FlowExtension) string {
	if x.Reason == "" {
		return ""
	}
	if x.KernelReason != "" {
		return " (" + Safe(x.Reason) + ": " + Safe(x.KernelReason) + ")"
	}
	return " (" + Safe(x.Reason) + ")"
}

func record(x api.FlowExtension) string {
	text := Safe(x.Kind)
	switch {
	case x.Suppressed > 0:
		text += ", " + suppressedText(x)
	case x.Kind == api.FlowEnded, x.Kind == api.FlowRevoked:
		text += ending(x) + " after " + lasted(x.Duration)
	case x.Kind == api.FlowUpdate:
		text += " after " + lasted(x.Duration)
	}
	if x.PickedUp {
		text += ", already going on when first seen"
	}
	return text
}

// detail is what a pod's name leaves out.
func detail(e *flowpb.Endpoint, address string) string {
	if e == nil {
		return ""
	}
	text := fmt.Sprintf("  identity %d", e.GetIdentity())
	if e.GetPodName() != "" && address != "" {
		text = "  " + Safe(address) + text
	}
	if e.GetID() != 0 {
		text += fmt.Sprintf("  endpoint %d", e.GetID())
	}
	return text
}

func labels(e *flowpb.Endpoint) string {
	return Safe(strings.Join(e.GetLabels(), " "))
}

func sideText(r *api.FlowRule) string {
	switch {
	case r == nil:
		return "not judged here"
	case r.Verdict == flowpb.Verdict_DROPPED.String():
		return "denied by " + rule(r)
	case r.Kind == "NetworkPolicy":
		return "allowed " + allowedBy(r)
	}
	return "allowed: " + allowedBy(r)
}

// explain is the command that says which rule nearly allowed what policy denied.
func explain(f *flowpb.Flow, x api.FlowExtension) string {
	if x.Reason != "policy" || x.Suppressed > 0 {
		return ""
	}
	from, to := party(f.GetSource(), f.GetIP().GetSource()), party(f.GetDestination(), f.GetIP().GetDestination())
	port := map[string]string{"ICMPv4": "icmp", "ICMPv6": "icmpv6"}[protocolName(f)]
	if port == "" && Port(f) != "" {
		port = Port(f) + "/" + strings.ToLower(protocolName(f))
	}
	if from == "" || to == "" || port == "" {
		return ""
	}
	return fmt.Sprintf("weir policy explain --from %s --to %s --port %s", from, to, port)
}

var plain = regexp.MustCompile(`^[A-Za-z0-9:./-]+$`)

// party is an end as commands take it, "" where it has no name that can be typed.
func party(e *flowpb.Endpoint, address string) string {
	who := address
	if e.GetPodName() != "" {
		who = e.GetNamespace() + "/" + e.GetPodName()
	}
	if !plain.MatchString(who) {
		return ""
	}
	return who
}
