package maps

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// The vocabulary's numbers are the contract's.
func TestConstantsAreTheContracts(t *testing.T) {
	for what, pair := range map[string][2]uint64{
		"RuleNone":        {uint64(datapath.RuleNone), uint64(bpf.WeirRuleNumberRULE_NONE)},
		"RuleNode":        {uint64(datapath.RuleNode), uint64(bpf.WeirRuleNumberRULE_NODE)},
		"RuleSelf":        {uint64(datapath.RuleSelf), uint64(bpf.WeirRuleNumberRULE_SELF)},
		"RuleNotIsolated": {uint64(datapath.RuleNotIsolated), uint64(bpf.WeirRuleNumberRULE_NOT_ISOLATED)},
		"RuleNodeEgress":  {uint64(datapath.RuleNodeEgress), uint64(bpf.WeirRuleNumberRULE_NODE_EGRESS)},
		"RuleFirst":       {uint64(datapath.RuleFirst), uint64(bpf.WeirRuleNumberRULE_FIRST)},
		"Unknown":         {uint64(identity.Unknown), uint64(bpf.WeirIdentityNumberIDENTITY_UNKNOWN)},
		"Host":            {uint64(identity.Host), uint64(bpf.WeirIdentityNumberIDENTITY_HOST)},
		"RemoteNode":      {uint64(identity.RemoteNode), uint64(bpf.WeirIdentityNumberIDENTITY_REMOTE_NODE)},
		"World":           {uint64(identity.World), uint64(bpf.WeirIdentityNumberIDENTITY_WORLD)},
		"Unmanaged":       {uint64(identity.Unmanaged), uint64(bpf.WeirIdentityNumberIDENTITY_UNMANAGED)},
		"First":           {uint64(identity.First), uint64(bpf.WeirIdentityNumberIDENTITY_FIRST)},
		"Block":           {uint64(identity.Block), uint64(bpf.WeirIdentityNumberIDENTITY_BLOCK)},
		"EventNew":        {uint64(datapath.EventNew), uint64(bpf.WeirEventKindEVENT_NEW)},
		"EventEnded":      {uint64(datapath.EventEnded), uint64(bpf.WeirEventKindEVENT_ENDED)},
		"EventRevoked":    {uint64(datapath.EventRevoked), uint64(bpf.WeirEventKindEVENT_REVOKED)},
		"EventDenied":     {uint64(datapath.EventDenied), uint64(bpf.WeirEventKindEVENT_DENIED)},
		"JudgedEgress":    {uint64(datapath.JudgedEgress), uint64(bpf.WeirStampBitsSTAMP_EGRESS)},
		"JudgedIngress":   {uint64(datapath.JudgedIngress), uint64(bpf.WeirStampBitsSTAMP_INGRESS)},
		"Reasons":         {uint64(datapath.Reasons), uint64(bpf.WeirDropReasonDROP_REASON_MAX)},
		"NoRuleset":       {uint64(datapath.ReasonNoRuleset), uint64(bpf.WeirDropReasonDROP_NO_RULESET)},
		"WideMax":         {datapath.WideMax, uint64(bpf.WeirLimitsWIDE_MAX)},
		"ScanMax":         {datapath.ScanMax, uint64(bpf.WeirLimitsSCAN_MAX)},
		"a mask":          {uint64(unsafe.Sizeof(datapath.Mask{})), uint64(unsafe.Sizeof(bpf.WeirWideMask{}))},
		"TunnelNetwork":   {datapath.TunnelNetwork, uint64(bpf.WeirLimitsTUNNEL_NETWORK)},
		"endpoint":        {uint64(endpointSize), uint64(unsafe.Sizeof(bpf.WeirEndpoint{})) / 8},
		"peer endpoint":   {peerEndpoint, uint64(unsafe.Offsetof(bpf.WeirPeerEntry{}.Endpoint)) / 8},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %d, the contract says %d", what, pair[0], pair[1])
		}
	}
}

// The programs' own names and knobs, from their BTF.
func TestNamesAreTheContracts(t *testing.T) {
	spec, err := bpf.LoadWeir()
	must(t, err)
	for name, check := range map[string]func(word string, value uint64) string{
		"drop_reason": func(word string, v uint64) string { return datapath.Reason(v).String() },
		"direction":   func(word string, v uint64) string { return datapath.Direction(v).String() },
	} {
		var enum *btf.Enum
		must(t, spec.Types.TypeByName(name, &enum))
		if len(enum.Values) < 3 {
			t.Errorf("enum %s has %d values", name, len(enum.Values))
		}
		for _, v := range enum.Values {
			_, words, _ := strings.Cut(v.Name, "_")
			words = strings.ToLower(strings.ReplaceAll(words, "_", " "))
			if got := check(words, v.Value); got != words && words != "reason max" {
				t.Errorf("%s %d is %q, the contract says %q", name, v.Value, got, words)
			}
		}
	}
	var share uint32
	must(t, spec.Variables[bpf.WeirVarCfgFlowShare].Get(&share))
	if share != defaultFlowShare {
		t.Errorf("default flow share is %d, the programs' %d", defaultFlowShare, share)
	}
}
