package hubble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// node is a log that is fed, and a server of it.
type node struct {
	t      *testing.T
	flows  *flowlog.Log
	events chan datapath.Event
	server *Server
	dir    string
}

// names are those of two pods: web (endpoint 1) and db (2).
type names struct{}

func (names) Endpoint(n uint32) *flowlog.Party {
	return map[uint32]*flowlog.Party{1: web, 2: db}[n]
}
func (names) Peer(netip.Addr, identity.Number) *flowlog.Party { return nil }
func (names) Service(netip.Addr) *flowlog.Ref                 { return nil }
func (names) ServiceNumbered(uint16) *flowlog.Ref             { return nil }
func (names) Interface(uint32) string                         { return "" }
func (names) Rule(id uint32) (policy.Rule, bool)              { return policy.NewAllocator().Rule(id) }

var (
	web = &flowlog.Party{Namespace: "shop", Name: "web-1", Labels: []string{"app=web"}}
	db  = &flowlog.Party{Namespace: "data", Name: "db-0", Labels: []string{"app=db"}}
)

// feed implements datapath.Reader.
type feed struct {
	events chan datapath.Event
	closed chan struct{}
}

func (f feed) Read() (datapath.Event, error) {
	select {
	case e := <-f.events:
		return e, nil
	case <-f.closed:
		return datapath.Event{}, os.ErrClosed
	}
}

func (f feed) Close() error { close(f.closed); return nil }

func start(t *testing.T, change ...func(*Options)) *node {
	t.Helper()
	n := &node{t: t, events: make(chan datapath.Event), dir: t.TempDir()}
	n.flows = flowlog.New(names{}, flowlog.Options{Node: "worker-1", Version: "0.1.0", Size: 1024})
	o := Options{Flows: n.flows, Node: "worker-1", Version: "weir 0.1.0", StateDir: n.dir, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	n.server = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 2)
	go func() { ran <- n.flows.Run(ctx, feed{n.events, make(chan struct{})}) }()
	go func() { ran <- n.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ran; err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(filepath.Join(n.dir, SocketName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	await(t, "the socket", func() bool { _, err := os.Stat(filepath.Join(n.dir, SocketName)); return err == nil })
	return n
}

func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// flow is web -> db:port that begins; its port tells it from others.
func flow(port uint16) datapath.Event {
	return datapath.Event{
		Kind: datapath.EventNew, Time: time.Now(), Source: netip.MustParseAddrPort("10.0.0.2:40001"),
		Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.3"), port), Protocol: datapath.TCP, TCPFlags: 2,
		Endpoint: [2]uint32{1, 2}, Identity: [2]identity.Number{1001, 1002}, Rule: [2]uint32{datapath.RuleNotIsolated, datapath.RuleNotIsolated},
		Direction: datapath.None, Judged: datapath.JudgedEgress | datapath.JudgedIngress,
	}
}

// record waits until the log has read the events.
func (n *node) record(events ...datapath.Event) {
	n.t.Helper()
	for _, e := range events {
		n.events <- e
	}
	before := n.flows.Status().Records
	await(n.t, "the log", func() bool {
		s := n.flows.Status()
		return s.Records == s.Read && s.Records >= before
	})
}

func (n *node) dial() *grpc.ClientConn {
	n.t.Helper()
	c, err := grpc.NewClient("unix://"+filepath.Join(n.dir, SocketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// ask returns the ports of the flows of an answer, and how it ended.
func ask(t *testing.T, c *grpc.ClientConn, req *observerpb.GetFlowsRequest) (ports []uint32, err error) {
	t.Helper()
	stream, err := observerpb.NewObserverClient(c).GetFlows(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return ports, nil
		}
		if err != nil {
			return ports, err
		}
		ports = append(ports, m.GetFlow().GetL4().GetTCP().GetDestinationPort())
	}
}

func TestGetFlows(t *testing.T) {
	n := start(t)
	dropped := flow(3)
	dropped.Kind, dropped.Dropped, dropped.Reason, dropped.Direction = datapath.EventDenied, true, datapath.ReasonPolicy, datapath.Ingress
	n.record(flow(1), flow(2), dropped, flow(4))
	c := n.dial()
	extension := func(text string) *anypb.Any { a, _ := anypb.New(wrapperspb.String(text)); return a }
	for name, x := range map[string]struct {
		req  *observerpb.GetFlowsRequest
		want []uint32
	}{
		"all":       {&observerpb.GetFlowsRequest{}, []uint32{1, 2, 3, 4}},
		"last":      {&observerpb.GetFlowsRequest{Number: 2}, []uint32{3, 4}},
		"first":     {&observerpb.GetFlowsRequest{Number: 2, First: true}, []uint32{1, 2}},
		"every":     {&observerpb.GetFlowsRequest{Number: 1<<64 - 1}, []uint32{1, 2, 3, 4}},
		"since":     {&observerpb.GetFlowsRequest{Since: timestamppb.New(time.Now().Add(time.Hour))}, nil},
		"whitelist": {&observerpb.GetFlowsRequest{Whitelist: []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}, {DestinationPort: []string{"1"}}}}, []uint32{1, 3}},
		"blacklist": {&observerpb.GetFlowsRequest{Number: 2, Blacklist: []*flowpb.FlowFilter{{DestinationPort: []string{"1", "4"}}}}, []uint32{2, 3}},
		"both":      {&observerpb.GetFlowsRequest{Whitelist: []*flowpb.FlowFilter{{SourcePod: []string{"shop/"}}}, Blacklist: []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}}}, []uint32{1, 2, 4}},
		"extension": {&observerpb.GetFlowsRequest{Extensions: extension("reason=policy")}, []uint32{3}},
	} {
		if got, err := ask(t, c, x.req); err != nil || !slices.Equal(got, x.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, x.want)
		}
	}
	for want, req := range map[string]*observerpb.GetFlowsRequest{
		"first cannot be specified with follow":                             {First: true, Follow: true},
		"until: 1970-01-01T00:00:01Z is before since, 1970-01-01T00:00:02Z": {Since: &timestamppb.Timestamp{Seconds: 2}, Until: &timestamppb.Timestamp{Seconds: 1}},
		"since: proto: ": {Since: &timestamppb.Timestamp{Nanos: -1}},
		`field_mask: a flow has no field "source.colour"`:  {FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"uuid", "source.colour"}}},
		`whitelist[1].source_ip: "10.0.0.0/33" is no CIDR`: {Whitelist: []*flowpb.FlowFilter{{}, {SourceIp: []string{"10.0.0.0/33"}}}},
		`blacklist[0].dns_query: error parsing regexp`:     {Blacklist: []*flowpb.FlowFilter{{DnsQuery: []string{"("}}}},
		`whitelist[0].http_method: no record can match`:    {Whitelist: []*flowpb.FlowFilter{{HttpMethod: []string{"GET"}}}},
		`whitelist[0].drop_reason_desc: no record can match`: {Whitelist: []*flowpb.FlowFilter{{
			Verdict: []flowpb.Verdict{flowpb.Verdict_FORWARDED}, DropReasonDesc: []flowpb.DropReason{flowpb.DropReason_POLICY_DENIED},
		}}},
		`extensions: policy: "db" is not namespace/name`: {Extensions: extension("policy=db")},
		`extensions: only filters`:                       {Extensions: extension("last=5")},
	} {
		_, err := ask(t, c, req)
		if s := status.Convert(err); s.Code() != codes.InvalidArgument || !strings.HasPrefix(strings.ReplaceAll(s.Message(), "\u00a0", " "), want) {
			t.Errorf("%v, want InvalidArgument %s", err, want)
		}
	}
}

func TestFieldMask(t *testing.T) {
	n := start(t)
	n.record(flow(7))
	stream, err := observerpb.NewObserverClient(n.dial()).GetFlows(t.Context(), &observerpb.GetFlowsRequest{
		FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"source.pod_name", "verdict", "l4.TCP.destination_port", "source.identity", "destination.labels"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	want := &flowpb.Flow{
		Verdict: flowpb.Verdict_FORWARDED, Source: &flowpb.Endpoint{PodName: "web-1", Identity: 1001},
		Destination: &flowpb.Endpoint{Labels: []string{"k8s:app=db", "k8s:io.kubernetes.pod.namespace=data"}},
		L4:          &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{DestinationPort: 7}}},
	}
	if got := m.GetFlow(); got.String() != want.String() {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if m.GetNodeName() != "worker-1" || m.GetTime().AsTime().IsZero() {
		t.Errorf("the mask is of the flow, not of what is around it: %v", m)
	}
	// What one reader leaves out is another's all the same.
	if got, err := ask(t, n.dial(), &observerpb.GetFlowsRequest{}); err != nil || !slices.Equal(got, []uint32{7}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestStatusNodesNamespaces(t *testing.T) {
	n := start(t)
	for port := range uint16(1030) {
		n.events <- flow(port)
	}
	n.record()
	c := observerpb.NewObserverClient(n.dial())
	s, err := c.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if s.GetNumFlows() != 1024 || s.GetMaxFlows() != 1024 || s.GetSeenFlows() != 1030 || s.GetVersion() != "weir 0.1.0" || s.GetUptimeNs() == 0 || s.GetFlowsRate() <= 0 {
		t.Errorf("status is %v", s)
	}
	nodes, err := c.GetNodes(t.Context(), &observerpb.GetNodesRequest{})
	if err != nil || len(nodes.GetNodes()) != 1 || nodes.GetNodes()[0].GetSeenFlows() != 1030 || !strings.HasSuffix(nodes.GetNodes()[0].GetAddress(), "/hubble.sock") {
		t.Errorf("nodes are %v, %v", nodes, err)
	}
	spaces, err := c.GetNamespaces(t.Context(), &observerpb.GetNamespacesRequest{})
	if err != nil || len(spaces.GetNamespaces()) != 2 || spaces.GetNamespaces()[0].GetNamespace() != "data" || spaces.GetNamespaces()[1].GetNamespace() != "shop" {
		t.Errorf("namespaces are %v, %v", spaces, err)
	}
	for _, req := range []*observerpb.GetDebugEventsRequest{{}, {Number: 5, First: true}} {
		stream, err := c.GetDebugEvents(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("debug events: %v, %v", m, err)
		}
	}
}

func TestHealthAndReflection(t *testing.T) {
	c := start(t).dial()
	for _, service := range []string{"", HealthName} {
		r, err := healthpb.NewHealthClient(c).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, r, err)
		}
	}
	stream, err := reflectionpb.NewServerReflectionClient(c).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, ask := range []*reflectionpb.ServerReflectionRequest{
		{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}},
		{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "observer.Observer"}},
	} {
		if err := stream.Send(ask); err != nil {
			t.Fatal(err)
		}
	}
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var services []string
	for _, s := range m.GetListServicesResponse().GetService() {
		services = append(services, s.GetName())
	}
	for _, want := range []string{"observer.Observer", "peer.Peer", "grpc.health.v1.Health"} {
		if !slices.Contains(services, want) {
			t.Errorf("services are %v, without %s", services, want)
		}
	}
	if m, err = stream.Recv(); err != nil || len(m.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
		t.Errorf("the file of observer.Observer: %v, %v", m, err)
	}
}

func TestPeers(t *testing.T) {
	changed := make(chan struct{})
	nodes := []Node{{Name: "worker-1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, {Name: "b.example", Addresses: []netip.Addr{netip.MustParseAddr("fd00::2")}}}
	tcp := &TCP{Listen: netip.MustParseAddrPort("0.0.0.0:4244"), Files: &Files{}}
	s := New(Options{Node: "worker-1", TCP: tcp, Peers: func() ([]Node, <-chan struct{}) { return nodes, changed }})
	told := map[string]peer{}
	look := func(want ...string) {
		t.Helper()
		now, _ := s.peers()
		var got []string
		for _, n := range s.changes(told, now) {
			got = append(got, strings.Join([]string{n.GetType().String(), n.GetName(), n.GetAddress(), n.GetTls().GetServerName()}, " "))
		}
		if !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	look("PEER_ADDED worker-1 192.0.2.1:4244 worker-1.default.hubble-grpc.cilium.io", "PEER_ADDED b.example [fd00::2]:4244 b-example.default.hubble-grpc.cilium.io")
	look()
	nodes = append(nodes[:1:1], Node{Name: "b.example", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}})
	look("PEER_UPDATED b.example 192.0.2.2:4244 b-example.default.hubble-grpc.cilium.io")
	nodes = nodes[:1]
	look("PEER_DELETED b.example 192.0.2.2:4244 b-example.default.hubble-grpc.cilium.io")

	n := start(t)
	stream, err := peerpb.NewPeerClient(n.dial()).Notify(t.Context(), &peerpb.NotifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || m.GetName() != "worker-1" || m.GetAddress() != "unix://"+filepath.Join(n.dir, SocketName) || m.GetTls() != nil {
		t.Errorf("notified of %v, %v", m, err)
	}
}

func TestSocketIsTheOwnersAlone(t *testing.T) {
	n := start(t)
	info, err := os.Stat(filepath.Join(n.dir, SocketName))
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// What happens to the agent is told by the difference of its states.
func TestAgentEvents(t *testing.T) {
	var mu sync.Mutex
	changed := make(chan struct{})
	endpoints := []api.Endpoint{{Number: 1, PodNamespace: "shop", PodName: "web"}}
	policies := []api.Policy{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Revision: 3}}
	n := start(t, func(o *Options) {
		o.State = func() ([]api.Endpoint, []api.Policy, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(endpoints), slices.Clone(policies), changed
		}
	})
	become := func(f func()) {
		mu.Lock()
		defer mu.Unlock()
		f()
		close(changed)
		changed = make(chan struct{})
	}
	kept := func() int { all, _, _ := n.server.events.from(0); return len(all) }
	c := observerpb.NewObserverClient(n.dial())
	await(t, "the start", func() bool { return kept() == 1 })
	follower, err := c.GetAgentEvents(t.Context(), &observerpb.GetAgentEventsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the follower", func() bool { return len(n.server.slots) == 1 })
	become(func() {
		endpoints = []api.Endpoint{{Number: 2, PodNamespace: "shop", PodName: "db", Labels: []string{"app=db", "namespace:team=a"}}}
		policies = []api.Policy{{Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Revision: 4, Ingress: 2}}
	})
	await(t, "the changes", func() bool { return kept() == 4 })
	become(func() { policies = nil })
	await(t, "the end of the policy", func() bool { return kept() == 5 })
	say := func(e *observerpb.GetAgentEventsResponse) string {
		x, p := e.GetAgentEvent().GetEndpointUpdate(), e.GetAgentEvent().GetPolicyUpdate()
		return strings.Join(strings.Fields(fmt.Sprintln(e.GetAgentEvent().GetType(), x.GetId(), x.GetNamespace(), x.GetPodName(), x.GetLabels(), p.GetRevision(), p.GetRuleCount(), len(p.GetLabels()))), " ")
	}
	want := []string{
		"AGENT_STARTED 0 [] 0 0 0", "ENDPOINT_DELETED 1 shop web [] 0 0 0", "ENDPOINT_CREATED 2 shop db [k8s:app=db] 0 0 0",
		"POLICY_UPDATED 0 [] 4 2 3", "POLICY_DELETED 0 [] 4 2 3",
	}
	for i, w := range want[1:] {
		m, err := follower.Recv()
		if err != nil || say(m) != w || m.GetNodeName() != "worker-1" {
			t.Errorf("event %d is %q, %v, want %q", i+1, say(m), err, w)
		}
	}
	for _, x := range []struct {
		req  *observerpb.GetAgentEventsRequest
		want int
	}{
		{&observerpb.GetAgentEventsRequest{}, 5},
		{&observerpb.GetAgentEventsRequest{Number: 2}, 2},
		{&observerpb.GetAgentEventsRequest{Number: 2, First: true}, 2},
		{&observerpb.GetAgentEventsRequest{Until: timestamppb.New(time.Unix(1, 0))}, 0},
	} {
		stream, err := c.GetAgentEvents(t.Context(), x.req)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for ; ; got++ {
			if _, err = stream.Recv(); err != nil {
				break
			}
		}
		if !errors.Is(err, io.EOF) || got != x.want {
			t.Errorf("%v: %d events, %v, want %d", x.req, got, err, x.want)
		}
	}
	n.server.events.add(make([]*observerpb.GetAgentEventsResponse, 2*eventsKept)...)
	if kept() != eventsKept {
		t.Errorf("%d events are kept", kept())
	}
}

// Where nothing is recorded, an answer without flows would say that there were none.
func TestFlowRecordsAreOff(t *testing.T) {
	n := start(t, func(o *Options) {
		o.Flows = flowlog.New(names{}, flowlog.Options{Node: "worker-1", Off: true})
	})
	stream, err := observerpb.NewObserverClient(n.dial()).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Number: 5})
	if err == nil {
		_, err = stream.Recv()
	}
	if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != flowlog.ErrOff.Error() {
		t.Errorf("%v", err)
	}
}
