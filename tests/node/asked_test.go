package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

const other4 = "10.96.0.2:80"

// service is a Service of one cluster IP in ns and the pod behind it.
func (s *shop) service(name, address, pod string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {namespace: ns, name: %s}\nspec:\n  clusterIP: %s\n"+
		"  ports:\n  - {name: t, port: 80, targetPort: 8080}\n  - {name: u, port: 80, protocol: UDP, targetPort: 8080}\n---\n"+
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {namespace: ns, name: %[1]s, labels: {kubernetes.io/service-name: %[1]s}}\n"+
		"addressType: IPv4\nports:\n- {name: t, port: 8080}\n- {name: u, port: 8080, protocol: UDP}\nendpoints:\n- addresses: ['%[3]s']\n---\n",
		name, address, s.host("ns/"+pod).Addr4)
}

// port is a socket's own.
func (s *shop) port(socket string) int {
	s.t.Helper()
	a := s.a.do(order{Do: "local", Name: socket})
	at, err := netip.ParseAddrPort(a.Peer)
	if err != nil {
		s.t.Fatalf("%+v", a)
	}
	return int(at.Port())
}

// about are the records of a kind from a port of ns/a, once there are n to a pod.
func (s *shop) about(kind, protocol string, port int, pod string, n int) (out []lab.Flow) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("%d records %q of %s port %d to %s", n, kind, protocol, port, pod), 20*time.Second, func() bool {
		out = s.flows("--last", "1000", "--kind", kind, "--protocol", protocol, "--port", fmt.Sprint(port), "--to-pod", "ns/"+pod)
		return len(out) >= n
	})
	return out
}

// asked holds the newest of those records to the Service that it is to name, "" = none.
func (s *shop) asked(what, kind, protocol string, port int, pod, want string) {
	s.t.Helper()
	all := s.about(kind, protocol, port, pod, 1)
	is := all[len(all)-1].Service
	if got := strings.Trim(is.Namespace+"/"+is.Name, "/"); got != want {
		s.t.Errorf("%s: the record says that the Service was %q, want %q", what, got, want)
	}
}

// A record names the Service that the socket had asked for, not only its backend.
func TestRecordsNameTheServiceAskedFor(t *testing.T) {
	s := newShop(t)
	s.serve(backend{pod: "b1"})
	s.apply("other.yaml", s.service("other", "10.96.0.2", "b2"))
	direct := s.host("ns/b1").Addr4 + ":8080"
	open := func(w route) string {
		t.Helper()
		name := s.a.open(w.protocol, w.domain)
		if w.connected {
			if a := s.a.do(order{Do: "connect", Name: name, To: w.to}); a.Err != "" {
				t.Fatalf("%s: %+v", w, a)
			}
			w.to = ""
		}
		if a := s.a.do(order{Do: "ask", Name: name, To: w.to}); a.Err != "" {
			t.Fatalf("%s: %+v", w, a)
		}
		return name
	}
	over := map[int]route{}
	for _, w := range ways() {
		name := open(w)
		port := s.port(name)
		s.asked(w.String(), "new", w.protocol, port, "b1", "ns/web")
		s.a.do(order{Do: "close", Name: name})
		if w.protocol == "tcp" {
			over[port] = w
		}
	}
	for port, w := range over {
		s.asked(w.String()+", ended", "ended", w.protocol, port, "b1", "ns/web")
	}
	for _, w := range []route{{"tcp", true, 4, direct}, {"udp", true, 4, direct}, {"udp", false, 4, direct}, {"tcp", true, 6, mapped(direct)}} {
		s.asked(w.String(), "new", w.protocol, s.port(open(w)), "b1", "")
	}
	t.Run("one socket, two Services", func(t *testing.T) {
		name := open(route{"udp", false, 4, web4})
		if a := s.a.do(order{Do: "ask", Name: name, To: other4}); a.Text != "b2" {
			t.Fatalf("%+v", a)
		}
		s.asked("first", "new", "udp", s.port(name), "b1", "ns/web")
		s.asked("second", "new", "udp", s.port(name), "b2", "ns/other")
	})
	t.Run("connected anew", func(t *testing.T) { // before anything was sent
		name := s.a.open("udp", 4)
		s.a.do(order{Do: "connect", Name: name, To: web4})
		s.a.do(order{Do: "connect", Name: name, To: direct})
		if a := s.a.do(order{Do: "ask", Name: name}); a.Text != "b1" {
			t.Fatalf("%+v", a)
		}
		s.asked("then the backend itself", "new", "udp", s.port(name), "b1", "")
	})
	t.Run("filter and text", func(t *testing.T) {
		r := s.Weir(s.ctx, "flows", "--last", "1000", "--kind", "new", "--to-service", "ns/other", "-o", "compact")
		if n := strings.Count(r.Stdout, " -> ns/b2:8080 (service ns/other)"); r.Status != 0 || n != 1 || strings.Count(r.Stdout, "\n") != 1 {
			t.Errorf("%+v", r)
		}
	})
}

// A Service whose address another has now is never named for the other, nor the other for it.
func TestServiceAddressesComeAgain(t *testing.T) {
	s := newShop(t)
	at := strings.TrimSuffix(other4, ":80")
	connect := func(protocol string) string {
		t.Helper()
		name := s.a.open(protocol, 4)
		if a := s.a.do(order{Do: "connect", Name: name, To: other4}); a.Err != "" {
			t.Fatalf("%+v", a)
		}
		return name
	}
	ask := func(name string) {
		t.Helper()
		if a := s.a.do(order{Do: "ask", Name: name}); a.Text != "b1" {
			t.Fatalf("%+v", a)
		}
	}
	s.apply("other.yaml", s.service("first", at, "b1"))
	first, mute := connect("tcp"), connect("udp")
	ask(first)
	s.asked("first", "new", "tcp", s.port(first), "b1", "ns/first")
	s.apply("other.yaml", s.service("second", at, "b1"))
	ask(mute) // its backend is the second's, too: nobody ended it
	s.asked("asked for the first, sent when there was the second", "new", "udp", s.port(mute), "b1", "ns/first")
	second := connect("tcp")
	ask(second)
	s.asked("second", "new", "tcp", s.port(second), "b1", "ns/second")

	s.apply("other.yaml", "")
	for range 2 { // many numbers are given out, and a third has the address
		for i := range 4 {
			s.apply("other.yaml", s.service(fmt.Sprint("x", i), "10.96.0.9", "b2"))
		}
		s.apply("other.yaml", s.service("third", at, "b1"))
	}
	s.must("kill", s.KillAgent())
	s.must("start", s.StartAgent(s.ctx))
	s.must("wait", s.Wait(s.ctx))
	third := connect("tcp")
	ask(third)
	s.must("kill", s.KillAgent())
	s.Build("weir-agent", "--map-size", "flows=65536") // other maps, to which flows are taken over
	s.must("start", s.StartAgent(s.ctx))
	s.must("wait", s.Wait(s.ctx))
	ask(third)
	ports := map[string]int{}
	for _, name := range []string{first, second, third} {
		ports[name] = s.port(name)
		s.a.do(order{Do: "close", Name: name})
	}
	for name, want := range map[string]string{first: "ns/first", second: "ns/second", third: "ns/third"} {
		s.asked("to "+want, "ended", "tcp", ports[name], "b1", want)
	}
}

// A denial names the Service whose backend was denied; what named the backend itself does not.
func TestDenialsNameTheServiceAskedFor(t *testing.T) {
	s := newShop(t)
	s.serve(backend{pod: "b1"})
	s.apply("policy.yaml", policy("ns", "p", "  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n"))
	direct := s.host("ns/b1").Addr4 + ":8080"
	tcp := s.a.open("tcp", 4)
	if a := s.a.do(order{Do: "connect", Name: tcp, To: web4}); a.Err == "" {
		t.Fatalf("%+v", a)
	}
	loose := s.a.open("udp", 4)
	for i, to := range []struct{ at, want string }{{web4, "ns/web"}, {direct, ""}, {web4, "ns/web"}, {web4, "ns/web"}, {direct, ""}} {
		if a := s.a.do(order{Do: "ask", Name: loose, To: to.at}); a.Err == "" {
			t.Fatalf("%+v", a)
		}
		s.about("denied", "udp", s.port(loose), "b1", i+1)
		s.asked("to "+to.at, "denied", "udp", s.port(loose), "b1", to.want)
	}
	r := s.Weir(s.ctx, "flows", "--last", "1000", "--kind", "denied", "--protocol", "tcp", "--to-service", "ns/web", "-o", "dict")
	if !strings.Contains(r.Stdout, "SERVICE: ns/web") {
		t.Errorf("%+v", r)
	}
}
