package format

import (
	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/controlplane/api"
)

// Source is who a flow's source is, without its port.
func Source(f *flowpb.Flow) string {
	return end(f.GetSource(), f.GetIP().GetSource(), "", f.GetSourceNames())
}

// Destination is who its destination is, without its port.
func Destination(f *flowpb.Flow) string {
	return end(f.GetDestination(), f.GetIP().GetDestination(), "", f.GetDestinationNames())
}

// Port is the destination's, "" for a protocol without.
func Port(f *flowpb.Flow) string { _, to := ports(f); return to }

// SourcePort is the source's.
func SourcePort(f *flowpb.Flow) string { from, _ := ports(f); return from }

// ProtocolName is the protocol in a word.
func ProtocolName(f *flowpb.Flow) string { return protocolName(f) }

// Process names a process; "" for none.
func Process(p *api.FlowProcess) string {
	if p == nil {
		return ""
	}
	return processName(p)
}

// Policies are what decided about a flow, each once: "shop/web[0]", "default deny of shop/a",
// "not isolated". Where one denied, it decided alone.
func Policies(x api.FlowExtension) []string {
	var out []string
	for _, s := range sides(x) {
		if s.rule.Verdict == flowpb.Verdict_DROPPED.String() {
			return []string{rule(s.rule)}
		}
		name := allowedBy(s.rule)
		if s.rule.Name != "" {
			name = rule(s.rule)
		}
		if len(out) == 0 || out[0] != name {
			out = append(out, name)
		}
	}
	return out
}
