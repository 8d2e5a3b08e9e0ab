package flowlog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/datapath"
)

const (
	protocolICMPv4 = 1
	protocolICMPv6 = 58
)

// ip has no addresses for a record of suppressed denials: stock clients name a pod where there is
// an IP.
func ip(r *record) *flowpb.IP {
	e := &r.event
	version := ipVersion(e)
	if r.suppressed > 0 {
		return &flowpb.IP{}
	}
	if version == flowpb.IPVersion_IP_NOT_USED {
		return nil
	}
	return &flowpb.IP{Source: e.Source.Addr().String(), Destination: e.Destination.Addr().String(), IpVersion: version}
}

func ipVersion(e *datapath.Event) flowpb.IPVersion {
	switch a := e.Source.Addr(); {
	case a.Is4():
		return flowpb.IPVersion_IPv4
	case a.Is6():
		return flowpb.IPVersion_IPv6
	}
	return flowpb.IPVersion_IP_NOT_USED
}

func layer4(r *record) *flowpb.Layer4 {
	e := &r.event
	from, to := uint32(e.Source.Port()), uint32(e.Destination.Port())
	kind, code := uint32(e.ICMPType), uint32(e.ICMPCode)
	switch {
	case r.suppressed > 0:
		return nil
	case e.Protocol == datapath.TCP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: from, DestinationPort: to, Flags: tcpFlags(uint8(e.TCPFlags))}}}
	case e.Protocol == datapath.UDP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_UDP{UDP: &flowpb.UDP{SourcePort: from, DestinationPort: to}}}
	case e.Protocol == datapath.SCTP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_SCTP{SCTP: &flowpb.SCTP{SourcePort: from, DestinationPort: to}}}
	case e.Protocol == protocolICMPv4:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv4{ICMPv4: &flowpb.ICMPv4{Type: kind, Code: code}}}
	case e.Protocol == protocolICMPv6:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv6{ICMPv6: &flowpb.ICMPv6{Type: kind, Code: code}}}
	}
	return nil
}

// tcpFlagNames are the bits of the TCP header's flags byte, lowest first.
var tcpFlagNames = [8]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

func tcpFlags(b uint8) *flowpb.TCPFlags {
	has := func(i int) bool { return b>>i&1 == 1 }
	return &flowpb.TCPFlags{FIN: has(0), SYN: has(1), RST: has(2), PSH: has(3), ACK: has(4), URG: has(5), ECE: has(6), CWR: has(7)}
}

// flagTexts are "SYN, ACK" and so on by the flags' byte, in the order people say them.
var flagTexts = func() (texts [256]string) {
	for b := range texts {
		var out []string
		for _, i := range [8]int{1, 4, 0, 2, 3, 5, 6, 7} {
			if b>>i&1 == 1 {
				out = append(out, tcpFlagNames[i])
			}
		}
		texts[b] = strings.Join(out, ", ")
	}
	return texts
}()

func flagText(b uint8) string { return flagTexts[b] }

func summary(r *record) string { return string(appendSummary(nil, r)) }

// appendSummary is layer 4 in the words of the stock client.
func appendSummary(to []byte, r *record) []byte {
	e := &r.event
	switch {
	case r.suppressed > 0 && e.Reason == datapath.ReasonKernel:
		return append(strconv.AppendUint(to, r.suppressed, 10), " more packets dropped by the kernel, not recorded one by one"...)
	case r.suppressed > 0:
		return append(strconv.AppendUint(to, r.suppressed, 10), " more denied packets, not recorded one by one"...)
	}
	to = appendProtocol(to, e)
	if e.KernelReason != "" && plain(e.KernelReason) {
		to = append(append(to, ", kernel: "...), e.KernelReason...)
	}
	return to
}

func appendProtocol(to []byte, e *datapath.Event) []byte {
	switch {
	case e.Protocol == datapath.TCP:
		return append(append(to, "TCP Flags: "...), flagText(uint8(e.TCPFlags))...)
	case e.Protocol == datapath.UDP:
		return append(to, "UDP"...)
	case e.Protocol == datapath.SCTP:
		return append(to, "SCTP"...)
	case e.Protocol == protocolICMPv4:
		return appendICMP(append(to, "ICMPv4 "...), e, 8, 0)
	case e.Protocol == protocolICMPv6:
		return appendICMP(append(to, "ICMPv6 "...), e, 128, 129)
	}
	return strconv.AppendUint(append(to, "protocol-"...), uint64(e.Protocol), 10)
}

func appendICMP(to []byte, e *datapath.Event, request, reply uint8) []byte {
	switch e.ICMPType {
	case request:
		return append(to, "EchoRequest"...)
	case reply:
		return append(to, "EchoReply"...)
	}
	return fmt.Appendf(to, "type %d code %d", e.ICMPType, e.ICMPCode)
}

// endpoint is an end in Hubble's words: numbers as the kernel judged, names and labels
// as they were when the event was read.
func endpoint(r *record, end int) *flowpb.Endpoint {
	party := r.parties[end]
	if !r.hasEnd(end) {
		return nil
	}
	out := &flowpb.Endpoint{ID: r.event.Endpoint[end], Identity: uint32(r.event.Identity[end]), Labels: r.labels(end)}
	if party.IsPod() {
		out.Namespace, out.PodName, out.ClusterName = party.Namespace, party.Name, clusterName
		if w := party.Workload; w.Name != "" {
			out.Workloads = []*flowpb.Workload{{Kind: w.Kind, Name: w.Name}}
		}
	}
	return out
}

// clusterName is what Hubble calls a cluster that was given no name.
const clusterName = "default"

// Label keys that Hubble has for a pod's namespace.
const (
	labelNamespace       = "k8s:io.kubernetes.pod.namespace="
	labelNamespaceLabels = "k8s:io.cilium.k8s.namespace.labels."
)

func podLabels(p *Party) []string {
	out := []string{labelNamespace + p.Namespace}
	for _, l := range p.Labels {
		of, rest, prefixed := strings.Cut(l, ":")
		switch {
		case !prefixed:
			out = append(out, "k8s:"+l)
		case of == "namespace":
			out = append(out, labelNamespaceLabels+rest)
		}
	}
	slices.Sort(out)
	return out
}

// nodeNames is what stands for a node where Hubble has DNS names.
func nodeNames(p *Party) []string {
	if !isNode(p) {
		return nil
	}
	return []string{p.Name}
}

func isNode(p *Party) bool { return p != nil && !p.IsPod() && p.Name != "" }
