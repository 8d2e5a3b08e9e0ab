package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// refusedAt: the ICMP error of a port that nobody listens at reaches the socket that sent there.
func (p *pair) refusedAt(from, to *lab.Pod) {
	p.Helper()
	for _, family := range families {
		err := from.Do(func() error {
			conn, err := net.Dial("udp", net.JoinHostPort(to.Addr(family), "9"))
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("x")); err != nil {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			_, err = conn.Read(make([]byte, 16))
			return err
		})
		if !errors.Is(err, syscall.ECONNREFUSED) {
			p.Errorf("UDP from %s to a port of %s that nobody listens at, IPv%d: %v, want that it is refused", from.Name, to.Name, family, err)
		}
		if got, err := from.Probe("tcp", to.Addr(family), 9); err != nil || got != lab.Refused {
			p.Errorf("TCP from %s to such a port of %s, IPv%d: %v, %v", from.Name, to.Name, family, got, err)
		}
	}
}

// service: what the node's NAT (kube-proxy's) sends to another node's pod goes by the stack where
// that is, in both directions, under policy.
func (p *pair) service(web, db *lab.Pod) {
	p.Helper()
	const address = "10.96.0.10"
	_, err := p.Admin.CoreV1().Services("shop").Create(p.ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "shop"},
		Spec: corev1.ServiceSpec{ClusterIP: address, Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(port)},
			{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt32(port)},
		}},
	}, create)
	p.must(err)
	name, number, tcp, udp := "tcp", int32(port), corev1.ProtocolTCP, corev1.ProtocolUDP
	second := "udp"
	_, err = p.Admin.DiscoveryV1().EndpointSlices("shop").Create(p.ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "db", Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{db.Addr4}}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &tcp}, {Name: &second, Port: &number, Protocol: &udp}},
	}, create)
	p.must(err)
	p.nft(p.nodes[0], fmt.Sprintf(`table ip proxy {
		chain pre { type nat hook prerouting priority dstnat
			ip daddr %[1]s tcp dport 80 dnat to %[2]s:%[3]d
			ip daddr %[1]s udp dport 80 dnat to %[2]s:%[3]d
		}
	}`, address, db.Addr4, port))
	p.enforced()
	p.forwarded("a Service by the node's NAT", func() {
		for _, protocol := range []string{"tcp", "udp"} {
			if got, err := web.Probe(protocol, address, 80); err != nil || got != lab.Answered {
				p.Errorf("%s to a Service: %v, %v", protocol, got, err)
			}
		}
		conn, err := web.Connect(address, 80)
		p.must(err)
		defer conn.Close()
		if err := bulk(conn, 4<<20, 20*time.Second); err != nil {
			p.Errorf("4 MB of TCP to a Service: %v", err)
		}
	}, [2]bool{true, false}) // at its own node; at the backend's it is a flow like others
	p.makePolicy("db", isolate("db", apps("nobody")))
	p.enforced()
	if got, err := web.Probe("tcp", address, 80); err != nil || got != lab.Silent {
		p.Errorf("a Service whose backend's policy forbids it: %v, %v", got, err)
	}
	p.deletePolicy("db")
	p.enforced()
	p.nft(p.nodes[0], "delete table ip proxy")
}

// revokedPast: policy reaches what goes past the stacks, at either end.
func (p *pair) revokedPast(web, db *lab.Pod) {
	p.Helper()
	p.makePolicy("db", isolate("db", apps("web")))
	p.enforced()
	p.forwarded("revoked and allowed again", func() { p.revoked(web, db) }, neither)
	p.makePolicy("db", isolate("db", apps("nobody")))
	p.enforced()
	p.forwarded("denied", func() { p.probe(&web.Host, &db.Host, lab.Silent) }, neither)
	p.until("a record of what was denied, where that is", func() bool {
		flows, err := p.nodes[1].Flows(p.ctx, "--verdict", "dropped", "--last", "50")
		p.must(err)
		for _, f := range flows {
			x, err := f.Extension()
			p.must(err)
			if f.Source.String() == "shop/web" && f.Destination.String() == "shop/db" && x.Kind == api.FlowDenied && x.Ingress != nil &&
				len(x.Ingress.IsolatedBy) == 1 && x.Ingress.IsolatedBy[0].Name == "db" {
				return true
			}
		}
		return false
	})
	p.deletePolicy("db")
	p.enforced()
}

// outage: no agent is needed, and one that starts again takes over what there is.
func (p *pair) outage(web, db *lab.Pod) {
	p.Helper()
	var conns []net.Conn
	for _, family := range families {
		conn, err := web.Connect(db.Addr(family), port)
		p.must(err)
		defer conn.Close()
		conns = append(conns, conn)
	}
	goOn := func() {
		p.Helper()
		for _, conn := range conns {
			if err := bulk(conn, 1<<20, 20*time.Second); err != nil {
				p.Errorf("%s: %v", conn.RemoteAddr(), err)
			}
		}
		p.probe(&web.Host, &db.Host, lab.Answered)
	}
	for _, n := range p.nodes {
		p.must(n.KillAgent())
	}
	p.forwarded("without agents", goOn, neither)
	for _, n := range p.nodes {
		p.must(n.StartAgent(p.ctx))
	}
	p.forwarded("with new agents", goOn, neither)
	p.enforced()
	p.forwarded("with new agents, after all is compared", goOn, neither)
}

// forgedPast: who says by another device that he is a pod of node b reaches nobody, not as a part of a
// flow that goes past the stack either, where the node's rp_filter, or its tunnel, says so.
func (p *pair) forgedPast(mode string, web, db *lab.Pod) {
	p.Helper()
	a := p.nodes[0]
	set := func(value string) {
		p.Helper()
		p.must(a.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte(value), 0) }))
	}
	command := func(h *lab.Host, args string) {
		p.Helper()
		if out, err := h.Run(p.ctx, "ip", strings.Fields(args)...); err != nil {
			p.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	const from = 7777
	var open, live *net.UDPConn
	p.must(web.Do(func() (err error) {
		if open, err = net.ListenUDP("udp4", &net.UDPAddr{Port: from + 1}); err == nil {
			live, err = net.DialUDP("udp4", &net.UDPAddr{Port: from + 2}, &net.UDPAddr{IP: net.ParseIP(db.Addr4), Port: port})
		}
		return err
	}))
	defer open.Close()
	defer live.Close()
	_, err := live.Write([]byte("begin"))
	p.must(err)
	hears := func(c *net.UDPConn, want string, limit time.Duration) bool {
		p.Helper()
		p.must(c.SetReadDeadline(time.Now().Add(limit)))
		for {
			b := make([]byte, 64)
			n, err := c.Read(b)
			if err != nil {
				return false
			}
			if string(b[:n]) == want {
				return true
			}
		}
	}
	if !hears(live, "begin", 5*time.Second) {
		p.Fatal("UDP between the pods is not answered")
	}
	command(a.Outside, "addr add "+db.Addr4+"/32 dev lo")
	defer command(a.Outside, "addr del "+db.Addr4+"/32 dev lo")
	var hardware string // a node with rp_filter does not answer who asks for it under such an address
	p.must(a.Do(func() error {
		up0, err := net.InterfaceByName("up0")
		if err == nil {
			hardware = up0.HardwareAddr.String()
		}
		return err
	}))
	command(a.Outside, "neigh replace "+a.Addr4+" lladdr "+hardware+" dev up0 nud permanent")
	say := func(text string) {
		p.Helper()
		p.must(a.Outside.Do(func() error {
			for _, s := range []struct{ from, to int }{{from, from + 1}, {port, from + 2}} {
				c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(db.Addr4), Port: s.from}, &net.UDPAddr{IP: net.ParseIP(web.Addr4), Port: s.to})
				if err != nil {
					return err
				}
				_, err = c.Write([]byte(text))
				c.Close()
				if err != nil {
					return err
				}
			}
			return nil
		}))
	}
	defer set("0")
	set("1")
	say("strict")
	if hears(open, "strict", quiet) || hears(live, "strict", quiet) {
		p.Error("a host beyond another device speaks to a pod under the address of another node's")
	}
	set("0")
	say("loose")
	if believed := mode != "vxlan"; hears(open, "loose", quiet) != believed || hears(live, "loose", quiet) != believed {
		p.Errorf("what the node's stack lets pass without rp_filter: want that it arrives: %v", believed)
	}
}

// withdrawn: where something else than Weir's routes may decide, it does; what began past the stack
// goes on.
func (p *pair) withdrawn(web, db *lab.Pod) {
	p.Helper()
	conn, err := web.Connect(db.Addr4, port)
	p.must(err)
	defer conn.Close()
	ip := func(args string) {
		p.Helper()
		out, err := p.nodes[0].Run(p.ctx, "ip", strings.Fields(args)...)
		if err != nil {
			p.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	ip("rule add table 77 priority 99")
	p.passes(0, 0)
	s := p.statusOf(0)
	if all := strings.Join(s.Warnings, "\n"); !strings.Contains(all, "ip rule 99 (from all to all lookup 77)") {
		p.Errorf("the warnings do not say why: %s", all)
	}
	p.forwarded("a rule may decide", func() { p.probe(&web.Host, &db.Host, lab.Answered) }, [2]bool{true, false})
	p.forwarded("a rule may decide about a connection that conntrack never saw", func() { p.must(bulk(conn, 1<<20, 20*time.Second)) }, [2]bool{true, false})
	ip("rule del priority 99")
	p.passes(0, 1)
	p.forwarded("no rule any more", func() { p.probe(&web.Host, &db.Host, lab.Answered) }, neither)
	ip("route add 10.244.2.0/25 via 198.51.100.2")
	p.until("IPv4 to be by the stack", func() bool {
		return strings.Contains(strings.Join(p.hostRouting(0).Why, "\n"), "10.244.2.0/25 in table 254")
	})
	ip("route del 10.244.2.0/25")
	p.passes(0, 1)
	p.forwarded("a connection of before", func() {
		if err := bulk(conn, 1<<20, 20*time.Second); err != nil {
			p.Error(err)
		}
	}, neither)
}

// narrowed: a way that is narrower than pods think tells them, or cuts what they hand over whole.
func (p *pair) narrowed(mode string, web, db *lab.Pod) {
	p.Helper()
	for _, n := range p.nodes {
		out, err := n.Run(p.ctx, "ip", "link", "set", "join", "mtu", "1420")
		if err != nil {
			p.Fatalf("%v: %s", err, out)
		}
	}
	want := "1420"
	if mode == "vxlan" {
		want = "1370" // of 1450
		for _, n := range p.nodes {
			p.until("the tunnel to be as narrow", func() bool {
				out, err := n.Run(p.ctx, "ip", "link", "show", "weir-vxlan")
				p.must(err)
				return strings.Contains(out, "mtu "+want)
			})
		}
	}
	p.passes(0, 1)
	p.passes(1, 1)
	time.Sleep(2 * time.Second) // the ways have it at the next look
	for _, family := range families {
		p.must(p.cut(web, db, family)) // before the pods know how narrow it is
	}
	p.large(&web.Host, &db.Host)
	p.large(&db.Host, &web.Host)
	p.forwarded("TCP that knows", func() { p.streams(web, db) }, neither)
}

// cut sends a datagram in pieces of which some are too long for the way and the last is not, in a flow
// that goes past the stack.
func (p *pair) cut(from, to *lab.Pod, family int) error {
	return from.Do(func() error {
		conn, err := net.Dial("udp", net.JoinHostPort(to.Addr(family), fmt.Sprint(port)))
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, size := range []int{1, 3100} {
			for try := 0; ; try++ {
				if _, err := conn.Write(make([]byte, size)); err != nil {
					return err
				}
				if err := conn.SetReadDeadline(time.Now().Add(lab.Patience)); err != nil {
					return err
				}
				n, err := conn.Read(make([]byte, 65536))
				if err == nil && n == size {
					break
				}
				if try == 3 {
					return fmt.Errorf("a datagram of %d bytes from %s to %s, IPv%d: %w", size, from.Name, to.Name, family, err)
				}
			}
		}
		return nil
	})
}
