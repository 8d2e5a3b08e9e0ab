package format

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
)

// source and destination are how an end is shown: "shop/web-1:43512",
// "203.0.113.9:443 (world)", "[fd00::1]:80 (node worker-1)".
func source(f *flowpb.Flow) string {
	from, _ := ports(f)
	return end(f.GetSource(), f.GetIP().GetSource(), from, f.GetSourceNames())
}

func destination(f *flowpb.Flow) string {
	_, to := ports(f)
	return end(f.GetDestination(), f.GetIP().GetDestination(), to, f.GetDestinationNames())
}

// service is the Service that the flow was addressed to, as an addition to its destination.
func service(f *flowpb.Flow) string {
	if name := serviceName(f.GetDestinationService()); name != "" {
		return " (service " + name + ")"
	}
	return ""
}

func serviceName(s *flowpb.Service) string {
	if s.GetName() == "" {
		return ""
	}
	return Safe(s.GetNamespace() + "/" + s.GetName())
}

func end(e *flowpb.Endpoint, address, port string, names []string) string {
	if e.GetPodName() != "" {
		name := Safe(e.GetNamespace() + "/" + e.GetPodName())
		if port != "" {
			name += ":" + port
		}
		return name
	}
	who := stranger(e, names)
	switch {
	case address == "" && who == "":
		return "*"
	case address == "":
		return who
	}
	at := Safe(address)
	if port != "" {
		at = net.JoinHostPort(at, port)
	}
	if who != "" {
		at += " (" + who + ")"
	}
	return at
}

// stranger says what an end that is no pod with a name is.
func stranger(e *flowpb.Endpoint, names []string) string {
	if len(names) > 0 {
		return "node " + Safe(names[0])
	}
	for _, l := range e.GetLabels() {
		if name, ok := strings.CutPrefix(l, "reserved:"); ok {
			return Safe(name)
		}
	}
	if e.GetID() != 0 {
		return fmt.Sprintf("endpoint %d", e.GetID())
	}
	return ""
}

// ports are "" for protocols without.
func ports(f *flowpb.Flow) (from, to string) {
	var a, b uint32
	switch p := f.GetL4().GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		a, b = p.TCP.GetSourcePort(), p.TCP.GetDestinationPort()
	case *flowpb.Layer4_UDP:
		a, b = p.UDP.GetSourcePort(), p.UDP.GetDestinationPort()
	case *flowpb.Layer4_SCTP:
		a, b = p.SCTP.GetSourcePort(), p.SCTP.GetDestinationPort()
	default:
		return "", ""
	}
	return strconv.FormatUint(uint64(a), 10), strconv.FormatUint(uint64(b), 10)
}

// protocol is layer 4 in two words: "TCP SYN", "UDP", "ICMPv4 EchoRequest".
func protocol(f *flowpb.Flow) string {
	//lint:ignore SA1019 nothing else says it for protocols that Hubble does not know
	summary, _, _ := strings.Cut(f.GetSummary(), ", kernel: ") // is said as the reason
	if flags, ok := strings.CutPrefix(summary, "TCP Flags: "); ok {
		return strings.TrimSpace("TCP " + Safe(strings.ReplaceAll(flags, ", ", ",")))
	}
	return Safe(summary)
}

func protocolName(f *flowpb.Flow) string {
	name, _, _ := strings.Cut(protocol(f), " ")
	return name
}
