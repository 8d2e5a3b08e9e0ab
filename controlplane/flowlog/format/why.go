package format

import (
	"fmt"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/controlplane/api"
)

// why says in words which rule decided: "allowed: egress not isolated, ingress by
// shop/web[0]", "denied by default deny of shop/db (ingress)", "dropped: spoofed source".
func why(f *flowpb.Flow, x api.FlowExtension) string {
	if f.GetVerdict() != flowpb.Verdict_DROPPED {
		return allowed(x)
	}
	for _, side := range sides(x) {
		if side.rule.Verdict == flowpb.Verdict_DROPPED.String() {
			return denied(side, x.Reason)
		}
	}
	if x.Reason == "" {
		return "dropped: " + Safe(strings.ToLower(strings.ReplaceAll(f.GetDropReasonDesc().String(), "_", " ")))
	}
	if x.KernelReason != "" {
		return "dropped by the kernel: " + Safe(x.KernelReason)
	}
	text := "dropped: " + Safe(x.Reason)
	if strings.HasSuffix(x.Reason, "source") {
		text += " " + Safe(f.GetIP().GetSource())
	}
	return text
}

// side is a direction that this node judged.
type side struct {
	direction string
	rule      *api.FlowRule
}

func sides(x api.FlowExtension) []side {
	var out []side
	for _, s := range []side{{"egress", x.Egress}, {"ingress", x.Ingress}} {
		if s.rule != nil {
			out = append(out, s)
		}
	}
	return out
}

func allowed(x api.FlowExtension) string {
	judged := sides(x)
	if len(judged) == 0 {
		return "not judged here"
	}
	var by []string
	isolated := false
	for _, s := range judged {
		by = append(by, s.direction+" "+allowedBy(s.rule))
		isolated = isolated || s.rule.Kind != "not-isolated"
	}
	if !isolated {
		return "not isolated"
	}
	return "allowed: " + strings.Join(by, ", ")
}

func allowedBy(r *api.FlowRule) string {
	switch r.Kind {
	case "not-isolated":
		return "not isolated"
	case "node":
		return "from its node"
	case "node-egress":
		return "to its node"
	case "self":
		return "to itself"
	}
	return "by " + rule(r)
}

func denied(s side, reason string) string {
	text := "denied by " + ruleShort(s.rule) + " (" + s.direction + ")"
	if reason != "" && reason != "policy" {
		text += ": " + Safe(reason)
	}
	return text
}

// More policies than most are named by their first few in a line: dozens would bury what else it says.
const (
	most  = 6
	first = 4
)

// ruleShort is rule, short enough for a line.
func ruleShort(r *api.FlowRule) string {
	more := len(r.IsolatedBy) - first
	if len(r.IsolatedBy) <= most {
		return rule(r)
	}
	short := *r
	short.IsolatedBy = r.IsolatedBy[:first]
	text := rule(&short)
	names := refs(short.IsolatedBy)
	return strings.Replace(text, names, fmt.Sprintf("%s and %d more", names, more), 1)
}

// rule names a rule: "shop/web[0]", "default deny of shop/a, shop/b".
func rule(r *api.FlowRule) string {
	switch {
	case r.Name != "" && r.Index != nil:
		return fmt.Sprintf("%s[%d]", Safe(r.Namespace+"/"+r.Name), *r.Index)
	case r.Name != "":
		return Safe(r.Namespace + "/" + r.Name)
	case r.Kind == "default-deny":
		return "default deny of " + refs(r.IsolatedBy)
	case r.Kind == "refused":
		return "default deny of " + refs(r.IsolatedBy) + ", not enforced as written"
	}
	return fmt.Sprintf("rule %d (%s)", r.ID, Safe(r.Kind))
}

func refs(by []api.Ref) string {
	names := make([]string, len(by))
	for i, r := range by {
		names[i] = Safe(r.Namespace + "/" + r.Name)
	}
	return strings.Join(names, ", ")
}
