package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/lab"
)

// talk is a conversation that one host began with another. A word carries the time when it
// was said: what arrives tells when it left, whatever it waited for on its way.
type talk struct {
	name     string
	protocol string // tcp, udp, icmp
	family   int
	from, to *lab.Host
	port     int // the server's; ICMP's id
	ways     [2]way
	conns    [2]io.Closer // client's, server's
	broken   atomic.Pointer[error]
}

// way is one direction of a talk: the client's words, or the server's.
type way struct {
	speaks  bool // by itself, all the time
	mute    bool // it says no more
	say     func(word []byte) error
	said    atomic.Int64 // when the newest word was, and how many
	words   atomic.Int64
	heard   atomic.Int64 // the newest that arrived, and how many
	arrived atomic.Int64
}

const wordSize = 8

// pause between the words of who speaks by itself.
const pause = 20 * time.Millisecond

var dawn = time.Now()

func clock() int64 { return int64(time.Since(dawn)) }

func (t *talk) String() string {
	return fmt.Sprintf("IPv%d %s -> %s, %s", t.family, t.from.Name, t.to.Name, t.name)
}

func (t *talk) speak(w *way) bool {
	if w.mute {
		return true
	}
	var word [wordSize]byte
	at := clock()
	binary.BigEndian.PutUint64(word[:], uint64(at))
	if !t.note(w.say(word[:])) {
		return false
	}
	w.said.Store(at)
	w.words.Add(1)
	return true
}

func (w *way) hear(word []byte) {
	at := int64(binary.BigEndian.Uint64(word))
	w.arrived.Add(1)
	for was := w.heard.Load(); was < at && !w.heard.CompareAndSwap(was, at); was = w.heard.Load() {
	}
}

// note remembers the first error and reports whether there was none.
func (t *talk) note(err error) bool {
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.broken.CompareAndSwap(nil, &err)
	}
	return err == nil
}

// start lets each end say a word, waits until it is heard, and then those speak that do.
func (e *env) start(t *talk) *talk {
	e.t.Helper()
	for i := range t.ways {
		w := &t.ways[i]
		if !t.speak(w) {
			e.t.Fatalf("%v: %v", t, *t.broken.Load())
		}
		e.eventually(fmt.Sprintf("%v: the first word of end %d arrives", t, i), 10*time.Second, func() bool { return w.arrived.Load() > 0 })
	}
	for i := range t.ways {
		if w := &t.ways[i]; w.speaks {
			go func() {
				for t.speak(w) {
					time.Sleep(pause)
				}
			}()
		}
	}
	e.t.Cleanup(t.close)
	return t
}

func (t *talk) close() {
	for _, c := range t.conns {
		c.Close()
	}
}

// tcpTalk is one connection.
func (e *env) tcpTalk(name string, from, to *lab.Host, family int, clientSpeaks, serverSpeaks bool) *talk {
	e.t.Helper()
	e.ports++
	t := &talk{name: "TCP, " + name, protocol: "tcp", family: family, from: from, to: to, port: portTalk + e.ports}
	l, err := to.Listen(t.port)
	e.must("listen", err)
	defer l.Close()
	client, err := from.ConnectWithin(to.Addr(family), t.port, 10*time.Second)
	e.must("connect", err)
	server, err := l.Accept()
	e.must("accept", err)
	t.conns = [2]io.Closer{client, server}
	for i, c := range []net.Conn{client, server} {
		t.ways[i].say = func(word []byte) error { return second(c.Write(word)) }
		other := &t.ways[1-i]
		go func() {
			word := make([]byte, wordSize)
			for {
				_, err := io.ReadFull(c, word)
				if errors.Is(err, io.EOF) || !t.note(err) {
					return
				}
				other.hear(word)
			}
		}()
	}
	t.ways[0].speaks, t.ways[1].speaks = clientSpeaks, serverSpeaks
	return e.start(t)
}

// hush makes an end, which does not speak by itself, say nothing when it is its turn.
func (t *talk) hush(end int) *talk {
	t.ways[end].mute = true
	return t
}

// hangUp ends the client's half of a connection.
func (t *talk) hangUp() error {
	t.hush(0)
	return t.conns[0].(*net.TCPConn).CloseWrite()
}

// udpTalk goes between two sockets.
func (e *env) udpTalk(name string, from, to *lab.Host, family int, clientSpeaks, serverSpeaks bool) *talk {
	e.t.Helper()
	e.ports++
	t := &talk{name: "UDP, " + name, protocol: "udp", family: family, from: from, to: to, port: portTalk + e.ports}
	at := netip.AddrPortFrom(netip.MustParseAddr(to.Addr(family)), uint16(t.port))
	var client, server *net.UDPConn
	e.must("listen", to.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	e.must("dial", from.Do(func() (err error) {
		client, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.conns = [2]io.Closer{client, server}
	back := client.LocalAddr().(*net.UDPAddr).AddrPort()
	t.ways[0].say = func(word []byte) error { return second(client.Write(word)) }
	t.ways[1].say = func(word []byte) error { return second(server.WriteToUDPAddrPort(word, back)) }
	for i, c := range []*net.UDPConn{client, server} {
		other := &t.ways[1-i]
		go func() {
			word := make([]byte, 64)
			for {
				n, err := c.Read(word)
				if !t.note(err) {
					return
				}
				if n == wordSize {
					other.hear(word)
				}
			}
		}()
	}
	t.ways[0].speaks, t.ways[1].speaks = clientSpeaks, serverSpeaks
	return e.start(t)
}

// icmpTalk sends echo requests, and replies that need no request each: the server's kernel
// has been told (quietICMP) to leave them to us.
func (e *env) icmpTalk(from, to *lab.Host, family int) *talk {
	e.t.Helper()
	e.ports++
	t := &talk{name: "ICMP", protocol: "icmp", family: family, from: from, to: to, port: portTalk + e.ports}
	network, types := "ip4:icmp", [2]byte{8, 0}
	if family == 6 {
		network, types = "ip6:ipv6-icmp", [2]byte{128, 129}
	}
	for i, host := range []*lab.Host{from, to} {
		peer := &net.IPAddr{IP: net.ParseIP([]*lab.Host{to, from}[i].Addr(family))}
		var c net.PacketConn
		e.must("raw socket", host.Do(func() (err error) {
			var lc net.ListenConfig
			c, err = lc.ListenPacket(context.Background(), network, host.Addr(family))
			return err
		}))
		t.conns[i] = c
		t.ways[i].speaks = true
		t.ways[i].say = func(word []byte) error { return second(c.WriteTo(echoMessage(types[i], uint16(t.port), word), peer)) }
		other, comes := &t.ways[1-i], types[1-i]
		go func() {
			b := make([]byte, 256)
			for {
				n, _, err := c.ReadFrom(b)
				if !t.note(err) {
					return
				}
				if n == 8+wordSize && b[0] == comes && int(binary.BigEndian.Uint16(b[4:])) == t.port {
					other.hear(b[8:])
				}
			}
		}()
	}
	return e.start(t)
}

func echoMessage(typ byte, id uint16, word []byte) []byte {
	m := append([]byte{typ, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}, word...)
	if typ < 128 { // the kernel fills in IPv6's
		sum := uint32(0)
		for i := 0; i < len(m); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(m[i:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(m[2:], ^uint16(sum+sum>>16))
	}
	return m
}

// quietICMP stops a host's kernel from answering echo requests.
func (e *env) quietICMP(h *lab.Host) {
	e.t.Helper()
	e.sysctl(h, "net/ipv4/icmp_echo_ignore_all", "1")
	e.sysctl(h, "net/ipv6/icmp/echo_ignore_all", "1")
}

// sysctl sets one of a host's own.
func (e *env) sysctl(h *lab.Host, name, value string) {
	e.t.Helper()
	e.must("sysctl", h.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }))
}

// retransmits is what the kernel counted at both ends of a TCP talk.
func (e *env) retransmits(t *talk) (n [2]uint32) {
	e.t.Helper()
	for i, c := range t.conns {
		raw, err := c.(*net.TCPConn).SyscallConn()
		e.must("socket", err)
		e.must("socket", raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			e.must("TCP_INFO", err)
			n[i] = info.Total_retrans
		}))
	}
	return n
}

// silence: of what was said after at, nothing arrives, though it was said.
func (e *env) silence(what string, at int64, talks ...*talk) {
	e.t.Helper()
	for _, t := range talks {
		for i := range t.ways {
			if w := &t.ways[i]; !w.speaks && !t.speak(w) {
				e.t.Errorf("%s: %v: %v", what, t, *t.broken.Load())
			}
		}
	}
	since := make([][2]int64, len(talks))
	for k, t := range talks {
		since[k] = [2]int64{t.ways[0].words.Load(), t.ways[1].words.Load()}
	}
	e.eventually(what+": enough is said", time.Minute, func() bool {
		for k, t := range talks {
			for i := range t.ways {
				if w := &t.ways[i]; w.speaks && w.words.Load() < since[k][i]+5 {
					return false
				}
			}
		}
		return true
	})
	time.Sleep(100 * time.Millisecond) // for what passed by mistake to be read
	for _, t := range talks {
		for i := range t.ways {
			if w := &t.ways[i]; w.heard.Load() > at {
				e.t.Errorf("%s: %v: a word of end %d, said %v after the change, arrived", what, t, i, time.Duration(w.heard.Load()-at))
			}
		}
	}
}

// flow: everybody is heard, with something said after at.
func (e *env) flow(what string, at int64, talks ...*talk) {
	e.t.Helper()
	newest := make([][2]int64, len(talks))
	for k, t := range talks {
		for i := range t.ways {
			newest[k][i] = at
			w := &t.ways[i]
			if w.mute {
				newest[k][i] = -1
			} else if !w.speaks {
				if !t.speak(w) {
					e.t.Fatalf("%s: %v: %v", what, t, *t.broken.Load())
				}
				newest[k][i] = w.said.Load() - 1
			}
		}
	}
	for k, t := range talks {
		for i := range t.ways {
			e.eventually(fmt.Sprintf("%s: %v: end %d is heard", what, t, i), 30*time.Second, func() bool {
				return t.ways[i].heard.Load() > newest[k][i]
			})
		}
		if err := t.broken.Load(); err != nil {
			e.t.Fatalf("%s: %v: broken: %v", what, t, *err)
		}
	}
}
