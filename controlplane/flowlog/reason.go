package flowlog

import (
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/datapath"
)

// dropReasons are the Hubble reasons closest to ours; the extension has our own word.
var dropReasons = map[string]flowpb.DropReason{
	"policy":           flowpb.DropReason_POLICY_DENIED,
	"unmanaged peer":   flowpb.DropReason_POLICY_DENIED,
	"no endpoint":      flowpb.DropReason_DROP_EP_NOT_READY,
	"no ruleset":       flowpb.DropReason_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION,
	"spoofed source":   flowpb.DropReason_INVALID_SOURCE_IP,
	"bad source":       flowpb.DropReason_INVALID_SOURCE_IP,
	"foreign source":   flowpb.DropReason_INVALID_SOURCE_IP,
	"ethertype":        flowpb.DropReason_UNSUPPORTED_L3_PROTOCOL,
	"vlan":             flowpb.DropReason_VLAN_FILTERED,
	"truncated":        flowpb.DropReason_INVALID_PACKET_DROPPED,
	"bad header":       flowpb.DropReason_INVALID_PACKET_DROPPED,
	"ip options":       flowpb.DropReason_INVALID_PACKET_DROPPED,
	"extension header": flowpb.DropReason_INVALID_IPV6_EXTENSION_HEADER,
	"fragment short":   flowpb.DropReason_INVALID_PACKET_DROPPED,
	"fragment unknown": flowpb.DropReason_FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND,
	"tcp flags":        flowpb.DropReason_INVALID_PACKET_DROPPED,
	"tcp stray":        flowpb.DropReason_UNKNOWN_CONNECTION_TRACKING_STATE,
	"icmp type":        flowpb.DropReason_UNKNOWN_ICMPV4_TYPE,
	"icmp unrelated":   flowpb.DropReason_UNKNOWN_CONNECTION_TRACKING_STATE,
	"neighbour":        flowpb.DropReason_INVALID_PACKET_DROPPED,
	"multicast":        flowpb.DropReason_MULTICAST_HANDLED,
	"family":           flowpb.DropReason_UNSUPPORTED_L3_PROTOCOL,
	"tunnel":           flowpb.DropReason_ENCAPSULATION_TRAFFIC_IS_PROHIBITED,
	"flow table full":  flowpb.DropReason_CT_MAP_INSERTION_FAILED,
	"flow share":       flowpb.DropReason_CT_MAP_INSERTION_FAILED,
	"shield":           flowpb.DropReason_POLICY_DENY,
	"quarantine":       flowpb.DropReason_POLICY_DENY,
	"destination":      flowpb.DropReason_UNKNOWN_L3_TARGET_ADDRESS,
	"icmp rate":        flowpb.DropReason_DROP_RATE_LIMITED,
	"tunnel network":   flowpb.DropReason_INVALID_VNI,
	"tunnel node":      flowpb.DropReason_ENCAPSULATION_TRAFFIC_IS_PROHIBITED,
	"tunnel source":    flowpb.DropReason_INVALID_SOURCE_IP,
	"tunnel bypassed":  flowpb.DropReason_INVALID_SOURCE_IP,
}

// kernelReasons are those closest to the kernel's own, by the beginning of its word; the first that
// fits counts. UNKNOWN is none of them: stock clients print it as "Success".
var kernelReasons = []struct {
	word   string
	hubble flowpb.DropReason
}{
	{"NO_SOCKET", flowpb.DropReason_SOCKET_LOOKUP_FAILED},
	{"SOCKET_FILTER", flowpb.DropReason_POLICY_DENY},
	{"SOCKET_", flowpb.DropReason_SOCKET_ASSIGN_FAILED}, // full, or closed
	{"PROTO_MEM", flowpb.DropReason_SOCKET_ASSIGN_FAILED},
	{"TCP_LISTEN_OVERFLOW", flowpb.DropReason_SOCKET_ASSIGN_FAILED},
	{"NETFILTER_DROP", flowpb.DropReason_POLICY_DENY},
	{"XFRM_POLICY", flowpb.DropReason_POLICY_DENY},
	{"BPF_CGROUP_EGRESS", flowpb.DropReason_POLICY_DENY},
	{"SECURITY_HOOK", flowpb.DropReason_POLICY_DENY},
	{"IP_RPFILTER", flowpb.DropReason_INVALID_SOURCE_IP},
	{"IP_INVALID_SOURCE", flowpb.DropReason_INVALID_SOURCE_IP},
	{"IP_LOCAL_SOURCE", flowpb.DropReason_INVALID_SOURCE_IP},
	{"IP_INVALID_DEST", flowpb.DropReason_UNKNOWN_L3_TARGET_ADDRESS},
	{"IP_INADDRERRORS", flowpb.DropReason_UNKNOWN_L3_TARGET_ADDRESS},
	{"IP_OUTNOROUTES", flowpb.DropReason_STALE_OR_UNROUTABLE_IP},
	{"IP_INNOROUTES", flowpb.DropReason_STALE_OR_UNROUTABLE_IP},
	{"NEIGH_", flowpb.DropReason_STALE_OR_UNROUTABLE_IP},
	{"IP_NOPROTO", flowpb.DropReason_UNKNOWN_L4_PROTOCOL},
	{"UNHANDLED_PROTO", flowpb.DropReason_UNSUPPORTED_L3_PROTOCOL},
	{"IPV6DISABLED", flowpb.DropReason_UNSUPPORTED_L3_PROTOCOL},
	{"IPV6_BAD_EXTHDR", flowpb.DropReason_INVALID_IPV6_EXTENSION_HEADER},
	{"QDISC_", flowpb.DropReason_DROP_RATE_LIMITED},
	{"FQ_", flowpb.DropReason_DROP_RATE_LIMITED},
	{"", flowpb.DropReason_INVALID_PACKET_DROPPED},
}

func kernelReason(word string) flowpb.DropReason {
	for _, k := range kernelReasons {
		if strings.HasPrefix(word, k.word) {
			return k.hubble
		}
	}
	return flowpb.DropReason_INVALID_PACKET_DROPPED
}

// dropReason is UNKNOWN for a reason that Hubble has nothing close to.
func dropReason(e *datapath.Event) flowpb.DropReason {
	if e.Reason == datapath.ReasonKernel {
		return kernelReason(e.KernelReason)
	}
	d := dropReasons[e.Reason.String()]
	if d == flowpb.DropReason_UNKNOWN_ICMPV4_TYPE && e.Protocol == protocolICMPv6 {
		return flowpb.DropReason_UNKNOWN_ICMPV6_TYPE
	}
	return d
}
