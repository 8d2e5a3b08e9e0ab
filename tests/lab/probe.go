package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Answer is what a probe met.
type Answer int

// Answers.
const (
	Silent   Answer = iota // nothing came back in time: a policy's drop
	Answered               // the other side spoke
	Refused                // a reset, or "unreachable": it was reached, nobody listens
)

func (a Answer) String() string { return [...]string{"silent", "answered", "refused"}[a] }

// Patience of a probe: how long silence must last.
const Patience = 700 * time.Millisecond

// Probe sends to an address from within the namespace and waits for the answer. protocol
// is tcp (a connection made is an answer), udp (needs Serve on the other side), sctp (needs
// ServeSCTP there) or icmp (the port is ignored).
func (h *Host) Probe(protocol, addr string, port int) (Answer, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return Silent, fmt.Errorf("probe from %s: %w", h.Name, err)
	}
	to := netip.AddrPortFrom(ip, uint16(port))
	answer := Silent
	err = h.Do(func() error {
		switch protocol {
		case "tcp":
			answer, err = probeTCP(to)
		case "udp":
			answer, err = probeUDP(to)
		case "sctp":
			answer, err = probeSCTP(to)
		case "icmp":
			answer, err = probeICMP(ip)
		default:
			err = fmt.Errorf("probe protocol %q", protocol)
		}
		return err
	})
	if err != nil {
		return answer, fmt.Errorf("probe %s %s from %s: %w", protocol, to, h.Name, err)
	}
	return answer, nil
}

func probeTCP(to netip.AddrPort) (Answer, error) {
	conn, err := dial(to, Patience)
	if err != nil {
		return judge(err)
	}
	defer conn.Close()
	return Answered, nil
}

// dial connects from the thread's namespace.
func dial(to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: limit}
	d.SetMultipathTCP(false)
	return d.Dial("tcp", to.String())
}

func probeUDP(to netip.AddrPort) (Answer, error) {
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		return judge(err)
	}
	defer conn.Close()
	return exchange(conn)
}

// exchange says something and waits for it to come back.
func exchange(conn net.Conn) (Answer, error) {
	if _, err := conn.Write([]byte("weir?")); err != nil {
		return judge(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(Patience))
	if _, err := conn.Read(make([]byte, 64)); err != nil {
		return judge(err)
	}
	return Answered, nil
}

// Judge says what a connection's error means; nil is an answer.
func Judge(err error) (Answer, error) {
	if err == nil {
		return Answered, nil
	}
	return judge(err)
}

// judge says what an error means to a probe.
func judge(err error) (Answer, error) {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Silent, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EACCES):
		return Refused, nil
	}
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return Silent, nil
	}
	return Silent, err
}

// probeICMP sends one echo request by a raw socket and waits for its reply.
func probeICMP(to netip.Addr) (Answer, error) {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	conn, err := net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return judge(err)
	}
	defer conn.Close()
	id := uint16(time.Now().UnixNano())
	message := []byte{request, 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(message[4:], id)
	if to.Is4() { // the kernel fills in IPv6's
		binary.BigEndian.PutUint16(message[2:], checksum(message))
	}
	if _, err := conn.Write(message); err != nil {
		return judge(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(Patience))
	for {
		got := make([]byte, 256)
		n, _, err := conn.ReadFrom(got) // without the IPv4 header, which Read leaves
		if err != nil {
			return judge(err)
		}
		if n >= 8 && got[0] == reply && binary.BigEndian.Uint16(got[4:]) == id {
			return Answered, nil
		}
	}
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Serve answers on ports of the namespace, TCP and UDP, both families: what comes in goes
// back. It ends with ctx.
func (h *Host) Serve(ctx context.Context, ports ...int) error {
	return h.Do(func() error {
		for _, port := range ports {
			if err := serve(ctx, fmt.Sprintf("[::]:%d", port)); err != nil {
				return fmt.Errorf("serve port %d in %s: %w", port, h.Name, err)
			}
		}
		return nil
	})
}

func serve(ctx context.Context, at string) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", at)
	if err != nil {
		return err
	}
	u, err := lc.ListenPacket(ctx, "udp", at)
	if err != nil {
		l.Close()
		return err
	}
	context.AfterFunc(ctx, func() { l.Close(); u.Close() })
	go accept(ctx, l)
	go echo(u)
	return nil
}

func accept(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		forget := context.AfterFunc(ctx, func() { conn.Close() })
		go func() {
			_, _ = io.Copy(conn, conn)
			conn.Close()
			forget()
		}()
	}
}

func echo(u net.PacketConn) {
	b := make([]byte, 65536)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = u.WriteTo(b[:n], from)
	}
}

// Connect opens a TCP connection from within the namespace.
func (h *Host) Connect(addr string, port int) (net.Conn, error) {
	return h.ConnectWithin(addr, port, Patience)
}

// ConnectWithin is Connect with a limit of its own.
func (h *Host) ConnectWithin(addr string, port int, limit time.Duration) (net.Conn, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = h.Do(func() error {
		conn, err = dial(netip.AddrPortFrom(ip, uint16(port)), limit)
		return err
	})
	return conn, err
}

// Listen opens a TCP listener in the namespace.
func (h *Host) Listen(port int) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	return l, err
}

// NetnsExists reports whether a namespace of that name is there.
func NetnsExists(name string) bool {
	var st unix.Stat_t
	return unix.Stat(netnsDir+"/"+name, &st) == nil
}
