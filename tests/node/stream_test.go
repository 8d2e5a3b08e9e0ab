package node

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// stream is a TCP connection on which both ends write a byte every few milliseconds, each
// unasked: what arrives at either end shows that direction alone.
type stream struct {
	ends     [2]net.Conn // client, server
	received [2]atomic.Int64
	broken   atomic.Pointer[error]
}

// openStream connects a pod to another's port, which must not be served yet.
func (e *env) openStream(from, to *lab.Host, family, port int) *stream {
	e.t.Helper()
	l, err := to.Listen(port)
	e.must("listen", err)
	defer l.Close()
	client, err := from.Connect(to.Addr(family), port)
	e.must("connect", err)
	server, err := l.Accept()
	e.must("accept", err)
	s := &stream{ends: [2]net.Conn{client, server}}
	for i, c := range s.ends {
		go s.write(c)
		go s.read(i, c)
		e.t.Cleanup(func() { c.Close() })
	}
	return s
}

func (s *stream) write(c net.Conn) {
	for s.note(second(c.Write([]byte{'x'}))) {
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *stream) read(i int, c net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		s.received[i].Add(int64(n))
		if !s.note(err) {
			return
		}
	}
}

func second(_ int, err error) error { return err }

// note remembers the first error and reports whether there was none.
func (s *stream) note(err error) bool {
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.broken.CompareAndSwap(nil, &err)
	}
	return err == nil
}

// alive waits until both ends have received something new.
func (e *env) alive(what string, s *stream) {
	e.t.Helper()
	was := [2]int64{s.received[0].Load(), s.received[1].Load()}
	e.eventually(what+": both directions flow", 5*time.Second, func() bool {
		return s.received[0].Load() > was[0] && s.received[1].Load() > was[1]
	})
	if err := s.broken.Load(); err != nil {
		e.t.Fatalf("%s: the connection broke: %v", what, *err)
	}
}

// dead waits until neither end receives anything for a time.
func (e *env) dead(what string, s *stream) {
	e.t.Helper()
	was := [2]int64{-1, -1}
	since := time.Now()
	e.eventually(what+": both directions are silent", 5*time.Second, func() bool {
		now := [2]int64{s.received[0].Load(), s.received[1].Load()}
		if now != was {
			was, since = now, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond
	})
}

const portStream = 5000

// TestRevocation: both directions stop at their next packet, the server's pushes too.
func TestRevocation(t *testing.T) {
	for _, c := range []struct{ name, policy string }{
		{"ingress", policy("ns", "allow", fromAnyPort)},
		{"egress", policy("ns", "allow", egressAtoB)},
	} {
		t.Run(c.name, func(t *testing.T) {
			deny := policy("ns", "deny", "  podSelector: {}\n  policyTypes: [Ingress]\n")
			if c.name == "egress" {
				deny = policy("ns", "deny", "  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n")
			}
			e := newEnv(t, "pods.yaml", abc, "deny.yaml", deny, "allow.yaml", c.policy)
			e.add("ns/a", "ns/b")
			var streams []*stream
			for i, family := range families {
				streams = append(streams, e.openStream(e.host("ns/a"), e.host("ns/b"), family, portStream+i))
			}
			for _, s := range streams {
				e.alive("while allowed", s)
			}
			e.must("remove", e.Remove("allow.yaml"))
			e.must("wait", e.Wait(e.ctx))
			began := time.Now()
			for _, s := range streams {
				e.dead("after the policy went", s)
			}
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("silence only after %v", d)
			}
			e.apply("allow.yaml", c.policy)
			for _, s := range streams {
				e.alive("allowed again", s)
			}
		})
	}
}

// fromAnyPort lets a to b on all ports.
const fromAnyPort = `  podSelector: {matchLabels: {app: b}}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: a}}
`

// TestEditThatKeepsAFlowDoesNotDisturbIt: a commit that leaves a connection allowed.
func TestEditThatKeepsAFlowDoesNotDisturbIt(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "deny.yaml", policy("ns", "deny", denyIngress), "allow.yaml", policy("ns", "allow", fromAnyPort))
	e.add("ns/a", "ns/b", "ns/c")
	s := e.openStream(e.host("ns/a"), e.host("ns/b"), 4, portStream)
	for range 5 {
		e.apply("more.yaml", policy("ns", "more", "  podSelector: {matchLabels: {app: b}}\n  ingress: [{ports: [{port: 80}]}]\n"))
		e.alive("after a policy came", s)
		e.must("remove", e.Remove("more.yaml"))
		e.must("wait", e.Wait(e.ctx))
		e.alive("after it went", s)
	}
}

// TestAgentKilled: what runs goes on, verdicts stand, and a restart changes neither.
func TestAgentKilled(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "deny", denyIngress)+policy("ns", "allow", fromA)+
		policy("ns", "stream", "  podSelector: {matchLabels: {app: b}}\n  ingress: [{ports: [{port: 5000}]}]\n"))
	e.add("ns/a", "ns/b", "ns/c")
	s := e.openStream(e.host("ns/a"), e.host("ns/b"), 6, portStream)
	verdicts := []probe{
		{"ns/a", "ns/b", "tcp", portHTTP, yes},
		{"ns/c", "ns/b", "tcp", portHTTP, no},
		{"ns/a", "ns/b", "udp", portHTTP, no},
		{"outside", "ns/b", "tcp", portHTTP, no},
		{"ns/b", "ns/a", "tcp", portHTTP, no},
		{"node", "ns/b", "tcp", portOther, yes},
	}
	e.check(verdicts...)
	endpoints := e.Weir(e.ctx, "endpoints", "-o", "json").Stdout
	for range 2 {
		e.must("kill", e.KillAgent())
		e.check(verdicts...)
		e.alive("without an agent", s)
		e.must("start", e.StartAgent(e.ctx))
		e.must("wait", e.Wait(e.ctx))
		e.check(verdicts...)
		e.alive("after the restart", s)
	}
	if again := e.Weir(e.ctx, "endpoints", "-o", "json").Stdout; again != endpoints {
		t.Errorf("endpoints before:\n%s\nafter:\n%s", endpoints, again)
	}
	// And the adopted state is alive: an edit still applies, to the old connection too.
	e.apply("policy.yaml", policy("ns", "deny", denyIngress))
	e.dead("after the edit", s)
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no})
}

// TestEditWhileAgentIsDead: the edit counts once an agent is back.
func TestEditWhileAgentIsDead(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	e.must("kill", e.KillAgent())
	e.write("deny.yaml", policy("ns", "deny", denyAll))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes})
	e.must("start", e.StartAgent(e.ctx))
	e.must("wait", e.Wait(e.ctx))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no})
}
