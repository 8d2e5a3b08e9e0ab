package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// Addresses of the Service ns/web and its port; backends serve portHTTP.
const (
	web4   = "10.96.0.1:80"
	web6   = "[fd96::1]:80"
	outer4 = "192.0.2.77:80"
	outer6 = "[2001:db8::77]:80"
)

// shop is a node whose pod ns/a has a process, and whose pods ns/b1, ns/b2 are backends.
type shop struct {
	*env
	a *process
	// What the Service has.
	spec   string
	cgroup string
}

// backend is an endpoint of a slice.
type backend struct {
	pod, conditions, node string
}

func newShop(t *testing.T, files ...string) *shop {
	t.Helper()
	s := &shop{cgroup: newCgroup(t)}
	pods := pod("ns", "a", "app: a") + pod("ns", "b1", "app: b") + pod("ns", "b2", "app: b")
	s.env = newEnvWith(t, lab.Options{Agent: []string{"--cgroup-root", s.cgroup}}, append([]string{"pods.yaml", pods}, files...)...)
	for _, name := range []string{"a", "b1", "b2"} {
		p, err := s.AddPod(s.ctx, "ns", name)
		s.must("add", err)
		s.pods["ns/"+name] = p
		if name != "a" {
			s.must("serve", serveName(s.ctx, &p.Host, name, portHTTP))
		}
	}
	s.a = startProcess(t, s.host("ns/a"), s.cgroup)
	return s
}

// serveName answers everything with a name, TCP and UDP.
func serveName(ctx context.Context, h *lab.Host, name string, port int) error {
	return h.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(ctx, "tcp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		u, err := lc.ListenPacket(ctx, "udp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			l.Close()
			return err
		}
		context.AfterFunc(ctx, func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for b := make([]byte, 64); ; {
						if _, err := c.Read(b); err != nil {
							return
						}
						_, _ = c.Write([]byte(name))
					}
				}()
			}
		}()
		go func() {
			for b := make([]byte, 64); ; {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(name), from)
			}
		}()
		return nil
	})
}

// serve gives the Service these backends, and waits until it is enforced.
func (s *shop) serve(backends ...backend) {
	s.t.Helper()
	text := "apiVersion: v1\nkind: Service\nmetadata: {namespace: ns, name: web}\nspec:\n" +
		"  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 'fd96::1']\n  externalIPs: [192.0.2.77, '2001:db8::77']\n" + s.spec +
		"  ports:\n  - {name: t, port: 80, targetPort: 8080}\n  - {name: u, port: 80, protocol: UDP, targetPort: 8080}\n---\n"
	for _, family := range families {
		text += fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {namespace: ns, name: web-%d, labels: {kubernetes.io/service-name: web}}\n"+
			"addressType: IPv%d\nports:\n- {name: t, port: 8080}\n- {name: u, port: 8080, protocol: UDP}\nendpoints:", family, family)
		for _, b := range backends {
			text += fmt.Sprintf("\n- addresses: ['%s']\n  conditions: {%s}", s.host("ns/"+b.pod).Addr(family), b.conditions)
			if b.node != "" {
				text += "\n  nodeName: " + b.node
			}
		}
		if len(backends) == 0 {
			text += " []"
		}
		text += "\n---\n"
	}
	s.apply("web.yaml", text)
}

// route is one way to reach the Service.
type route struct {
	protocol  string
	connected bool
	domain    int
	to        string
}

func (w route) String() string {
	return fmt.Sprintf("%s connected=%v IPv%d socket to %s", w.protocol, w.connected, w.domain, w.to)
}

func ways() (out []route) {
	for _, x := range []struct {
		domain int
		to     string
	}{{4, web4}, {6, web6}, {6, mapped(web4)}, {4, outer4}, {6, outer6}} {
		out = append(out, route{"tcp", true, x.domain, x.to}, route{"udp", true, x.domain, x.to}, route{"udp", false, x.domain, x.to})
	}
	return out
}

func (s *shop) ask(w route) answer {
	s.t.Helper()
	if w.connected {
		return s.a.connected(w.protocol, w.domain, w.to)
	}
	return s.a.sent(w.domain, w.to)
}

// want tries every way: the answer is from one of names (all of them in the end), shows the
// Service's address and nothing of its backends'; with no names it is refused.
func (s *shop) want(names ...string) {
	s.t.Helper()
	seen := map[string]bool{}
	for i := 0; i < 3 || i < 20 && len(seen) < len(names); i++ {
		for _, w := range ways() {
			got := s.ask(w)
			if len(names) == 0 {
				if got.Err != "ECONNREFUSED" || got.Took > 2*time.Second {
					s.t.Fatalf("%s: %+v, want a refusal at once", w, got)
				}
				continue
			}
			if got.Err != "" || !slices.Contains(names, got.Text) || got.Peer != w.to {
				s.t.Fatalf("%s: %+v, want one of %v", w, got, names)
			}
			seen[got.Text] = true
		}
	}
	if len(seen) != len(names) {
		s.t.Errorf("answers came from %v alone, want all of %v", seen, names)
	}
}

func TestServices(t *testing.T) {
	s := newShop(t)
	s.serve(backend{pod: "b1"}, backend{pod: "b2"})
	s.want("b1", "b2")

	t.Run("status says so", func(t *testing.T) {
		if r := s.Weir(s.ctx, "status"); !strings.Contains(r.Stdout, "translated at sockets below "+s.cgroup) || strings.Contains(r.Stdout, "warning") {
			t.Errorf("%s", r.Stdout)
		}
	})
	t.Run("others are untouched", func(t *testing.T) {
		node := startProcess(t, s.host("node"), s.cgroup) // no endpoint's namespace
		name := node.open("udp", 4)
		if a := node.do(order{Do: "connect", Name: name, To: web4}); a.Err != "" || a.Peer != web4 {
			t.Fatalf("%+v", a)
		}
		if a := node.do(order{Do: "ask", Name: name}); a.Text != "" {
			t.Errorf("the node's own process was translated: %+v", a)
		}
		if a := s.a.connected("tcp", 4, s.host("ns/b1").Addr4+":8080"); a.Text != "b1" || a.Peer != s.host("ns/b1").Addr4+":8080" {
			t.Errorf("a backend by its own address: %+v", a)
		}
	})
	t.Run("multipath TCP", func(t *testing.T) { // whose peer's name is the backend's, see docs/services.md
		for _, w := range []route{{"mptcp", true, 4, web4}, {"mptcp", true, 6, web6}, {"mptcp", true, 6, mapped(web4)}} {
			if a := s.ask(w); a.Text != "b1" && a.Text != "b2" {
				t.Errorf("%s: %+v", w, a)
			}
		}
	})
	t.Run("the newest backends", func(t *testing.T) {
		s.serve(backend{pod: "b2"})
		s.want("b2")
		s.serve(backend{pod: "b1"})
		s.want("b1")
	})
	t.Run("conditions", func(t *testing.T) {
		ready, not := "", "ready: false, serving: false"
		draining := "ready: false, serving: true, terminating: true"
		s.serve(backend{pod: "b1", conditions: not}, backend{pod: "b2", conditions: ready})
		s.want("b2")
		s.serve(backend{pod: "b1", conditions: draining}, backend{pod: "b2", conditions: ready})
		s.want("b2")
		s.serve(backend{pod: "b1", conditions: draining}, backend{pod: "b2", conditions: not})
		s.want("b1")
		s.serve(backend{pod: "b1", conditions: not}, backend{pod: "b2", conditions: not})
		s.want()
		s.serve()
		s.want()
	})
	t.Run("kill -9 and restart", func(t *testing.T) {
		s.serve(backend{pod: "b1"})
		s.must("kill", s.KillAgent())
		s.want("b1")
		s.must("start", s.StartAgent(s.ctx))
		s.want("b1")
		s.must("stop", s.StopAgent())
		s.want("b1")
		s.must("start", s.StartAgent(s.ctx))
		s.serve(backend{pod: "b2"})
		s.want("b2")
	})
	t.Run("internalTrafficPolicy", func(t *testing.T) {
		s.spec = "  internalTrafficPolicy: Local\n"
		s.serve(backend{pod: "b1", node: "elsewhere"}, backend{pod: "b2", node: "node"})
		for range 20 {
			for _, to := range []string{web4, mapped(web4), web6} {
				domain := 6
				if to == web4 {
					domain = 4
				}
				if a := s.a.connected("tcp", domain, to); a.Text != "b2" {
					t.Fatalf("%s: %+v, want this node's", to, a)
				}
			}
		}
		s.serve(backend{pod: "b1", node: "elsewhere"})
		if a := s.a.connected("tcp", 4, web4); a.Err != "ECONNREFUSED" {
			t.Errorf("without a backend here: %+v", a)
		}
		if a := s.a.connected("tcp", 4, outer4); a.Text != "b1" {
			t.Errorf("by an external address any backend will do: %+v", a)
		}
	})
}

// A pod stays with the backend it first met, by whatever address of the Service, until the
// time is over or the backend is gone.
func TestServiceAffinity(t *testing.T) {
	s := newShop(t)
	s.spec = "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}\n"
	both := []backend{{pod: "b1"}, {pod: "b2"}}
	s.serve(both...)
	first := s.a.connected("tcp", 4, web4).Text
	stays := func(want string) {
		t.Helper()
		for range 15 {
			for _, to := range []string{web4, outer4} {
				if a := s.a.connected("tcp", 4, to); a.Text != want {
					t.Fatalf("%+v, want %s", a, want)
				}
			}
			if a := s.a.connected("tcp", 6, mapped(web4)); a.Text != want {
				t.Fatalf("by a v4-mapped address %+v, want %s", a, want)
			}
		}
	}
	stays(first)
	s.must("kill", s.KillAgent())
	s.must("start", s.StartAgent(s.ctx))
	stays(first)
	other := map[string]string{"b1": "b2", "b2": "b1"}[first]
	s.serve(backend{pod: other})
	stays(other)
	s.serve(both...)
	stays(other)
	s.serve(backend{pod: first})
	stays(first)

	// Another pod has an affinity of its own; many short times meet both backends.
	s.spec = "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}\n"
	s.serve(both...)
	seen := map[string]bool{}
	for end := time.Now().Add(time.Minute); len(seen) < 2 && time.Now().Before(end); time.Sleep(1100 * time.Millisecond) {
		seen[s.a.connected("tcp", 4, web4).Text] = true
	}
	if len(seen) < 2 {
		t.Errorf("always %v, though its time was over", seen)
	}
}

// Policy judges the backend that the socket got, and never the Service's address.
func TestPolicyJudgesTheBackend(t *testing.T) {
	toB := "  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n  egress:\n    - to: [{podSelector: {matchLabels: {app: b}}}]\n"
	s := newShop(t, "policy.yaml", policy("ns", "p", toB))
	s.serve(backend{pod: "b1"}, backend{pod: "b2"})
	s.want("b1", "b2")
	toVIP := "  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n  egress:\n    - to: [{ipBlock: {cidr: 10.96.0.0/16}}]\n"
	s.apply("policy.yaml", policy("ns", "p", toVIP))
	name := s.a.open("udp", 4)
	if a := s.a.do(order{Do: "ask", Name: name, To: web4}); a.Err != "EAGAIN" {
		t.Errorf("allowed by the Service's address: %+v, want silence", a)
	}
}

// A connected UDP socket whose backend is gone is ended and says so; an unconnected one
// goes to another; one that named the backend itself is its owner's business.
func TestUDPSocketsWhoseBackendIsGone(t *testing.T) {
	s := newShop(t)
	s.serve(backend{pod: "b1"})
	direct := s.host("ns/b1").Addr4 + ":8080"
	type held struct{ name, to string }
	var connected []held
	for _, w := range ways() {
		if w.protocol != "udp" || !w.connected {
			continue
		}
		name := s.a.open("udp", w.domain)
		if a := s.a.do(order{Do: "connect", Name: name, To: w.to}); a.Err != "" {
			t.Fatalf("%s: %+v", w, a)
		}
		connected = append(connected, held{name, w.to})
	}
	own := s.a.open("udp", 4)
	if a := s.a.do(order{Do: "connect", Name: own, To: direct}); a.Err != "" {
		t.Fatalf("%+v", a)
	}
	loose := s.a.open("udp", 4)
	if a := s.a.do(order{Do: "ask", Name: loose, To: web4}); a.Text != "b1" {
		t.Fatalf("%+v", a)
	}
	s.serve(backend{pod: "b1"}, backend{pod: "b2"}) // nothing is gone
	for _, h := range connected {
		if a := s.a.do(order{Do: "ask", Name: h.name}); a.Text != "b1" || a.Peer != h.to {
			t.Errorf("socket to %s: %+v", h.to, a)
		}
	}
	if a := s.a.do(order{Do: "ask", Name: loose, To: web4}); a.Text != "b1" || a.Peer != web4 {
		t.Errorf("an unconnected socket stays: %+v", a)
	}

	// The backend goes while no agent runs; the next one looks after what it left.
	s.must("kill", s.KillAgent())
	s.write("web.yaml", "")
	s.must("start", s.StartAgent(s.ctx))
	s.serve(backend{pod: "b2"})
	for _, h := range connected {
		ended := func() bool { return s.a.do(order{Do: "peer", Name: h.name}).Err == "ENOTCONN" }
		for end := time.Now().Add(20 * time.Second); !ended(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the socket to %s is still connected to a backend that is gone", h.to)
			}
		}
	}
	for _, h := range connected { // which they are not any more, though the kernel keeps an IPv6 one to its old peer
		if to := netip.MustParseAddrPort(h.to).Addr(); to.Unmap().Is6() {
			continue
		}
		s.a.do(order{Do: "ask", Name: h.name, To: h.to}) // may say that the socket was ended
		if a := s.a.do(order{Do: "ask", Name: h.name, To: h.to}); a.Text != "b2" || a.Peer != h.to {
			t.Errorf("socket to %s, used again: %+v", h.to, a)
		}
	}
	if a := s.a.do(order{Do: "ask", Name: loose, To: web4}); a.Text != "b2" || a.Peer != web4 {
		t.Errorf("an unconnected socket goes elsewhere: %+v", a)
	}
	if a := s.a.do(order{Do: "ask", Name: own}); a.Text != "b1" || a.Peer != direct {
		t.Errorf("a socket that named the backend itself: %+v", a)
	}
}
