package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// strict is what kube-proxy has on every node: what conntrack takes for no part of a connection it
// knows is dropped. seen counts what the node's stack forwards between pods.
const strict = `table inet strict {
	counter seen {}
	counter invalid {}
	chain forward { type filter hook forward priority filter
		ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 counter name seen
		ip6 saddr fd44::/16 ip6 daddr fd44::/16 counter name seen
		ct state invalid counter name invalid drop
	}
}`

var countedPackets = regexp.MustCompile(`packets (\d+)`)

// counted is how often a node's stack did something of strict.
func (p *pair) counted(n *lab.Node, counter string) string {
	p.Helper()
	out, err := n.Run(p.ctx, "nft", "list", "counter", "inet", "strict", counter)
	p.must(err)
	return countedPackets.FindStringSubmatch(out)[1]
}

// forwarded runs traffic and holds the nodes to whether their stacks forward it.
func (p *pair) forwarded(what string, traffic func(), byStack [2]bool) {
	p.Helper()
	var before [2]string
	for i, n := range p.nodes {
		before[i] = p.counted(n, "seen")
	}
	traffic()
	for i, n := range p.nodes {
		if after := p.counted(n, "seen"); (after != before[i]) != byStack[i] {
			p.Errorf("%s: the stack of %s forwards %s packets after %s, want any: %v", what, nodeNames[i], after, before[i], byStack[i])
		}
		if bad := p.counted(n, "invalid"); bad != "0" && p.strictly {
			p.Errorf("%s: conntrack of %s took %s packets for invalid", what, nodeNames[i], bad)
		}
	}
}

// passes waits until a node has as many others reached by BPF.
func (p *pair) passes(i, nodes int) {
	p.Helper()
	p.until(fmt.Sprintf("%s to reach pods of %d nodes by BPF", nodeNames[i], nodes), func() bool {
		s := p.hostRouting(i)
		return s.Nodes == nodes && s.Others == 1 && (s.Path == api.PathBPF) == (nodes > 0)
	})
	p.must(p.nodes[i].Wait(p.ctx)) // status knows before the programs do
}

// path is that of the flow to a port, as a node's records say.
func (p *pair) path(i int, to *lab.Pod, protocol string, port int) (path string) {
	p.Helper()
	p.until(fmt.Sprintf("a record of %s of the flow to %s port %d", nodeNames[i], to.Name, port), func() bool {
		flows, err := p.nodes[i].Flows(p.ctx, "--last", "200")
		p.must(err)
		for _, f := range flows {
			name, at := f.Port()
			if f.Destination.String() == "shop/"+to.PodName && name == protocol && at == port {
				x, err := f.Extension()
				p.must(err)
				path = x.Path
			}
		}
		return path != ""
	})
	return path
}

var (
	nodeNames = [2]string{"node-a", "node-b"}
	neither   = [2]bool{false, false}
	families  = []int{4, 6}
)

// TestHostRouting: pods of two nodes reach each other past both nodes' stacks, with all that may
// come of a flow, and nothing that conntrack would call invalid.
func TestHostRouting(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, "--routing", mode)
			p.strict()
			web, db := p.add(0, "web", "web"), p.add(1, "db", "db")
			p.enforced()
			p.routed(&web.Host, &db.Host)
			p.passes(0, 1)
			p.passes(1, 1)
			p.forwarded("TCP, UDP and echo, both ways", func() {
				for _, ends := range [][2]*lab.Pod{{web, db}, {db, web}} {
					p.probe(&ends[0].Host, &ends[1].Host, lab.Answered)
					for _, family := range families {
						if got, err := ends[0].Probe("icmp", ends[1].Addr(family), 0); err != nil || got != lab.Answered {
							p.Errorf("echo %s -> %s IPv%d: %v, %v", ends[0].Name, ends[1].Name, family, got, err)
						}
					}
				}
			}, neither)
			for i, to := range []*lab.Pod{db, web} {
				for node := range p.nodes {
					if got := p.path(node, to, "tcp", port); got != api.PathBPF {
						p.Errorf("the record of %s says of the flow to %s: path %s", nodeNames[node], nodeNames[1-i], got)
					}
				}
			}
			p.forwarded("8 MB of TCP", func() { p.streams(web, db) }, neither)
			p.forwarded("errors", func() { p.refusedAt(web, db); p.refusedAt(db, web) }, neither)
			p.large(&web.Host, &db.Host) // fragments go by the stack
			p.large(&db.Host, &web.Host)
			p.service(web, db)
			p.revokedPast(web, db)
			p.outage(web, db)
			p.forgedPast(mode, web, db)
			p.withdrawn(web, db)
			p.narrowed(mode, web, db)
		})
	}
}

// TestHostRoutingOfOneNode: each node chooses for itself.
func TestHostRoutingOfOneNode(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, "--routing", mode)
			p.strict()
			web, db := p.add(0, "web", "web"), p.add(1, "db", "db")
			p.enforced()
			p.routed(&web.Host, &db.Host)
			p.passes(0, 1)
			p.passes(1, 1)
			var conns []net.Conn
			open := func() {
				p.Helper()
				for _, ends := range [][2]*lab.Pod{{web, db}, {db, web}} {
					for _, family := range families {
						conn, err := ends[0].Connect(ends[1].Addr(family), port)
						p.must(err)
						p.Cleanup(func() { conn.Close() })
						conns = append(conns, conn)
					}
				}
			}
			open()
			goOn := func() {
				p.Helper()
				for _, conn := range conns {
					if err := bulk(conn, 1<<20, 20*time.Second); err != nil {
						p.Errorf("a connection of before, %s: %v", conn.RemoteAddr(), err)
					}
				}
			}
			set := func(i int, on bool) {
				p.Helper()
				p.must(p.nodes[i].KillAgent())
				p.forwarded("no agent on "+nodeNames[i], goOn, neither)
				p.nodes[i].Flags(fmt.Sprintf("--bpf-host-routing=%v", on))
				p.must(p.nodes[i].StartAgent(p.ctx))
				p.enforced()
			}
			set(1, false)
			p.forwarded("connections of before keep their path", goOn, neither)
			if s := p.hostRouting(1); s.Path != api.PathStack || len(s.Why) != 1 || s.Why[0] != "--bpf-host-routing=false" {
				p.Errorf("status says %+v", s)
			}
			p.forwarded("one node by its stack", func() {
				p.probe(&web.Host, &db.Host, lab.Answered)
				p.probe(&db.Host, &web.Host, lab.Answered)
				p.refusedAt(web, db)
				p.refusedAt(db, web)
			}, [2]bool{false, true})
			p.large(&web.Host, &db.Host)
			p.large(&db.Host, &web.Host)
			conns = nil
			open()
			p.must(p.nodes[1].KillAgent())
			p.nodes[1].Flags("--bpf-host-routing=true")
			p.must(p.nodes[1].StartAgent(p.ctx))
			p.enforced()
			p.passes(1, 1)
			p.forwarded("those begun by the stack stay there", goOn, [2]bool{false, true})
			p.forwarded("new ones do not", func() { p.probe(&web.Host, &db.Host, lab.Answered) }, neither)
		})
	}
}

// TestHostRoutingUpgrade: an agent whose maps are laid out in another way takes over, and the first
// takes over again; no connection notices.
func TestHostRoutingUpgrade(t *testing.T) {
	const otherLayout = "weir-agent-other-layout"
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, "--routing", mode)
			if _, err := os.Stat(p.nodes[0].Binary(otherLayout)); err != nil {
				t.Fatalf("run `make build-other-layout` first: %v", err)
			}
			p.strict()
			web, db := p.add(0, "web", "web"), p.add(1, "db", "db")
			p.enforced()
			p.routed(&web.Host, &db.Host)
			p.passes(0, 1)
			p.passes(1, 1)
			var conns []net.Conn
			for _, ends := range [][2]*lab.Pod{{web, db}, {db, web}} {
				for _, family := range families {
					conn, err := ends[0].Connect(ends[1].Addr(family), port)
					p.must(err)
					defer conn.Close()
					conns = append(conns, conn)
				}
			}
			flags := func(i int) []string {
				return []string{"--cni-conf", p.confs[i], "--uplink", "up0", "--uplink", "join", "--routing", mode}
			}
			for _, binary := range []string{otherLayout, "weir-agent"} {
				for i, n := range p.nodes {
					p.must(n.KillAgent())
					n.Build(binary, flags(i)...)
					p.must(n.StartAgent(p.ctx))
					p.must(n.Wait(p.ctx))
					p.passes(i, 1)
					p.forwarded(binary+" on "+nodeNames[i], func() {
						for _, conn := range conns {
							if err := bulk(conn, 1<<20, 20*time.Second); err != nil {
								p.Errorf("%s on %s: %s: %v", binary, nodeNames[i], conn.RemoteAddr(), err)
							}
						}
						p.probe(&web.Host, &db.Host, lab.Answered)
					}, neither)
				}
			}
		})
	}
}

// strict has both nodes drop what conntrack calls invalid, from now on.
func (p *pair) strict() {
	p.Helper()
	p.strictly = true
	for _, n := range p.nodes {
		p.nft(n, strict)
	}
}

func (p *pair) hostRouting(i int) api.HostRoutingStatus {
	p.Helper()
	s := p.statusOf(i)
	if s.HostRouting == nil {
		p.Fatalf("%s: status says nothing of host routing", nodeNames[i])
	}
	return *s.HostRouting
}

func (p *pair) statusOf(i int) (s api.Status) {
	p.Helper()
	r := p.nodes[i].Weir(p.ctx, "status", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		p.Fatalf("%s: %v: %s", nodeNames[i], err, r.Stderr)
	}
	return s
}

func (p *pair) streams(from, to *lab.Pod) {
	p.Helper()
	for _, family := range families {
		conn, err := from.Connect(to.Addr(family), port)
		p.must(err)
		if err := bulk(conn, 8<<20, 30*time.Second); err != nil {
			p.Errorf("IPv%d: %v", family, err)
		}
		conn.Close()
	}
}

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
