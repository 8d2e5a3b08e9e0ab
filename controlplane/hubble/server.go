package hubble

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
)

// SocketName is the socket in the state directory. It is not the agent's: that one
// speaks HTTP/1 and changes things, this one is for looking only.
const SocketName = "hubble.sock"

// HealthName is the service that Hubble's clients ask the health of.
const HealthName = "hubble.server.Observer"

// Options of a Server. Flows, Node and Log must be set.
type Options struct {
	Flows    *flowlog.Log
	Node     string
	Version  string
	StateDir string // "" = no socket
	TCP      *TCP   // nil = not by TCP
	Peers    Peers  // nil = no other nodes are known
	State    State  // nil = nothing happens to the agent
	Log      *slog.Logger

	Stall time.Duration // a reader that takes nothing for so long is cut off; 0 = 30 s
}

// Bounds of what clients can make the agent hold.
const (
	connectionsMost = 1024 // on each listener
	streamsMost     = 512  // together: a stalled one holds up to 512 records and 64 KiB of gRPC's
	requestMost     = 1 << 20
	stallDefault    = 30 * time.Second
)

// Server answers Hubble's clients.
type Server struct {
	Options
	slots  flowlog.Streams // one element for each open stream
	events *events
}

// New returns a Server that does not listen yet.
func New(o Options) *Server {
	if o.Stall <= 0 {
		o.Stall = stallDefault
	}
	return &Server{Options: o, slots: flowlog.NewStreams(streamsMost), events: newEvents()}
}

// Run listens and answers until ctx is over (nil). Open streams are ended then.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if s.StateDir != "" {
		l, err := api.ListenAs(s.StateDir, SocketName)
		if err != nil {
			return err
		}
		defer os.Remove(filepath.Join(s.StateDir, SocketName))
		group.Go(func() error { return s.serve(ctx, l) })
	}
	if s.State != nil {
		group.Go(func() error { return s.watchEvents(ctx) })
	}
	if s.TCP != nil {
		group.Go(func() error { return s.serveTCP(ctx) })
	}
	return group.Wait()
}

func (s *Server) serve(ctx context.Context, l net.Listener, opts ...grpc.ServerOption) error {
	g := s.grpc(opts...)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(limit(l, connectionsMost)); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve flows at %s: %w", l.Addr(), err)
	}
	return nil
}

func (s *Server) grpc(opts ...grpc.ServerOption) *grpc.Server {
	g := grpc.NewServer(append(opts,
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(requestMost),
		grpc.MaxConcurrentStreams(streamsMost),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)...)
	observerpb.RegisterObserverServer(g, &observer{server: s})
	peerpb.RegisterPeerServer(g, &peerService{server: s})
	h := health.NewServer() // serves "" from the start
	h.SetServingStatus(HealthName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g, h)
	reflection.Register(g)
	return g
}
