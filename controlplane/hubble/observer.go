package hubble

import (
	"context"
	"net/url"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
)

// clusterName is what Hubble calls a cluster that was given no name.
const clusterName = "default"

// observer implements Hubble's service of the same name.
type observer struct {
	observerpb.UnimplementedObserverServer
	server *Server
}

// GetFlows implements observerpb.ObserverServer.
func (o *observer) GetFlows(req *observerpb.GetFlowsRequest, stream observerpb.Observer_GetFlowsServer) error {
	selection, err := o.selection(req)
	if err != nil {
		return err
	}
	if err := o.server.Flows.Off(); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	mask, err := newMask(req.GetFieldMask())
	if err != nil {
		return err
	}
	return o.server.stream(stream.Context(), func(ctx context.Context, w *watch) error {
		return o.server.Flows.Select(flowlog.WithReaderName(ctx, "hubble"), selection, &sink{log: o.server.Flows, encoder: o.server.Flows.Encoder(), stream: stream, mask: mask, watch: w})
	})
}

// selection is a request, checked.
func (o *observer) selection(req *observerpb.GetFlowsRequest) (flowlog.Selection, error) {
	since, until, err := period(req)
	if err != nil {
		return flowlog.Selection{}, err
	}
	filter, err := o.server.Flows.HubbleFilter(req.GetWhitelist(), req.GetBlacklist())
	if err != nil {
		return flowlog.Selection{}, invalid("%v", err)
	}
	also, err := o.extended(req)
	if err != nil {
		return flowlog.Selection{}, err
	}
	return flowlog.Selection{
		Filter: filter.And(also), Since: since, Until: until, Number: req.GetNumber(), First: req.GetFirst(), Follow: req.GetFollow(),
		New: req.GetFollow() && req.GetNumber() == 0 && since.IsZero(),
	}, nil
}

// extended is the filter that a request asks for in its extension, with what FlowFilters
// have no field for: a google.protobuf.StringValue of an api.FlowQuery's parameters, such
// as policy=shop/db&reason=policy.
func (o *observer) extended(req *observerpb.GetFlowsRequest) (flowlog.Filter, error) {
	x := req.GetExtensions()
	if x == nil {
		return flowlog.Filter{}, nil
	}
	text := &wrapperspb.StringValue{}
	if err := x.UnmarshalTo(text); err != nil {
		return flowlog.Filter{}, invalid("extensions: %v", err)
	}
	values, err := url.ParseQuery(text.GetValue())
	if err != nil {
		return flowlog.Filter{}, invalid("extensions: %v", err)
	}
	q, err := api.ParseFlowQuery(values)
	if err != nil {
		return flowlog.Filter{}, invalid("extensions: %v", err)
	}
	if q.Follow || q.New || q.Since > 0 || q.Until > 0 || q.Last > 0 {
		return flowlog.Filter{}, invalid("extensions: only filters; how many flows and of when the request itself says")
	}
	f, err := o.server.Flows.QueryFilter(q)
	if err != nil {
		return flowlog.Filter{}, invalid("extensions: %v", err)
	}
	return f, nil
}

// A ranged request says which part of a stream it wants.
type ranged interface {
	GetFirst() bool
	GetFollow() bool
	GetSince() *timestamppb.Timestamp
	GetUntil() *timestamppb.Timestamp
}

// period checks a request's range of time.
func period(req ranged) (since, until time.Time, err error) {
	if req.GetFirst() && req.GetFollow() {
		return since, until, invalid("first cannot be specified with follow")
	}
	for _, bound := range []struct {
		name string
		from *timestamppb.Timestamp
		to   *time.Time
	}{{"since", req.GetSince(), &since}, {"until", req.GetUntil(), &until}} {
		if bound.from == nil {
			continue
		}
		if err := bound.from.CheckValid(); err != nil {
			return since, until, invalid("%s: %v", bound.name, err)
		}
		*bound.to = bound.from.AsTime()
	}
	if !until.IsZero() && until.Before(since) {
		return since, until, invalid("until: %s is before since, %s", until.Format(time.RFC3339), since.Format(time.RFC3339))
	}
	return since, until, nil
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// GetDebugEvents implements observerpb.ObserverServer: there are none.
func (o *observer) GetDebugEvents(req *observerpb.GetDebugEventsRequest, stream observerpb.Observer_GetDebugEventsServer) error {
	return o.none(req, stream.Context())
}

// none answers a request with nothing; whoever follows waits.
func (o *observer) none(req ranged, ctx context.Context) error {
	if _, _, err := period(req); err != nil || !req.GetFollow() {
		return err
	}
	return o.server.stream(ctx, func(ctx context.Context, _ *watch) error {
		<-ctx.Done()
		return ctx.Err()
	})
}

// ServerStatus implements observerpb.ObserverServer.
func (o *observer) ServerStatus(context.Context, *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	s := o.server.Flows.Status()
	return &observerpb.ServerStatusResponse{
		Version: o.server.Version, NumFlows: s.Kept, MaxFlows: uint64(s.Size), SeenFlows: s.Records,
		UptimeNs: o.uptime(), FlowsRate: o.server.Flows.Rate(),
	}, nil
}

func (o *observer) uptime() uint64 { return uint64(time.Since(o.server.Flows.Begun())) }

// GetNodes implements observerpb.ObserverServer: this node, and those it knows of.
func (o *observer) GetNodes(context.Context, *observerpb.GetNodesRequest) (*observerpb.GetNodesResponse, error) {
	s := o.server.Flows.Status()
	out := &observerpb.GetNodesResponse{}
	all, _ := o.server.peers()
	for _, p := range all {
		n := &observerpb.Node{Name: p.Name, Address: p.Address, State: relaypb.NodeState_UNKNOWN_NODE_STATE}
		if o.server.TCP.secured() {
			n.Tls = &observerpb.TLS{Enabled: true, ServerName: p.serverName()}
		}
		if p.Name == o.server.Node {
			n.Version, n.State = o.server.Version, relaypb.NodeState_NODE_CONNECTED
			n.UptimeNs, n.NumFlows, n.MaxFlows, n.SeenFlows = o.uptime(), s.Kept, uint64(s.Size), s.Records
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}

// GetNamespaces implements observerpb.ObserverServer.
func (o *observer) GetNamespaces(context.Context, *observerpb.GetNamespacesRequest) (*observerpb.GetNamespacesResponse, error) {
	out := &observerpb.GetNamespacesResponse{}
	for _, name := range o.server.Flows.Namespaces() {
		out.Namespaces = append(out.Namespaces, &observerpb.Namespace{Cluster: clusterName, Namespace: name})
	}
	return out, nil
}
