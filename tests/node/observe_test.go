package node

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/lab"
)

// tcpInfo is what `ss -ti` reads.
func (e *env) tcpInfo(c net.Conn) (info *unix.TCPInfo) {
	e.t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	e.must("socket", err)
	e.must("control", raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	e.must("TCP_INFO", err)
	return info
}

// TestHowAConnectionWent: the end of a flow has each socket's round-trip time and what it sent
// again, as the sockets themselves say it.
func TestHowAConnectionWent(t *testing.T) {
	deny := policy("ns", "deny", "  podSelector: {matchLabels: {app: b}}\n  policyTypes: [Ingress]\n")
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	for _, family := range families {
		at := e.host("ns/b")
		l, err := at.Listen(portServed)
		e.must("listen", err)
		c, err := e.host("ns/a").Connect(at.Addr(family), portServed)
		e.must("connect", err)
		s, err := l.Accept()
		e.must("accept", err)
		buf := make([]byte, 16)
		talk := func() {
			t.Helper()
			_, err := c.Write([]byte("x"))
			e.must("write", err)
			_, err = s.Read(buf)
			e.must("read", err)
			_, err = s.Write([]byte("y"))
			e.must("write", err)
			_, err = c.Read(buf)
			e.must("read", err)
		}
		for range 20 {
			talk()
		}
		e.apply("deny.yaml", deny)
		_, err = c.Write([]byte("lost"))
		e.must("write", err)
		e.eventually("segments are sent again", 20*time.Second, func() bool { return e.tcpInfo(c).Total_retrans >= 2 })
		e.must("remove", e.Remove("deny.yaml"))
		e.must("wait", e.Wait(e.ctx))
		_, err = s.Read(buf)
		e.must("what was lost comes", err)
		for range 3 {
			talk()
		}
		client, server := e.tcpInfo(c), e.tcpInfo(s)
		port := c.LocalAddr().(*net.TCPAddr).Port
		c.Close()
		s.Close()
		l.Close()
		x := e.recordFrom("ended", "tcp", port)
		if x.TCPSource == nil || x.TCPDestination == nil {
			t.Fatalf("IPv%d: %+v", family, x)
		}
		if got, want := x.TCPSource.Retransmits, uint64(client.Total_retrans); got != want {
			t.Errorf("IPv%d: the client sent %d again, its socket says %d", family, got, want)
		}
		if got, want := x.TCPDestination.Retransmits, uint64(server.Total_retrans); got != want {
			t.Errorf("IPv%d: the server sent %d again, its socket says %d", family, got, want)
		}
		for _, end := range []struct {
			got  float64
			want uint32
		}{{x.TCPSource.RTT, client.Rtt}, {x.TCPDestination.RTT, server.Rtt}} {
			if want := float64(end.want) / 1e6; end.got < want/3 || end.got > want*3 { // the last segments count, too
				t.Errorf("IPv%d: RTT %v s, the socket says %v", family, end.got, want)
			}
		}
	}
}

// snmp is a counter of a namespace's /proc/net/snmp, e.g. Udp NoPorts.
func (e *env) snmp(h *lab.Host, protocol, counter string) (n uint64) {
	e.t.Helper()
	var text []byte
	e.must("read counters", h.Do(func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/snmp"); return err }))
	var names []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if f[0] != protocol+":" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i := range f {
			if names[i] == counter {
				_, err := fmt.Sscan(f[i], &n)
				e.must("read "+f[i], err)
				return n
			}
		}
	}
	e.t.Fatalf("no %s %s", protocol, counter)
	return 0
}

// TestKernelsDrops: what the kernel drops of a pod's packets is told with the kernel's reason,
// and counted exactly, whatever part of it is recorded.
func TestKernelsDrops(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	a, b := e.host("ns/a"), e.host("ns/b")
	before := e.status().Drops
	const refused, flood = 5, 1000
	was := e.snmp(b, "Udp", "NoPorts")
	send := func(n, port int) {
		t.Helper()
		e.must("send", a.Do(func() error {
			c, err := net.ListenUDP("udp4", nil)
			if err != nil {
				return err
			}
			defer c.Close()
			for range n {
				if _, err := c.WriteToUDP([]byte("x"), &net.UDPAddr{IP: net.ParseIP(b.Addr(4)), Port: port}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	e.check(probe{"ns/a", "ns/b", "icmp", 0, yes}) // by a raw socket, which gets a copy of the reply
	if n := e.status().Drops["kernel: NO_SOCKET"] - before["kernel: NO_SOCKET"]; n > 0 {
		t.Errorf("%d packets dropped, where pings were answered", n)
	}
	send(refused, 9999)
	e.eventually("records of what no socket wanted", 5*time.Second, func() bool {
		n := 0
		for _, f := range e.flows("--last", "1000", "--verdict", "dropped", "--port", "9999") {
			x := e.extension(f)
			if x.Reason == "kernel" && x.KernelReason == "NO_SOCKET" && f.Destination.String() == "ns/b" && f.Source.String() == "ns/a" && f.IP.Source == a.Addr(4) {
				n++
			}
		}
		return n == refused
	})
	send(flood, 9998)
	e.eventually("all are counted", 5*time.Second, func() bool {
		return e.status().Drops["kernel: NO_SOCKET"]-before["kernel: NO_SOCKET"] == refused+flood
	})
	if n := e.snmp(b, "Udp", "NoPorts") - was; n != refused+flood {
		t.Errorf("the pod's own counter says %d, sent were %d", n, refused+flood)
	}

	// A socket that is full.
	server, err := listenSmall(b, 9997)
	e.must("listen", err)
	defer server.Close()
	full := e.snmp(b, "Udp", "RcvbufErrors")
	send(flood, 9997)
	want := e.snmp(b, "Udp", "RcvbufErrors") - full
	if want == 0 {
		t.Fatal("the socket never was full")
	}
	e.eventually("all that found the socket full are counted", 5*time.Second, func() bool {
		got := e.status().Drops
		return got["kernel: SOCKET_RCVBUFF"]+got["kernel: PROTO_MEM"] == want
	})

	// An error that ends a connection has been told to its socket; the copy that nobody reads is no drop.
	const nowhere = "198.51.100.7"
	_, err = e.Run(e.ctx, "ip", "route", "add", "prohibit", nowhere)
	e.must("route", err)
	if got, err := a.Probe("tcp", nowhere, 80); got != lab.Refused || err != nil {
		t.Fatalf("where the node prohibits it: %v %v", got, err)
	}
	counted := e.status().Drops["kernel: NO_SOCKET"]
	send(1, 9996)
	e.eventually("what comes after it is counted", 5*time.Second, func() bool {
		return e.status().Drops["kernel: NO_SOCKET"] == counted+1
	})
	for reason, n := range e.status().Drops {
		if strings.Contains(reason, "PURGE") {
			t.Errorf("%d drops for %s", n, reason)
		}
	}
}

func listenSmall(h *lab.Host, port int) (c *net.UDPConn, err error) {
	err = h.Do(func() (err error) {
		if c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port}); err != nil {
			return err
		}
		return c.SetReadBuffer(4096)
	})
	return c, err
}

// TestKernelsDropsOnTheWay: packets that the kernel finds broken, or has no way for, are told of
// as those of the pod that they came from or went to.
func TestKernelsDropsOnTheWay(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	a, b := e.host("ns/a"), e.host("ns/b")
	out, err := e.Run(e.ctx, "ip", "route", "del", "default")
	e.must("route: "+out, err)
	const each = 5
	source := netip.MustParseAddr(a.Addr(4)).AsSlice()
	send := func(to string, protocol byte, segment []byte) {
		t.Helper()
		address := netip.MustParseAddr(to)
		packet := append([]byte{0x45, 0, 0, byte(20 + len(segment)), 0, 1, 0, 0, 64, protocol, 0, 0}, append(append(source, address.AsSlice()...), segment...)...)
		e.must("send", a.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for range each {
				if err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: address.As4()}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for _, c := range []struct {
		what, to, reason string
		protocol         byte
		port             int
		segment          []byte
	}{
		{"TCP with a wrong checksum", b.Addr(4), "TCP_CSUM", unix.IPPROTO_TCP, portHTTP,
			[]byte{0x90, 0x01, portHTTP >> 8, portHTTP & 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0xba, 0xad, 0, 0}},
		{"datagrams with a wrong checksum", b.Addr(4), "UDP_CSUM", unix.IPPROTO_UDP, portHTTP,
			[]byte{0x90, 0x02, portHTTP >> 8, portHTTP & 0xff, 0, 9, 0xba, 0xad, 'x'}},
		{"where there is no way to", "203.0.113.7", "IP_INNOROUTES", unix.IPPROTO_UDP, 53,
			[]byte{0x90, 0x03, 0, 53, 0, 9, 0, 0, 'x'}},
	} {
		name := "kernel: " + c.reason
		before := e.status().Drops[name]
		send(c.to, c.protocol, c.segment)
		e.eventually(fmt.Sprintf("%s is counted (%v)", c.what, e.status().Drops), 5*time.Second, func() bool { return e.status().Drops[name]-before == each })
		e.eventually("records of "+c.what, 5*time.Second, func() bool {
			n := 0
			for _, f := range e.flows("--last", "1000", "--verdict", "dropped", "--to-port", fmt.Sprint(c.port)) {
				if x := e.extension(f); x.KernelReason == c.reason && f.IP.Source == a.Addr(4) && f.IP.Destination == c.to && f.Source.String() == "ns/a" {
					n++
				}
			}
			return n == each
		})
	}
}
