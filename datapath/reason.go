package datapath

import "fmt"

// Reason is a drop reason's number (bpf/contract.h, enum drop_reason).
type Reason uint8

// Reasons that the control plane tells apart.
const (
	ReasonNone          Reason = 0
	ReasonPolicy        Reason = 1 // a ruleset said no
	ReasonUnmanagedPeer Reason = 2 // a ruleset said no to an address the cluster has not shown yet
	ReasonNoEndpoint    Reason = 3
	ReasonNoRuleset     Reason = 4
	ReasonShield        Reason = 26 // its source is in the shield's list
	ReasonKernel        Reason = 34 // the kernel's own, Event.KernelReason says which
)

// reasonNames are the words of the enum's names; a test in datapath/maps compares them.
var reasonNames = [...]string{
	"none", "policy", "unmanaged peer", "no endpoint", "no ruleset", "spoofed source", "bad source",
	"foreign source", "ethertype", "vlan", "truncated", "bad header", "ip options", "extension header",
	"fragment short", "fragment unknown", "tcp flags", "tcp stray", "icmp type", "icmp unrelated",
	"neighbour", "multicast", "family", "tunnel", "flow table full", "flow share", "shield", "quarantine",
	"destination", "icmp rate", "tunnel network", "tunnel node", "tunnel source", "tunnel bypassed", "kernel",
}

// Reasons is how many there are.
const Reasons = Reason(len(reasonNames))

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}
