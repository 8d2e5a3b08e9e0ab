package control

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands between a client and the API server. It listens in the network namespace of
// the goroutine that made it, and reaches the server in the host's.
type Proxy struct {
	listener net.Listener
	target   string

	mu      sync.Mutex
	cut     bool
	stalled chan struct{} // closed when it is over; nil: it is not
	conns   map[net.Conn]bool
	taken   int

	delivered atomic.Int64
}

// NewProxy goes with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); p.Break() })
	go p.serve()
	return p
}

// Taken is how many connections it held so far, on both sides.
func (p *Proxy) Taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// Delivered is how many bytes the server sent through it.
func (p *Proxy) Delivered() int64 { return p.delivered.Load() }

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

func (p *Proxy) serve() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.forward(c)
	}
}

// forward one connection. A cut proxy closes it at once.
func (p *Proxy) forward(c net.Conn) {
	defer c.Close()
	if !p.hold(c) {
		return
	}
	defer p.release(c)
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	if !p.hold(server) {
		return
	}
	defer p.release(server)
	done := make(chan struct{}, 2)
	pipe := func(to io.Writer, from net.Conn) {
		_, _ = io.Copy(to, from)
		done <- struct{}{}
	}
	go pipe(&patient{p, server}, c)
	go pipe(&counted{&patient{p, c}}, server)
	<-done
}

func (p *Proxy) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	p.conns[c] = true
	p.taken++
	return true
}

func (p *Proxy) release(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// Break closes all connections; new ones are taken.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// patient writes when the proxy is not stalled.
type patient struct {
	*Proxy
	to io.Writer
}

func (w *patient) Write(b []byte) (int, error) {
	w.mu.Lock()
	stalled := w.stalled
	w.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
	return w.to.Write(b)
}

// counted are the bytes to the client.
type counted struct{ *patient }

func (w *counted) Write(b []byte) (int, error) {
	n, err := w.patient.Write(b)
	w.delivered.Add(int64(n))
	return n, err
}

// Stall takes all that is sent, and passes on nothing: a network that loses packets. What
// it returns ends that.
func (p *Proxy) Stall() (goOn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stalled := make(chan struct{})
	p.stalled = stalled
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.stalled = nil
		close(stalled)
	}
}

// Cut closes all connections, and every new one until Mend.
func (p *Proxy) Cut() {
	p.mu.Lock()
	p.cut = true
	p.mu.Unlock()
	p.Break()
}

// Mend ends a Cut.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}
