package hubble

import (
	"errors"
	"net"
	"sync"
)

// limited is a listener that closes connections beyond a number of open ones at once.
type limited struct {
	net.Listener
	open chan struct{}
}

func limit(l net.Listener, most int) net.Listener { return &limited{l, make(chan struct{}, most)} }

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.open <- struct{}{}:
			return &counted{Conn: c, open: l.open}, nil
		default:
			c.Close()
		}
	}
}

// counted is a connection of such a listener.
type counted struct {
	net.Conn
	once sync.Once
	open chan struct{}
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(func() { <-c.open })
	return c.Conn.Close()
}

// CloseWrite ends what is sent and leaves what is received.
func (c *counted) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
