package flowlog

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/datapath"
)

// Ends of a flow.
const (
	source      = 0
	destination = 1
)

// A filterField is a field of Hubble's FlowFilter. Its test is nil if f does not set it;
// an error that is errNever if no record can have what f asks for.
type filterField struct {
	name string
	test func(l *Log, f *flowpb.FlowFilter) (test, error)
}

// filterFields are all there are; a test holds them against the API.
var filterFields = []filterField{
	listed("uuid", (*flowpb.FlowFilter).GetUuid, func(l *Log, want []string) (test, error) {
		return func(r *record) bool { return slices.Contains(want, r.uuid(l.opts.Node)) }, nil
	}),
	listed("event_type", (*flowpb.FlowFilter).GetEventType, eventTypes),
	listed("verdict", (*flowpb.FlowFilter).GetVerdict, verdicts),
	{"drop_reason_desc", func(l *Log, f *flowpb.FlowFilter) (test, error) {
		t, err := listed("", (*flowpb.FlowFilter).GetDropReasonDesc, hubbleReasons).test(l, f)
		if v := f.GetVerdict(); err == nil && t != nil && len(v) > 0 && !slices.Contains(v, flowpb.Verdict_DROPPED) {
			return nil, never("verdict leaves out what is dropped, and nothing else has a reason")
		}
		return t, err
	}},
	listed("reply", (*flowpb.FlowFilter).GetReply, constant(false, "a record holds both ways of a flow, in the direction of who began it")),
	listed("encrypted", (*flowpb.FlowFilter).GetEncrypted, constant(false, "Weir does not encrypt")),
	listed("source_identity", (*flowpb.FlowFilter).GetSourceIdentity, identities(source)),
	listed("destination_identity", (*flowpb.FlowFilter).GetDestinationIdentity, identities(destination)),
	listed("protocol", (*flowpb.FlowFilter).GetProtocol, protocols),
	listed("source_ip", (*flowpb.FlowFilter).GetSourceIp, addresses(source)),
	listed("destination_ip", (*flowpb.FlowFilter).GetDestinationIp, addresses(destination)),
	listed("source_ip_xlated", (*flowpb.FlowFilter).GetSourceIpXlated, func(l *Log, want []string) (test, error) {
		if _, err := addresses(source)(l, want); err != nil {
			return nil, err
		}
		return nil, never("packets are judged and recorded by the address their sender gave them")
	}),
	listed("source_pod", (*flowpb.FlowFilter).GetSourcePod, pods(source)),
	listed("destination_pod", (*flowpb.FlowFilter).GetDestinationPod, pods(destination)),
	listed("source_workload", (*flowpb.FlowFilter).GetSourceWorkload, workloads(source)),
	listed("destination_workload", (*flowpb.FlowFilter).GetDestinationWorkload, workloads(destination)),
	listed("source_service", (*flowpb.FlowFilter).GetSourceService, services(source)),
	listed("destination_service", (*flowpb.FlowFilter).GetDestinationService, services(destination)),
	listed("source_fqdn", (*flowpb.FlowFilter).GetSourceFqdn, fqdns(source)),
	listed("destination_fqdn", (*flowpb.FlowFilter).GetDestinationFqdn, fqdns(destination)),
	listed("source_label", (*flowpb.FlowFilter).GetSourceLabel, selectors(source)),
	listed("destination_label", (*flowpb.FlowFilter).GetDestinationLabel, selectors(destination)),
	listed("node_labels", (*flowpb.FlowFilter).GetNodeLabels, nodeSelectors),
	listed("source_port", (*flowpb.FlowFilter).GetSourcePort, ports(source)),
	listed("destination_port", (*flowpb.FlowFilter).GetDestinationPort, ports(destination)),
	listed("tcp_flags", (*flowpb.FlowFilter).GetTcpFlags, tcpFlagsMatch),
	listed("node_name", (*flowpb.FlowFilter).GetNodeName, nodeIs),
	listed("source_cluster_name", (*flowpb.FlowFilter).GetSourceClusterName, clusters(source)),
	listed("destination_cluster_name", (*flowpb.FlowFilter).GetDestinationClusterName, clusters(destination)),
	listed("ip_version", (*flowpb.FlowFilter).GetIpVersion, ipVersions),
	listed("traffic_direction", (*flowpb.FlowFilter).GetTrafficDirection, directions),
	listed("interface", (*flowpb.FlowFilter).GetInterface, interfaces),
	layer7("http_status_code", (*flowpb.FlowFilter).GetHttpStatusCode, statusCodes),
	layer7("http_method", (*flowpb.FlowFilter).GetHttpMethod, unseen[string](noL7)),
	layer7("http_path", (*flowpb.FlowFilter).GetHttpPath, regexps),
	layer7("http_url", (*flowpb.FlowFilter).GetHttpUrl, regexps),
	layer7("http_header", (*flowpb.FlowFilter).GetHttpHeader, unseen[*flowpb.HTTPHeader](noL7)),
	listed("dns_query", (*flowpb.FlowFilter).GetDnsQuery, regexps),
	// A record has no trace, and so Hubble's zero value of one.
	listed("trace_id", (*flowpb.FlowFilter).GetTraceId, constant("", noL7)),
	listed("ip_trace_id", (*flowpb.FlowFilter).GetIpTraceId, constant(uint64(0), "packets' trace options are not read")),
	{"experimental", func(_ *Log, f *flowpb.FlowFilter) (test, error) {
		if len(f.GetExperimental().GetCelExpression()) > 0 {
			return nil, fmt.Errorf("cel_expression: expressions are not supported; use the other fields")
		}
		return nil, nil
	}},
}

const noL7 = "Weir does not look into what connections carry"

// listed is a field that is a list; an empty one is not set.
func listed[T any](name string, get func(*flowpb.FlowFilter) []T, of func(*Log, []T) (test, error)) filterField {
	return filterField{name, func(l *Log, f *flowpb.FlowFilter) (test, error) {
		if values := get(f); len(values) > 0 {
			return of(l, values)
		}
		return nil, nil
	}}
}

// layer7 is a field of HTTP's, that as in Hubble asks for event types that have it, or none.
func layer7[T any](name string, get func(*flowpb.FlowFilter) []T, of func(*Log, []T) (test, error)) filterField {
	field := listed(name, get, of)
	return filterField{name, func(l *Log, f *flowpb.FlowFilter) (test, error) {
		types := f.GetEventType()
		is7 := func(t *flowpb.EventTypeFilter) bool { return t.GetType() == eventTypeL7 }
		if len(get(f)) > 0 && len(types) > 0 && !slices.ContainsFunc(types, is7) {
			return nil, fmt.Errorf("event_type must have %d (l7) beside it, or be left out", eventTypeL7)
		}
		return field.test(l, f)
	}}
}

var statusCode = regexp.MustCompile(`^[1-5](\d\d|\d?\+)$`)

func statusCodes(_ *Log, want []string) (test, error) {
	for _, text := range want {
		if !statusCode.MatchString(text) {
			return nil, fmt.Errorf("%q is no status code such as 404, 40+ or 4+", text)
		}
	}
	return nil, never("%s", noL7)
}

// unseen is a field that no record has.
func unseen[T any](why string) func(*Log, []T) (test, error) {
	return func(*Log, []T) (test, error) { return nil, never("%s", why) }
}

// constant is a field that every record has the same value of.
func constant[T comparable](value T, why string) func(*Log, []T) (test, error) {
	return func(_ *Log, want []T) (test, error) {
		if !slices.Contains(want, value) {
			return nil, never("%s", why)
		}
		return nil, nil
	}
}

// regexps are fields of layer 7: no record has them, and a malformed one is said to be that.
func regexps(_ *Log, want []string) (test, error) {
	for _, text := range want {
		if _, err := regexp.Compile(text); err != nil {
			return nil, err
		}
	}
	return nil, never("%s", noL7)
}

func eventTypes(_ *Log, want []*flowpb.EventTypeFilter) (test, error) {
	possible := func(w *flowpb.EventTypeFilter) bool {
		return w.GetType() == 0 || w.GetType() == eventTypeDrop || w.GetType() == eventTypeTrace
	}
	if !slices.ContainsFunc(want, possible) {
		return nil, never("records are drops (type %d) and traces (type %d)", eventTypeDrop, eventTypeTrace)
	}
	return func(r *record) bool {
		kind, sub := eventType(&r.event)
		return slices.ContainsFunc(want, func(w *flowpb.EventTypeFilter) bool {
			return (w.GetType() == 0 || w.GetType() == kind) && (!w.GetMatchSubType() || w.GetSubType() == sub)
		})
	}, nil
}

func verdicts(_ *Log, want []flowpb.Verdict) (test, error) {
	if !slices.Contains(want, flowpb.Verdict_FORWARDED) && !slices.Contains(want, flowpb.Verdict_DROPPED) {
		return nil, never("a record is FORWARDED or DROPPED")
	}
	return oneOf(want, func(r *record) (flowpb.Verdict, bool) { return verdict(r.event.Dropped), true }), nil
}

func hubbleReasons(_ *Log, want []flowpb.DropReason) (test, error) {
	possible := func(w flowpb.DropReason) bool {
		if w == flowpb.DropReason_UNKNOWN_ICMPV6_TYPE || w == flowpb.DropReason_DROP_REASON_UNKNOWN {
			return true
		}
		for _, has := range dropReasons {
			if w == has {
				return true
			}
		}
		for _, has := range kernelReasons {
			if w == has.hubble {
				return true
			}
		}
		return false
	}
	if !slices.ContainsFunc(want, possible) {
		return nil, never("Weir drops nothing for %v; \"weir flows\" has its own reasons", want)
	}
	return oneOf(want, func(r *record) (flowpb.DropReason, bool) { return dropReason(&r.event), r.event.Dropped }), nil
}

func identityIs(end int, want []uint32) test {
	return oneOf(want, func(r *record) (uint32, bool) { return uint32(r.event.Identity[end]), r.hasEnd(end) })
}

func identities(end int) func(*Log, []uint32) (test, error) {
	return func(_ *Log, want []uint32) (test, error) { return identityIs(end, want), nil }
}

// hubbleProtocols are the words for those records that Hubble has a layer 4 for; others
// of its words are known and never match.
var hubbleProtocols = map[string][]uint8{
	"tcp": {datapath.TCP}, "udp": {datapath.UDP}, "sctp": {datapath.SCTP},
	"icmp": {protocolICMPv4, protocolICMPv6}, "icmpv4": {protocolICMPv4}, "icmpv6": {protocolICMPv6},
	"vrrp": {}, "igmp": {}, "dns": {}, "http": {},
}

func protocols(_ *Log, want []string) (test, error) {
	var numbers []uint8
	for _, word := range want {
		n, ok := hubbleProtocols[strings.ToLower(word)]
		if !ok {
			return nil, fmt.Errorf("%q is not one of tcp, udp, sctp, icmp, icmpv4, icmpv6, vrrp, igmp, dns, http", word)
		}
		numbers = append(numbers, n...)
	}
	if len(numbers) == 0 {
		return nil, never("%s: records are of tcp, udp, sctp and icmp", quoted(want))
	}
	return oneOf(numbers, func(r *record) (uint8, bool) { return r.event.Protocol, r.suppressed == 0 }), nil
}

func addresses(end int) func(*Log, []string) (test, error) {
	return func(_ *Log, want []string) (test, error) {
		var blocks []netip.Prefix
		for _, text := range want {
			if strings.Contains(text, "/") {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return nil, fmt.Errorf("%q is no CIDR", text)
				}
				blocks = append(blocks, p)
				continue
			}
			a, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("%q is no address", text)
			}
			a = a.Unmap()
			blocks = append(blocks, netip.PrefixFrom(a, a.BitLen()))
		}
		return func(r *record) bool {
			a := r.addr(end)
			return slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(a) })
		}, nil
	}
}

// A namePrefix is Hubble's way to name pods and services: namespace/prefix, prefix alone
// in the namespace default, namespace/ or /prefix.
type namePrefix struct{ namespace, prefix string }

func namePrefixes(want []string) ([]namePrefix, error) {
	var out []namePrefix
	for _, text := range want {
		if text == "" {
			return nil, fmt.Errorf("a name must not be empty")
		}
		namespace, prefix, found := strings.Cut(text, "/")
		if !found {
			namespace, prefix = "default", text
		}
		prefix, _, _ = strings.Cut(prefix, "/")
		out = append(out, namePrefix{namespace, prefix})
	}
	return out, nil
}

func hasName(want []namePrefix, of func(*record) (namespace, name string)) test {
	return func(r *record) bool {
		namespace, name := of(r)
		return (namespace != "" || name != "") && slices.ContainsFunc(want, func(w namePrefix) bool {
			return (w.namespace == "" || w.namespace == namespace) && strings.HasPrefix(name, w.prefix)
		})
	}
}

func pods(end int) func(*Log, []string) (test, error) {
	return func(_ *Log, want []string) (test, error) {
		names, err := namePrefixes(want)
		return hasName(names, func(r *record) (string, string) {
			if p := r.parties[end]; p.IsPod() && r.hasEnd(end) {
				return p.Namespace, p.Name
			}
			return "", ""
		}), err
	}
}

func services(end int) func(*Log, []string) (test, error) {
	return func(_ *Log, want []string) (test, error) {
		names, err := namePrefixes(want)
		return hasName(names, func(r *record) (string, string) {
			if s := r.services[end]; s != nil {
				return s.Namespace, s.Name
			}
			return "", ""
		}), err
	}
}

func workloadIs(end int, want []*flowpb.Workload) test {
	return func(r *record) bool {
		p := r.parties[end]
		if !p.IsPod() || p.Workload.Name == "" || !r.hasEnd(end) {
			return false
		}
		return slices.ContainsFunc(want, func(w *flowpb.Workload) bool {
			return (w.GetName() == "" || w.GetName() == p.Workload.Name) && (w.GetKind() == "" || w.GetKind() == p.Workload.Kind)
		})
	}
}

func workloads(end int) func(*Log, []*flowpb.Workload) (test, error) {
	return func(_ *Log, want []*flowpb.Workload) (test, error) { return workloadIs(end, want), nil }
}

func fqdns(end int) func(*Log, []string) (test, error) {
	return func(_ *Log, want []string) (test, error) {
		pattern, err := fqdnPattern(want)
		return func(r *record) bool {
			return slices.ContainsFunc(nodeNames(r.parties[end]), pattern.MatchString)
		}, err
	}
}

func selectors(end int) func(*Log, []string) (test, error) {
	return func(_ *Log, want []string) (test, error) {
		var tests []test
		var impossible error
		for _, text := range want {
			s, err := parseSelector(text)
			switch {
			case errors.Is(err, errNever):
				impossible = err
			case err != nil:
				return nil, err
			default:
				tests = append(tests, labelsMatch(end, s))
			}
		}
		if len(tests) == 0 && impossible != nil {
			return nil, impossible
		}
		return either(tests...), nil
	}
}

// nodeSelectors are over the node's labels, of which records have none.
func nodeSelectors(_ *Log, want []string) (test, error) {
	matches := false
	for _, text := range want {
		s, err := parseSelector(text)
		if err != nil && !errors.Is(err, errNever) {
			return nil, err
		}
		matches = matches || s.Matches(labelSet(nil))
	}
	if matches {
		return nil, nil
	}
	return nil, never("records have no labels of their node")
}

func parsePorts(want []string) ([]uint16, error) {
	var out []uint16
	for _, text := range want {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a port number (0-65535)", text)
		}
		out = append(out, uint16(n))
	}
	return out, nil
}

func portOf(end int) func(*record) (uint16, bool) {
	return func(r *record) (uint16, bool) {
		p := r.event.Source.Port()
		if end == destination {
			p = r.event.Destination.Port()
		}
		return p, r.suppressed == 0 && hasPorts(r.event.Protocol)
	}
}

func ports(end int) func(*Log, []string) (test, error) {
	return func(_ *Log, want []string) (test, error) {
		ports, err := parsePorts(want)
		return oneOf(ports, portOf(end)), err
	}
}

func hasPorts(protocol uint8) bool {
	return protocol == datapath.TCP || protocol == datapath.UDP || protocol == datapath.SCTP
}

// tcpFlagsMatch wants all flags of one of the sets.
func tcpFlagsMatch(_ *Log, want []*flowpb.TCPFlags) (test, error) {
	var masks []uint8
	for _, f := range want {
		if !f.GetNS() { // the header's ninth flag is not recorded
			masks = append(masks, flagBits(f))
		}
	}
	if len(masks) == 0 {
		return nil, never("NS is no flag of records")
	}
	return func(r *record) bool {
		has := uint8(r.event.TCPFlags)
		return r.suppressed == 0 && r.event.Protocol == datapath.TCP && slices.ContainsFunc(masks, func(m uint8) bool { return has&m == m })
	}, nil
}

func flagBits(f *flowpb.TCPFlags) (bits uint8) {
	for i, set := range [8]bool{f.GetFIN(), f.GetSYN(), f.GetRST(), f.GetPSH(), f.GetACK(), f.GetURG(), f.GetECE(), f.GetCWR()} {
		if set {
			bits |= 1 << i
		}
	}
	return bits
}

// nodeIs is decided here and now: all records are this node's. A name of another node is
// no error, a relay asks every node the same.
func nodeIs(l *Log, want []string) (test, error) {
	pattern, err := nodePattern(want)
	if err != nil {
		return nil, err
	}
	is := pattern.MatchString(clusterName + "/" + l.opts.Node)
	return func(*record) bool { return is }, nil
}

func clusters(end int) func(*Log, []string) (test, error) {
	return func(_ *Log, want []string) (test, error) {
		if slices.Contains(want, "") {
			return nil, fmt.Errorf("a name must not be empty")
		}
		if !slices.Contains(want, clusterName) {
			return nil, never("all pods are of the cluster %q", clusterName)
		}
		return func(r *record) bool { return r.hasEnd(end) && r.parties[end].IsPod() }, nil
	}
}

func ipVersions(_ *Log, want []flowpb.IPVersion) (test, error) {
	return oneOf(want, func(r *record) (flowpb.IPVersion, bool) { return ipVersion(&r.event), true }), nil
}

func directions(_ *Log, want []flowpb.TrafficDirection) (test, error) {
	return oneOf(want, func(r *record) (flowpb.TrafficDirection, bool) { return hubbleDirection(r.direction()), true }), nil
}

func interfaces(_ *Log, want []*flowpb.NetworkInterface) (test, error) {
	return func(r *record) bool {
		return r.event.Ifindex != 0 && slices.ContainsFunc(want, func(w *flowpb.NetworkInterface) bool {
			return (w.GetIndex() == 0 || w.GetIndex() == r.event.Ifindex) && (w.GetName() == "" || w.GetName() == r.ifname)
		})
	}, nil
}
