package hubble

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	hubblev1 "github.com/cilium/cilium/pkg/hubble/api/v1"
	"github.com/cilium/cilium/pkg/hubble/filters"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

var (
	seed   = flag.Int64("seed", 1, "of the random flows and filters")
	rounds = flag.Int("rounds", 4000, "random requests")
)

// TestFiltersAgreeWithHubbles: what our filters let through of random flows is what Cilium's
// own, on the messages we send, let through. What we refuse because nothing can match,
// matches nothing there; what Cilium refuses, we do.
func TestFiltersAgreeWithHubbles(t *testing.T) {
	r := rand.New(rand.NewSource(*seed))
	log := flowlog.New(people{}, flowlog.Options{Node: "worker-1", Size: 1 << 12})
	record(t, log, randomEvents(r, 400))
	var all collected
	must(t, "all flows", log.Select(t.Context(), flowlog.Selection{}, &all))
	if len(all) < 300 {
		t.Fatalf("only %d flows", len(all))
	}
	random := &randomFilters{Rand: r, flows: all}
	default_ := filters.DefaultFilters(slog.New(slog.DiscardHandler))
	matched, refused, impossible := 0, 0, 0
	for i := range *rounds {
		white, black := random.list(), random.list()
		what := fmt.Sprintf("seed %d, round %d: whitelist %v, blacklist %v", *seed, i, white, black)
		theirWhite, err := filters.BuildFilterList(t.Context(), white, default_)
		var theirBlack filters.FilterFuncs
		if err == nil {
			theirBlack, err = filters.BuildFilterList(t.Context(), black, default_)
		}
		f, failed := log.HubbleFilter(white, black)
		if err != nil {
			refused++
			if failed == nil {
				t.Errorf("%s: Hubble says %v, we take it", what, err)
			}
			continue
		}
		var want []string
		for _, m := range all {
			if filters.Apply(theirWhite, theirBlack, &hubblev1.Event{Timestamp: timestamppb.Now(), Event: m}) {
				want = append(want, m.GetUuid())
			}
		}
		if failed != nil {
			impossible++
			if filters.FilterFuncs(theirWhite).MatchNone(&hubblev1.Event{Event: all[0]}) && !anyMatch(theirWhite, all) {
				continue
			}
			t.Errorf("%s: we say %v, Hubble lets through %d", what, failed, len(want))
			continue
		}
		var got collected
		must(t, "select", log.Select(t.Context(), flowlog.Selection{Filter: f}, &got))
		if ids := got.uuids(); !slices.Equal(ids, want) {
			t.Errorf("%s:\nwe let through %d flows, Hubble %d; %s", what, len(ids), len(want), firstDifference(all, ids, want))
		}
		if len(want) > 0 && len(want) < len(all) {
			matched++
		}
	}
	t.Logf("%d requests told some flows from others, %d could match nothing, %d were malformed", matched, impossible, refused)
	if matched < *rounds/4 || refused == 0 || impossible == 0 {
		t.Errorf("of %d requests only %d tell flows apart, %d can match nothing, %d are malformed: the test shows too little", *rounds, matched, impossible, refused)
	}
}

func anyMatch(fs filters.FilterFuncs, flows []*flowpb.Flow) bool {
	for _, m := range flows {
		if fs.MatchOne(&hubblev1.Event{Event: m}) {
			return true
		}
	}
	return false
}

func firstDifference(all collected, got, want []string) string {
	for _, m := range all {
		if ours, theirs := slices.Contains(got, m.GetUuid()), slices.Contains(want, m.GetUuid()); ours != theirs {
			return fmt.Sprintf("ours %v, theirs %v: %v", ours, theirs, m)
		}
	}
	return ""
}

// collected are the flows of an answer.
type collected []*flowpb.Flow

func (c *collected) Send(m *observerpb.GetFlowsResponse) error {
	*c = append(*c, m.GetFlow())
	return nil
}

func (c *collected) Flush() error { return nil }

func (c collected) uuids() (out []string) {
	for _, m := range c {
		out = append(out, m.GetUuid())
	}
	return out
}

// people is who has which number and address.
type people struct{}

var parties = map[uint32]*flowlog.Party{
	1: {Namespace: "shop", Name: "web-1", Labels: []string{"app=web", "tier=front", "namespace:team=store"}, Workload: flowlog.Workload{Kind: "Deployment", Name: "web"}},
	2: {Namespace: "shop", Name: "db-0", Labels: []string{"app=db", "example.org/tier=back"}, Workload: flowlog.Workload{Kind: "StatefulSet", Name: "db"}},
	3: {Namespace: "default", Name: "web-2", Labels: []string{"app=web", "bare="}},
	4: {Namespace: "kube-system", Name: "dns", Labels: []string{"k8s-app=dns", "world=flat"}, Workload: flowlog.Workload{Kind: "Deployment", Name: "dns"}},
}

func (people) Endpoint(n uint32) *flowlog.Party { return parties[n] }

func (people) Peer(a netip.Addr, n identity.Number) *flowlog.Party {
	switch {
	case n == identity.Host:
		return &flowlog.Party{Name: "worker-1"}
	case n == identity.RemoteNode:
		return &flowlog.Party{Name: "worker-2.example.org"}
	case n == 1003:
		return parties[4]
	}
	return nil
}

func (people) ServiceNumbered(uint16) *flowlog.Ref { return nil }

func (people) Service(a netip.Addr) *flowlog.Ref {
	if a == netip.MustParseAddr("10.96.0.10") {
		return &flowlog.Ref{Namespace: "kube-system", Name: "dns"}
	}
	return nil
}

func (people) Interface(n uint32) string {
	if n == 3 {
		return "weir0000000000a"
	}
	return ""
}

func (people) Rule(id uint32) (policy.Rule, bool) { return policy.NewAllocator().Rule(id) }

var addrs = []string{"10.0.0.1", "10.0.0.2", "10.0.1.7", "10.96.0.10", "203.0.113.9", "fd00::1", "fd00::2", "2001:db8::9"}

// pick is one of several.
func pick[T any](r *rand.Rand, of ...T) T { return of[r.Intn(len(of))] }

func randomEvents(r *rand.Rand, n int) (out []datapath.Event) {
	for range n {
		e := datapath.Event{
			Kind: pick(r, datapath.EventNew, datapath.EventEnded, datapath.EventRevoked, datapath.EventDenied), Time: time.Now(), Created: uint64(r.Int63()),
			Protocol: pick[uint8](r, datapath.TCP, datapath.TCP, datapath.UDP, datapath.SCTP, 1, 58, 47),
			Ifindex:  uint32(r.Intn(4)), TCPFlags: uint16(r.Intn(1 << 16)), ICMPType: uint8(r.Intn(256)), Path: uint8(r.Intn(2)),
			Direction: datapath.None,
		}
		family := r.Intn(2)
		of := [][]string{addrs[:5], addrs[5:]}[family]
		e.Source = netip.AddrPortFrom(netip.MustParseAddr(pick(r, of...)), uint16(pick(r, 0, 53, 80, 8080, 40000)))
		e.Destination = netip.AddrPortFrom(netip.MustParseAddr(pick(r, of...)), uint16(pick(r, 0, 53, 80, 8080, 40000)))
		for end := range 2 {
			e.Endpoint[end] = uint32(r.Intn(5))
			e.Identity[end] = pick(r, identity.Unknown, identity.Host, identity.RemoteNode, identity.World, identity.Unmanaged, identity.Number(1003))
			if e.Endpoint[end] != 0 {
				e.Identity[end] = identity.Number(1000 + e.Endpoint[end])
			}
			e.Rule[end] = pick(r, datapath.RuleNone, datapath.RuleNotIsolated)
		}
		if e.Kind == datapath.EventDenied || e.Kind == datapath.EventRevoked {
			e.Dropped, e.Reason = true, datapath.Reason(1+r.Intn(int(datapath.Reasons)-1))
			e.Direction = pick(r, datapath.Egress, datapath.Ingress, datapath.None)
		}
		out = append(out, e)
	}
	return out
}

// record has the log read the events.
func record(t *testing.T, log *flowlog.Log, events []datapath.Event) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ran := make(chan error)
	go func() { ran <- log.Run(ctx, &feed{events: events, closed: make(chan struct{})}) }()
	for end := time.Now().Add(10 * time.Second); log.Status().Records < uint64(len(events)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the log does not read")
		}
	}
	cancel()
	must(t, "run the log", <-ran)
}

type feed struct {
	events []datapath.Event
	closed chan struct{}
}

func (f *feed) Read() (datapath.Event, error) {
	if len(f.events) == 0 {
		<-f.closed
		return datapath.Event{}, os.ErrClosed
	}
	e := f.events[0]
	f.events = f.events[1:]
	return e, nil
}

func (f *feed) Close() error { close(f.closed); return nil }

// randomFilters are mostly of what the flows have, and mostly well formed.
type randomFilters struct {
	*rand.Rand
	flows []*flowpb.Flow
}

func (r *randomFilters) list() (out []*flowpb.FlowFilter) {
	for range r.Intn(3) {
		f := &flowpb.FlowFilter{}
		for range 1 + r.Intn(3) {
			r.set(f)
		}
		out = append(out, proto.Clone(f).(*flowpb.FlowFilter))
	}
	return out
}

// some are one to three values.
func some[T any](r *randomFilters, of ...T) (out []T) {
	for range 1 + r.Intn(3) {
		out = append(out, pick(r.Rand, of...))
	}
	return out
}

// odd is a value that is malformed, rarely.
func (r *randomFilters) odd(values []string, malformed ...string) []string {
	if r.Intn(60) == 0 {
		values = append(values, pick(r.Rand, malformed...))
	}
	return values
}

func (r *randomFilters) names() []string {
	return r.odd(some(r, "shop/", "shop/web", "web", "/web", "/", "shop/db-0", "default/", "kube-system/d", "nowhere/x", "a/b/c", "dns"), "")
}

func (r *randomFilters) addresses() []string {
	return r.odd(some(r, append(addrs, "10.0.0.0/24", "10.0.0.0/8", "fd00::/64", "0.0.0.0/0", "::/0", "192.0.2.1")...), "10.0.0", "10.0.0.0/33", "")
}

func (r *randomFilters) selectors() []string {
	return r.odd(some(r, "app=web", "app!=web", "k8s:app=web", "app in (web, db)", "k8s:app notin (web)", "tier", "!tier", "k8s:tier,app=web", "reserved:world",
		"reserved:host", "any:world", "world", "example.org/tier=back", "k8s:example.org/tier", "k8s:io.kubernetes.pod.namespace=shop", "io.cilium.k8s.namespace.labels.team=store",
		"bare", "bare=", "!reserved:world, !app", "app==db", " app = web ", "reserved:app"), "app in (web", "a b", "=", "a=b=c", "app in web", "k8s:a:b=c")
}

func (r *randomFilters) ports() []string {
	return r.odd(some(r, "0", "53", "80", "8080", "40000", "65535", "1"), "65536", "http", "", "-1")
}

func (r *randomFilters) workloads() []*flowpb.Workload {
	return some(r, &flowpb.Workload{Name: "web"}, &flowpb.Workload{Kind: "Deployment"}, &flowpb.Workload{Name: "db", Kind: "StatefulSet"}, &flowpb.Workload{Name: "db", Kind: "Deployment"}, &flowpb.Workload{})
}

func (r *randomFilters) fqdns() []string {
	return r.odd(some(r, "worker-*", "worker-1", "WORKER-1.", "*.example.org", "*", "nobody", "worker-2.*.org", " worker-1 "), "a b", "", "x..", "a/b")
}

// set one field, at random.
func (r *randomFilters) set(f *flowpb.FlowFilter) {
	m := pick(r.Rand, r.flows...)
	switch r.Intn(36) {
	case 0:
		f.Uuid = some(r, m.GetUuid(), "no-such")
	case 1:
		f.EventType = some(r, &flowpb.EventTypeFilter{Type: 1}, &flowpb.EventTypeFilter{Type: 4}, &flowpb.EventTypeFilter{Type: 129}, &flowpb.EventTypeFilter{},
			&flowpb.EventTypeFilter{Type: m.GetEventType().GetType(), MatchSubType: true, SubType: m.GetEventType().GetSubType()}, &flowpb.EventTypeFilter{MatchSubType: true, SubType: 3})
	case 2:
		f.Verdict = some(r, flowpb.Verdict_FORWARDED, flowpb.Verdict_DROPPED, flowpb.Verdict_AUDIT, flowpb.Verdict_VERDICT_UNKNOWN)
	case 3:
		f.DropReasonDesc = some(r, m.GetDropReasonDesc(), flowpb.DropReason_POLICY_DENIED, flowpb.DropReason_TTL_EXCEEDED, flowpb.DropReason_DROP_REASON_UNKNOWN, flowpb.DropReason_UNKNOWN_ICMPV6_TYPE)
	case 4:
		f.Reply = some(r, false, false, true)
	case 5:
		f.Encrypted = some(r, false, false, true)
	case 6:
		f.SourceIdentity = some(r, m.GetSource().GetIdentity(), 0, 1, 2, 9999)
	case 7:
		f.DestinationIdentity = some(r, m.GetDestination().GetIdentity(), 0, 1, 2, 9999)
	case 8, 9:
		f.Protocol = r.odd(some(r, "tcp", "UDP", "sctp", "icmp", "icmpv4", "ICMPv6", "vrrp", "igmp", "http", "dns"), "quic", "")
	case 10:
		f.SourceIp = r.addresses()
	case 11:
		f.DestinationIp = r.addresses()
	case 12:
		f.SourceIpXlated = r.addresses()
	case 13, 14:
		f.SourcePod = r.names()
	case 15, 16:
		f.DestinationPod = r.names()
	case 17:
		f.SourceWorkload = r.workloads()
	case 18:
		f.DestinationWorkload = r.workloads()
	case 19:
		f.SourceService = r.names()
	case 20:
		f.DestinationService = r.names()
	case 21:
		f.SourceFqdn = r.fqdns()
	case 22:
		f.DestinationFqdn = r.fqdns()
	case 23, 24:
		f.SourceLabel = r.selectors()
	case 25, 26:
		f.DestinationLabel = r.selectors()
	case 27:
		f.NodeLabels = r.selectors()
	case 28:
		f.SourcePort = r.ports()
	case 29:
		f.DestinationPort = r.ports()
	case 30:
		f.TcpFlags = some(r, &flowpb.TCPFlags{SYN: true}, &flowpb.TCPFlags{SYN: true, ACK: true}, &flowpb.TCPFlags{RST: true}, &flowpb.TCPFlags{}, &flowpb.TCPFlags{NS: true}, &flowpb.TCPFlags{CWR: true, ECE: true, URG: true, PSH: true, FIN: true})
	case 31:
		f.NodeName = r.odd(some(r, "worker-1", "worker-*", "default/", "default/WORKER-1", "other/", "*/worker-1", "worker", "*"), "", "a/b/c", "a b")
	case 32:
		f.IpVersion = some(r, flowpb.IPVersion_IPv4, flowpb.IPVersion_IPv6, flowpb.IPVersion_IP_NOT_USED)
	case 33:
		f.TrafficDirection = some(r, flowpb.TrafficDirection_EGRESS, flowpb.TrafficDirection_INGRESS, flowpb.TrafficDirection_TRAFFIC_DIRECTION_UNKNOWN)
	case 34:
		f.Interface = some(r, &flowpb.NetworkInterface{Index: 1}, &flowpb.NetworkInterface{Name: "weir0000000000a"}, &flowpb.NetworkInterface{Index: 3, Name: "weir0000000000a"}, &flowpb.NetworkInterface{})
	case 35:
		r.rare(f)
	}
}

func (r *randomFilters) rare(f *flowpb.FlowFilter) {
	switch r.Intn(10) {
	case 9:
		f.HttpStatusCode = r.odd(some(r, "200", "5+", "40+"), "600", "++", "4xx")
	case 0:
		f.SourceClusterName = r.odd(some(r, "default", "other"), "")
	case 1:
		f.DestinationClusterName = r.odd(some(r, "default", "other"), "")
	case 2:
		f.HttpMethod = []string{"GET"}
	case 3:
		f.HttpPath = pick(r.Rand, []string{"/a"}, []string{"("})
	case 4:
		f.DnsQuery = pick(r.Rand, []string{"a.*"}, []string{"*"})
	case 5:
		f.TraceId = some(r, "", "00")
	case 6:
		f.IpTraceId = some(r, uint64(0), uint64(7))
	case 7:
		f.HttpUrl = pick(r.Rand, []string{"/a"}, []string{"["})
	case 8:
		f.HttpHeader = []*flowpb.HTTPHeader{{Key: "a", Value: "b"}}
	}
}
