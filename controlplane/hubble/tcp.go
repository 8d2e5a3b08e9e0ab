package hubble

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// TCP is where and how flows are served over the network.
type TCP struct {
	Listen netip.AddrPort
	Files  *Files // nil = neither encrypted nor authenticated

	mu      sync.Mutex
	problem string // why nobody can connect
}

// NewTCP checks a setting: beyond the node itself only those with a certificate are
// answered, unless insecure says otherwise.
func NewTCP(listen netip.AddrPort, files *Files, insecure bool) (*TCP, error) {
	if listen.Port() == 0 {
		return nil, errors.New("the port must not be 0: other nodes have to know it")
	}
	if files == nil && !insecure && !listen.Addr().IsLoopback() {
		return nil, fmt.Errorf("%s can be reached from other machines, and flows tell who talks to whom: give certificates, or say that it is to be insecure", listen)
	}
	return &TCP{Listen: listen, Files: files}, nil
}

func (t *TCP) secured() bool { return t != nil && t.Files != nil }

// Warnings say what keeps clients out, or soon will.
func (t *TCP) Warnings() (out []string) {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	if t.problem != "" {
		out = append(out, t.problem)
	}
	t.mu.Unlock()
	if t.Files != nil {
		out = append(out, t.Files.warnings(time.Now())...)
	}
	return out
}

func (t *TCP) setProblem(text string) (news bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	news = text != t.problem
	t.problem = text
	return news
}

// relisten is how soon it is tried again to listen.
const relisten = 2 * time.Second

// serveTCP serves, whatever it takes: enforcement does not end because a port is taken.
func (s *Server) serveTCP(ctx context.Context) error {
	var opts []grpc.ServerOption
	if s.TCP.Files != nil {
		opts = append(opts, grpc.Creds(lingering{credentials.NewTLS(s.TCP.Files.config())}))
	}
	for {
		l, err := net.Listen("tcp", s.TCP.Listen.String())
		if err == nil {
			s.TCP.setProblem("")
			s.Log.Info("flows are served by Hubble's API", "address", l.Addr(), "tls", s.TCP.secured())
			err = s.serve(ctx, l, opts...)
		}
		if ctx.Err() != nil {
			return nil
		}
		text := fmt.Sprintf("flows are not served at %s: %v", s.TCP.Listen, err)
		if s.TCP.setProblem(text) {
			s.Log.Warn(text)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(relisten):
		}
	}
}
