package node

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/lab"
)

// A process of a pod is this test's binary again: a network namespace is a thread's, a
// cgroup a process's. It opens sockets as it is told and says what they met.
const processCgroup = "WEIRT_PROCESS_CGROUP"

func TestMain(m *testing.M) {
	if cgroup := os.Getenv(processCgroup); cgroup != "" {
		if err := serveOrders(cgroup, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(openerCgroup) != "" {
		if err := takeSteps(os.Args[1:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// order is one thing to do with the socket of a name.
type order struct {
	Do       string // open, close, connect, ask, peer, local
	Name     string
	Protocol string // tcp, mptcp or udp
	Domain   int    // 4 or 6; an IPv6 socket is given v4-mapped addresses for IPv4
	To       string // address and port; of ask: where the datagram goes, "" = where the socket is connected
}

// answer is what came of it.
type answer struct {
	Text string // what the other side says it is
	Peer string // getpeername, or who the datagram came from; of local: getsockname
	Err  string
	Took time.Duration
}

func serveOrders(cgroup string, in io.Reader, out io.Writer) error {
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return err
	}
	open := map[string]*talker{}
	lines := bufio.NewScanner(in)
	replies := json.NewEncoder(out)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		began := time.Now()
		a, err := obey(open, o)
		if a.Took = time.Since(began); err != nil {
			a.Err = err.Error()
			var errno unix.Errno
			if errors.As(err, &errno) {
				a.Err = unix.ErrnoName(errno)
			}
		}
		if err := replies.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

// talker is a socket.
type talker struct {
	fd, domain int
}

func obey(open map[string]*talker, o order) (a answer, err error) {
	t := open[o.Name]
	switch o.Do {
	case "open":
		if t != nil {
			unix.Close(t.fd)
		}
		t, err = openTalker(o)
		open[o.Name] = t
		return a, err
	case "connect":
		if err := unix.Connect(t.fd, t.sockaddr(o.To)); err != nil {
			return a, err
		}
		return t.peer()
	case "peer":
		return t.peer()
	case "local":
		sa, err := unix.Getsockname(t.fd)
		return answer{Peer: named(sa)}, err
	case "close":
		delete(open, o.Name)
		return a, unix.Close(t.fd)
	case "ask":
		return t.ask(o.To)
	}
	return a, fmt.Errorf("no order %q", o.Do)
}

func openTalker(o order) (*talker, error) {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if o.Domain == 6 {
		domain = unix.AF_INET6
	}
	if o.Protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	protocol := 0
	if o.Protocol == "mptcp" {
		protocol = unix.IPPROTO_MPTCP
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, err
	}
	limit := unix.Timeval{Sec: 5}
	return &talker{fd, domain}, errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
}

func (t *talker) sockaddr(to string) unix.Sockaddr {
	at := netip.MustParseAddrPort(to)
	if t.domain == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

// named is an address as the socket's owner gets it; v4-mapped ones stay as they are.
func named(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	}
	return ""
}

func (t *talker) peer() (a answer, err error) {
	sa, err := unix.Getpeername(t.fd)
	return answer{Peer: named(sa)}, err
}

func (t *talker) ask(to string) (a answer, err error) {
	if to == "" {
		_, err = unix.Write(t.fd, []byte("who?"))
	} else {
		err = unix.Sendto(t.fd, []byte("who?"), 0, t.sockaddr(to))
	}
	if err != nil {
		return a, err
	}
	b := make([]byte, 64)
	n, from, err := unix.Recvfrom(t.fd, b, 0)
	if err != nil {
		return a, err
	}
	return answer{Text: string(b[:n]), Peer: named(from)}, nil
}

// process is a process of a pod, or of whoever else lives in a namespace.
type process struct {
	t       *testing.T
	in      *json.Encoder
	out     *json.Decoder
	sockets int
}

// startProcess starts one in a network namespace and a cgroup.
func startProcess(t *testing.T, h *lab.Host, cgroup string) *process {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), processCgroup+"="+cgroup)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return &process{t: t, in: json.NewEncoder(in), out: json.NewDecoder(out)}
}

func (p *process) do(o order) (a answer) {
	p.t.Helper()
	if err := p.in.Encode(o); err != nil {
		p.t.Fatal(err)
	}
	if err := p.out.Decode(&a); err != nil {
		p.t.Fatal(err)
	}
	return a
}

// open opens a socket and returns its name.
func (p *process) open(protocol string, domain int) string {
	p.t.Helper()
	p.sockets++
	name := fmt.Sprint(p.sockets)
	if a := p.do(order{Do: "open", Name: name, Protocol: protocol, Domain: domain}); a.Err != "" {
		p.t.Fatalf("open %s socket: %s", protocol, a.Err)
	}
	return name
}

// connected opens a socket, connects it and asks who is there.
func (p *process) connected(protocol string, domain int, to string) answer {
	p.t.Helper()
	name := p.open(protocol, domain)
	if a := p.do(order{Do: "connect", Name: name, To: to}); a.Err != "" {
		return a
	}
	a := p.do(order{Do: "ask", Name: name})
	if peer := p.do(order{Do: "peer", Name: name}); a.Err == "" && peer.Err == "" {
		if a.Peer != "" && a.Peer != peer.Peer {
			p.t.Errorf("the answer comes from %s, the peer is %s", a.Peer, peer.Peer)
		}
		a.Peer = peer.Peer
	}
	return a
}

// sent asks from a new unconnected socket.
func (p *process) sent(domain int, to string) answer {
	p.t.Helper()
	return p.do(order{Do: "ask", Name: p.open("udp", domain), To: to})
}

// mapped is an IPv4 address and port as an IPv6 socket has it.
func mapped(at string) string {
	a := netip.MustParseAddrPort(at)
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()).String()
}

// newCgroup makes a cgroup for the test's processes where cgroup2 is mounted.
func newCgroup(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		dir := filepath.Join(f[1], fmt.Sprintf("weirt-%x", time.Now().UnixNano()&0xffffff))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	t.Fatal("no cgroup2 is mounted: mount -t cgroup2 none /somewhere")
	return ""
}
