package hubble

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	peerpb "github.com/cilium/cilium/api/v1/peer"
)

// Node is a node of the cluster, with its addresses.
type Node struct {
	Name      string
	Addresses []netip.Addr
}

// Peers are the nodes of the cluster, this one too if its addresses are known; changed is
// closed once there may be others.
type Peers func() (nodes []Node, changed <-chan struct{})

// peer is a node by its Hubble address.
type peer struct{ Name, Address string }

// serverName is what a peer's certificate has to be good for: Cilium's form, so that its
// tools make certificates for Weir too.
func (p peer) serverName() string {
	return strings.ReplaceAll(p.Name, ".", "-") + "." + clusterName + ".hubble-grpc.cilium.io"
}

// peers are this node, first, and, where flows are served by TCP, the others at the same
// port. changed is nil if there will be no other.
func (s *Server) peers() (all []peer, changed <-chan struct{}) {
	var nodes []Node
	if s.Peers != nil {
		nodes, changed = s.Peers()
	}
	if s.TCP == nil {
		return []peer{{s.Node, "unix://" + filepath.Join(s.StateDir, SocketName)}}, nil
	}
	own := s.TCP.Listen.Addr()
	port := strconv.Itoa(int(s.TCP.Listen.Port()))
	for _, n := range nodes {
		if len(n.Addresses) == 0 {
			continue
		}
		if n.Name != s.Node {
			all = append(all, peer{n.Name, net.JoinHostPort(n.Addresses[0].String(), port)})
		} else if own.IsUnspecified() {
			own = n.Addresses[0]
		}
	}
	slices.SortFunc(all, func(a, b peer) int { return strings.Compare(a.Name, b.Name) })
	return append([]peer{{s.Node, net.JoinHostPort(own.String(), port)}}, all...), changed
}

// peerService implements Hubble's service Peer, by which a relay finds the nodes.
type peerService struct {
	peerpb.UnimplementedPeerServer
	server *Server
}

// Notify implements peerpb.PeerServer.
func (p *peerService) Notify(_ *peerpb.NotifyRequest, stream peerpb.Peer_NotifyServer) error {
	return p.server.stream(stream.Context(), func(ctx context.Context, w *watch) error {
		told := map[string]peer{}
		for {
			now, changed := p.server.peers()
			for _, n := range p.server.changes(told, now) {
				if err := w.during(func() error { return stream.Send(n) }); err != nil {
					return err
				}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
	})
}

// changes are what makes of those told about those that are there now.
func (s *Server) changes(told map[string]peer, now []peer) (out []*peerpb.ChangeNotification) {
	there := map[string]bool{}
	for _, p := range now {
		there[p.Name] = true
		before, known := told[p.Name]
		switch {
		case !known:
			out = append(out, s.notification(p, peerpb.ChangeNotificationType_PEER_ADDED))
		case before != p:
			out = append(out, s.notification(p, peerpb.ChangeNotificationType_PEER_UPDATED))
		}
		told[p.Name] = p
	}
	for name, p := range told {
		if !there[name] {
			delete(told, name)
			out = append(out, s.notification(p, peerpb.ChangeNotificationType_PEER_DELETED))
		}
	}
	return out
}

func (s *Server) notification(p peer, kind peerpb.ChangeNotificationType) *peerpb.ChangeNotification {
	n := &peerpb.ChangeNotification{Name: p.Name, Address: p.Address, Type: kind}
	if s.TCP.secured() {
		n.Tls = &peerpb.TLS{ServerName: p.serverName()}
	}
	return n
}
