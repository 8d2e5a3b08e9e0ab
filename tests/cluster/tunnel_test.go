package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/control"
	"github.com/weirnet/weir/tests/lab"
)

// TestTunnel: large packets, nodes, hosts, an agent that is dead, a node that moves and one
// that leaves, and what somebody else writes into the tunnel.
func TestTunnel(t *testing.T) {
	p := newPair(t, "--routing", "vxlan")
	web, db := p.add(0, "web", "web"), p.add(1, "db", "db")
	p.enforced()
	for _, n := range p.nodes { // no packet may come from where an answer to it would not go
		p.must(n.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0) }))
	}
	p.routed(&web.Host, &db.Host)
	for _, pod := range []*lab.Pod{web, db} {
		if got := p.mtu(pod); got != "1450" {
			t.Errorf("%s: eth0 has MTU %s, want what fits the tunnel", pod.Name, got)
		}
	}
	p.unmarked(func() {
		p.large(&web.Host, &db.Host)
		p.large(&db.Host, &web.Host)
	})
	p.hosts(web, db)
	p.forged(db)
	p.translated(db)
	p.killed(web, db)
	p.moved(web, db)
	p.uninstalled(web, db)
}

// TestTunnelOverIPv6 carries both families over a network that has the one.
func TestTunnelOverIPv6(t *testing.T) {
	p := &pair{scene: &scene{T: t, Server: control.Start(t, bin)}, pods: map[string]*lab.Pod{}, addresses: [2][]string{{"2001:db8:1::1"}, {"2001:db8:1::2"}}}
	p.up([]string{"--routing", "vxlan"})
	web, db := p.add(0, "web", "web"), p.add(1, "db", "db")
	p.enforced()
	p.routed(&web.Host, &db.Host)
	if got := p.mtu(web); got != "1430" {
		t.Errorf("eth0 has MTU %s, want 1430", got)
	}
	p.large(&web.Host, &db.Host)
	p.makePolicy("db", isolate("db"))
	p.enforced()
	p.probe(&web.Host, &db.Host, lab.Silent)
}

// TestModeIsChanged: pods made under one mode go on under the other, with the connections
// they have, whatever their MTU.
func TestModeIsChanged(t *testing.T) {
	p := newPair(t, "--routing", "native")
	web, db := p.add(0, "web", "web"), p.add(1, "db", "db")
	p.enforced()
	p.routed(&web.Host, &db.Host)
	var conns []net.Conn
	for _, family := range []int{4, 6} {
		conn, err := web.Connect(db.Addr(family), port)
		p.must(err)
		defer conn.Close()
		conns = append(conns, conn)
	}
	for _, mode := range []string{"vxlan", "native"} {
		for _, n := range p.nodes {
			p.must(n.KillAgent())
			n.Flags("--routing", mode)
			p.must(n.StartAgent(p.ctx))
			p.must(n.Wait(p.ctx))
		}
		for _, n := range p.nodes {
			p.until("the routes of mode "+mode, func() bool {
				out, err := n.Run(p.ctx, "ip", "route")
				p.must(err)
				return strings.Contains(out, "encap") == (mode == "vxlan") && strings.Contains(out, "proto 119")
			})
		}
		if got := p.mtu(web); got != "1500" {
			t.Errorf("%s: eth0 has MTU %s: it is the pod's", mode, got)
		}
		p.probe(&web.Host, &db.Host, lab.Answered)
		p.large(&web.Host, &db.Host)
		for _, conn := range conns {
			if err := bulk(conn, 4<<20, 20*time.Second); err != nil {
				t.Errorf("%s: a connection of before, %s: %v", mode, conn.RemoteAddr(), err)
			}
		}
	}
	if out, err := p.nodes[0].Run(p.ctx, "ip", "link", "show", "weir-vxlan"); err == nil {
		t.Errorf("the tunnel's device is left: %s", out)
	}
}

func (p *pair) mtu(pod *lab.Pod) string {
	p.Helper()
	out, err := pod.Run(p.ctx, "ip", "-j", "link", "show", "eth0")
	p.must(err)
	var links []struct{ MTU int }
	p.must(json.Unmarshal([]byte(out), &links))
	return fmt.Sprint(links[0].MTU)
}

// large sends more than a packet holds, both ways, in both families.
func (p *pair) large(from, to *lab.Host) {
	p.Helper()
	for _, family := range []int{4, 6} {
		conn, err := from.Connect(to.Addr(family), port)
		p.must(err)
		if err := bulk(conn, 8<<20, 30*time.Second); err != nil {
			p.Errorf("TCP of 8 MB, %s to %s, IPv%d: %v", from.Name, to.Name, family, err)
		}
		conn.Close()
		// Around the pods' MTU, the network's, and in fragments.
		for _, size := range []int{1300, 1400, 1402, 1422, 1450, 1472, 4000} {
			if err := datagram(from, to.Addr(family), size); err != nil {
				p.Errorf("UDP of %d bytes, %s to %s, IPv%d: %v", size, from.Name, to.Name, family, err)
			}
		}
	}
}

// bulk writes and wants it all back.
func bulk(conn net.Conn, size int, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	sent := bytes.Repeat([]byte("weir"), size/4)
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		failed <- err
	}()
	got := make([]byte, size)
	if n, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("%d bytes of %d came back: %w", n, size, err)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("other bytes came back")
	}
	return <-failed
}

// datagram sends one and wants it back; lost ones are sent again, as the first may be what
// finds out the path's MTU.
func datagram(from *lab.Host, to string, size int) error {
	return from.Do(func() error {
		conn, err := net.Dial("udp", net.JoinHostPort(to, fmt.Sprint(port)))
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 4 {
			if _, err = conn.Write(bytes.Repeat([]byte{'w'}, size)); err != nil {
				continue // EMSGSIZE: it was found out
			}
			if err = conn.SetReadDeadline(time.Now().Add(lab.Patience)); err != nil {
				return err
			}
			var n int
			if n, err = conn.Read(make([]byte, 65536)); err == nil && n == size {
				return nil
			}
		}
		return fmt.Errorf("not in 4 attempts: %w", err)
	})
}

// hosts: what pods and other nodes say to each other is under the addresses of both.
func (p *pair) hosts(web, db *lab.Pod) {
	p.Helper()
	for i, pod := range []*lab.Pod{web, db} {
		other := &p.nodes[1-i].Host
		for f, family := range []int{4, 6} {
			if got := p.seen(&pod.Host, other, p.addresses[1-i][f]); got != pod.Addr(family) {
				p.Errorf("IPv%d: node %s sees pod %s as %s", family, other.Name, pod.Name, got)
			}
			if got := p.seen(other, &pod.Host, pod.Addr(family)); got != p.addresses[1-i][f] {
				p.Errorf("IPv%d: pod %s sees node %s as %s", family, pod.Name, other.Name, got)
			}
		}
	}
}

// seen is the address that a connection comes from, to its other end.
func (p *pair) seen(from, at *lab.Host, addr string) string {
	p.Helper()
	return p.seenAt(from, at, addr, port+1)
}

// seenAt connects to another address and port, which are translated.
func (p *pair) seenAt(from, at *lab.Host, addr string, to int) string {
	p.Helper()
	l, err := at.Listen(port + 1)
	p.must(err)
	defer l.Close()
	accepted := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			accepted <- err.Error()
			return
		}
		defer conn.Close()
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		accepted <- strings.TrimPrefix(host, "::ffff:")
	}()
	conn, err := from.ConnectWithin(addr, to, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return <-accepted
}

// forged: node b says of a packet that it is node a's pod's; the record at its receiver's
// node tells.
func (p *pair) forged(db *lab.Pod) {
	p.Helper()
	victim := p.pods["web"]
	for what, c := range map[string]struct{ src, outer, reason string }{
		"of a pod of the receiver's node": {victim.Addr4, "198.51.100.2", "tunnel source"},
		"of an address that is no pod's":  {"203.0.113.7", "198.51.100.2", "tunnel source"},
		"from a node's other address":     {db.Addr4, "198.51.100.77", "tunnel node"},
	} {
		if c.outer != "198.51.100.2" {
			p.must(p.nodes[1].Address("join", c.outer+"/24"))
		}
		p.must(p.nodes[1].Do(func() error {
			conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(c.outer)}, &net.UDPAddr{IP: net.ParseIP("198.51.100.1"), Port: 8472})
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write(tunnelled(c.src, victim.Addr4))
			return err
		}))
		p.until("a record of a packet "+what, func() bool {
			r := p.nodes[0].Weir(p.ctx, "flows", "--verdict", "dropped", "-o", "json", "--last", "20")
			return strings.Contains(r.Stdout, c.src) && strings.Contains(r.Stdout, c.reason)
		})
	}
}

// tunnelled is what a node's tunnel is to carry: an empty datagram to a pod.
func tunnelled(src, dst string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, 0x7765<<8)
	b = append(b, 2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9, 8, 0) // Ethernet
	ip := append([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0}, net.ParseIP(src).To4()...)
	ip = append(ip, net.ParseIP(dst).To4()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	return append(append(b, ip...), 5000>>8, 5000&0xff, port>>8, port&0xff, 0, 8, 0, 0)
}

// unmarked: tunnel packets bear no mark of what they carry. The kernel looks up the way of each
// that has one, and remembers that of the others.
func (p *pair) unmarked(traffic func()) {
	p.Helper()
	for _, n := range p.nodes {
		p.nft(n, `table inet outer {
			counter seen {}
			counter marked {}
			chain output { type filter hook output priority filter
				udp dport 8472 counter name seen
				udp dport 8472 meta mark != 0 counter name marked
			}
		}`)
	}
	traffic()
	for _, n := range p.nodes {
		out, err := n.Run(p.ctx, "nft", "list", "counters", "table", "inet", "outer")
		p.must(err)
		all, marked, _ := strings.Cut(out, "counter marked")
		if strings.Contains(all, "packets 0 ") || !strings.Contains(marked, "packets 0 ") {
			p.Errorf("%s: tunnel packets, and those with a mark: %s", n.Name, out)
		}
		p.nft(n, "delete table inet outer")
	}
}

// translated: what a node's NAT forwards for a stranger reaches pods under the node's address,
// as a NodePort has it; and no tunnel, where that address would be believed.
func (p *pair) translated(db *lab.Pod) {
	p.Helper()
	a, b := p.nodes[0], p.nodes[1]
	p.nft(a, fmt.Sprintf(`table inet proxy {
		chain pre { type nat hook prerouting priority dstnat
			meta nfproto ipv4 tcp dport 30080 dnat ip to %s:%d
			meta nfproto ipv6 tcp dport 30080 dnat ip6 to [%s]:%d
			meta nfproto ipv4 udp dport 30472 dnat ip to 198.51.100.2:8472
		}
		chain post { type nat hook postrouting priority srcnat; ct status dnat masquerade; }
	}`, db.Addr4, port+1, db.Addr6, port+1))
	for f, family := range []int{4, 6} {
		if got := p.seenAt(a.Outside, &db.Host, a.Addr(family), 30080); got != p.addresses[0][f] {
			p.Errorf("IPv%d: a pod sees what came by another node's NodePort as %s, want that node", family, got)
		}
	}
	forge := func(src string) {
		p.Helper()
		p.must(a.Outside.Do(func() error {
			conn, err := net.Dial("udp", net.JoinHostPort(a.Addr4, "30472"))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write(tunnelled(src, db.Addr4))
			return err
		}))
	}
	heard := func(src string) bool {
		return strings.Contains(b.Weir(p.ctx, "flows", "-o", "json", "--last", "50").Stdout, src)
	}
	forge("10.244.1.201")
	p.nft(a, "delete table ip weir-tunnel") // what it is for shows without it
	forge("10.244.1.202")
	p.until("a stranger's packet out of node b's tunnel, without the guard", func() bool { return heard("10.244.1.202") })
	if heard("10.244.1.201") {
		p.Errorf("a stranger writes to node b's tunnel by node a's NAT")
	}
	p.nft(a, "delete table inet proxy")
}

func (p *pair) nft(n *lab.Node, script string) {
	p.Helper()
	if out, err := n.Run(p.ctx, "nft", script); err != nil {
		p.Fatalf("nft: %v: %s", err, out)
	}
}

// killed: without agents connections go on, new ones come about, and policy holds.
func (p *pair) killed(web, db *lab.Pod) {
	p.Helper()
	client := p.add(0, "client", "client")
	p.makePolicy("db", isolate("db", apps("web")))
	p.enforced()
	conn, err := web.Connect(db.Addr4, port)
	p.must(err)
	defer conn.Close()
	for _, n := range p.nodes {
		p.must(n.KillAgent())
	}
	p.must(bulk(conn, 1<<20, 10*time.Second))
	p.probe(&web.Host, &db.Host, lab.Answered)
	p.probe(&client.Host, &db.Host, lab.Silent)
	p.probe(&p.nodes[0].Host, &db.Host, lab.Silent)
	for _, n := range p.nodes {
		p.must(n.StartAgent(p.ctx))
	}
	p.enforced()
	p.must(bulk(conn, 1<<20, 10*time.Second))
	p.probe(&client.Host, &db.Host, lab.Silent)
	p.deletePolicy("db")
	p.enforced()
}

// moved: node b gets other addresses; then it leaves, and comes back.
func (p *pair) moved(web, db *lab.Pod) {
	p.Helper()
	p.must(p.nodes[1].Address("join", "198.51.100.22/24", "2001:db8:1::22/64"))
	_, err := p.nodes[1].Run(p.ctx, "ip", "addr", "del", "198.51.100.2/24", "dev", "join")
	p.must(err)
	_, err = p.nodes[1].Run(p.ctx, "ip", "addr", "replace", "198.51.100.22/24", "dev", "join") // it went with the first of its network
	p.must(err)
	nodes := p.Admin.CoreV1().Nodes()
	n, err := nodes.Get(p.ctx, "node-b", metav1.GetOptions{})
	p.must(err)
	p.report(n, "198.51.100.22", "2001:db8:1::22")
	p.routed(&web.Host, &db.Host)
	p.until("node b's own address on its tunnel", func() bool {
		return p.seen(&p.nodes[1].Host, &web.Host, web.Addr4) == "198.51.100.22"
	})

	p.must(nodes.Delete(p.ctx, "node-b", metav1.DeleteOptions{}))
	p.until("the way to node b's pods to be gone", func() bool {
		out, err := p.nodes[0].Run(p.ctx, "ip", "route")
		p.must(err)
		return !strings.Contains(out, "10.244.2.0/24")
	})
	// Node b does not know, and goes on sending: nobody hears it.
	if got, err := db.Probe("udp", web.Addr4, port); err != nil || got != lab.Silent {
		p.Errorf("a pod of a node that left: %v, %v", got, err)
	}
	p.addresses[1] = []string{"198.51.100.22", "2001:db8:1::22"}
	p.register(1)
	p.routed(&web.Host, &db.Host)
}

// uninstalled: nothing of the tunnel is left on a node.
func (p *pair) uninstalled(web, db *lab.Pod) {
	p.Helper()
	n := p.nodes[1]
	p.must(n.StopAgent())
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	out, err := n.Run(ctx, n.Binary("weir-agent"), "uninstall", "--cni-conf", p.confs[1], "--bpffs-dir", n.BPFFSDir(), "--state-dir", n.StateDir())
	if err != nil {
		p.Fatalf("uninstall: %v\n%s", err, out)
	}
	for _, show := range [][]string{{"link"}, {"rule"}, {"-6", "rule"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"addr"}} {
		out, err := n.Run(ctx, "ip", show...)
		p.must(err)
		for _, left := range []string{"weir-vxlan", "lookup 119", "proto 119"} {
			if strings.Contains(out, left) {
				p.Errorf("ip %s still has %q:\n%s", strings.Join(show, " "), left, out)
			}
		}
	}
}
