package hubble

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// lingering are credentials that let a client read why its handshake failed: with TLS 1.3
// it has sent its first frames by then, and a connection closed on unread bytes is reset,
// which takes the alert away from under it.
type lingering struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (l lingering) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	held := &heldConn{Conn: raw}
	c, info, err := l.TransportCredentials.ServerHandshake(held)
	held.done.Store(true)
	if err != nil {
		drain(raw)
	}
	return c, info, err
}

// heldConn is not closed until the handshake is done; gRPC closes what failed.
type heldConn struct {
	net.Conn
	done atomic.Bool
}

// Close implements net.Conn.
func (c *heldConn) Close() error {
	if !c.done.Load() {
		return nil
	}
	return c.Conn.Close()
}

// patience is how long a client may take to read why it is not let in.
const patience = time.Second

func drain(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(patience)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
}
