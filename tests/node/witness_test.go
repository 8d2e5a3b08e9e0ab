package node

import (
	"bufio"
	"context"
	"encoding/csv"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// sighted is a flow as tshark saw it at the pod that it came to; arrays are by end, the
// initiator's first.
type sighted struct {
	packets, bytes, again [2]uint64
	flags                 [2]uint64
	first, last           time.Time
}

// tshark captures what passes a pod's interface.
type tshark struct {
	e    *env
	cmd  *exec.Cmd
	file string
}

func (e *env) tshark(h *lab.Host) *tshark {
	e.t.Helper()
	s := &tshark{e: e, file: filepath.Join(e.t.TempDir(), "seen.pcapng")}
	s.cmd = exec.Command("tshark", "-i", "eth0", "-w", s.file, "-B", "32")
	said, err := s.cmd.StderrPipe()
	e.must("tshark", err)
	e.must("start tshark", h.Start(s.cmd))
	began := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if strings.Contains(lines.Text(), "Capture started") || strings.Contains(lines.Text(), "File:") {
				began <- true
			}
		}
	}()
	e.t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	select {
	case <-began:
	case <-time.After(30 * time.Second):
		e.t.Fatal("tshark does not begin")
	}
	return s
}

var tsharkFields = []string{
	"frame.time_epoch", "ip.src", "ip.dst", "ip.len", "ipv6.src", "ipv6.dst", "ipv6.plen",
	"tcp.srcport", "tcp.dstport", "tcp.flags", "udp.srcport", "udp.dstport", "icmp.type", "icmpv6.type", "tcp.analysis.retransmission",
}

// end stops the capture and returns the flows that from began, by protocol and its port (ICMP:
// the family).
func (s *tshark) end(from *lab.Host) map[string]*sighted {
	e := s.e
	e.t.Helper()
	e.must("stop tshark", s.cmd.Process.Signal(syscall.SIGINT))
	_ = s.cmd.Wait()
	args := []string{"-r", s.file, "-T", "fields", "-E", "separator=,"}
	for _, f := range tsharkFields {
		args = append(args, "-e", f)
	}
	read := exec.CommandContext(e.ctx, "tshark", args...)
	out, err := read.Output()
	e.must("read the capture", err)
	rows, err := csv.NewReader(strings.NewReader(string(out))).ReadAll()
	e.must("read the capture", err)
	all := map[string]*sighted{}
	for _, row := range rows {
		field := func(name string) string {
			for i, f := range tsharkFields {
				if f == name {
					return row[i]
				}
			}
			panic(name)
		}
		number := func(name string) uint64 {
			n, _ := strconv.ParseUint(field(name), 0, 64)
			return n
		}
		source, length := field("ip.src"), number("ip.len")
		if source == "" {
			source, length = field("ipv6.src"), 40+number("ipv6.plen")
		}
		end := 1
		if source == from.Addr4 || source == from.Addr6 {
			end = 0
		}
		key := ""
		switch {
		case field("tcp.srcport") != "":
			key = "tcp " + field([2]string{"tcp.srcport", "tcp.dstport"}[end])
		case field("udp.srcport") != "":
			key = "udp " + field([2]string{"udp.srcport", "udp.dstport"}[end])
		case field("icmp.type") == "8" || field("icmp.type") == "0":
			key = "icmp 4"
		case field("icmpv6.type") == "128" || field("icmpv6.type") == "129":
			key = "icmp 6"
		default:
			continue
		}
		f := all[key]
		sec, err := strconv.ParseFloat(field("frame.time_epoch"), 64)
		e.must("time", err)
		at := time.UnixMicro(int64(sec * 1e6))
		if f == nil {
			f = &sighted{first: at}
			all[key] = f
		}
		f.last = at
		f.packets[end]++
		f.bytes[end] += length
		f.flags[end] |= number("tcp.flags") & 0xff
		if field("tcp.analysis.retransmission") != "" {
			f.again[end]++
		}
	}
	return all
}

// exchange has both ends say something, n times, of lengths that are all different.
func (e *env) exchange(c, s net.Conn, n int) {
	e.t.Helper()
	buf := make([]byte, 2048)
	for i := range n {
		for _, way := range [2][2]net.Conn{{c, s}, {s, c}} {
			said := 17*i + 1
			_, err := way[0].Write(make([]byte, said))
			e.must("write", err)
			for said > 0 {
				got, err := way[1].Read(buf)
				e.must("read", err)
				said -= got
			}
		}
	}
}

// talking is a TCP connection and its port.
func (e *env) talking(from, to *lab.Host, family, port int) (c, s net.Conn, own int) {
	e.t.Helper()
	l, err := to.Listen(port)
	e.must("listen", err)
	defer l.Close()
	c, err = from.Connect(to.Addr(family), port)
	e.must("connect", err)
	s, err = l.Accept()
	e.must("accept", err)
	return c, s, c.LocalAddr().(*net.TCPAddr).Port
}

// losing has a pod lose what comes for a TCP port before its stack has it.
func (e *env) losing(h *lab.Host, port int, during func()) {
	e.t.Helper()
	out, err := h.Run(e.ctx, "nft", fmt.Sprintf("table inet weirt_lossy { chain c { type filter hook prerouting priority -300; tcp dport %d drop; }; }", port))
	e.must("nft: "+out, err)
	during()
	out, err = h.Run(e.ctx, "nft", "delete table inet weirt_lossy")
	e.must("nft: "+out, err)
}

// TestRecordsAreWhatTsharkSaw: the numbers of a flow's last record are those of a capture at
// the pod that it came to, to the packet and the byte.
func TestRecordsAreWhatTsharkSaw(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	a, b := e.host("ns/a"), e.host("ns/b")
	e.tolerant(a)
	seen := e.tshark(b)

	type flow struct {
		what, key, end string
		of             [2]int // what its end's own socket sent again; -1 = nobody asked
	}
	var flows []flow
	note := func(what, key, end string) { flows = append(flows, flow{what, key, end, [2]int{-1, -1}}) }
	unanswered := 0
	e.losing(b, 9199, func() { // first: it is given up last
		e.must("a connection that nobody answers", a.Do(func() error {
			l := &net.Dialer{Timeout: 2500 * time.Millisecond, Control: func(_, _ string, raw syscall.RawConn) error {
				return raw.Control(func(fd uintptr) {
					_ = syscall.Bind(int(fd), &syscall.SockaddrInet4{Port: 40199})
					unanswered = 40199
				})
			}}
			l.SetMultipathTCP(false)
			if c, err := l.DialContext(e.ctx, "tcp4", net.JoinHostPort(b.Addr4, "9199")); err == nil {
				c.Close()
				return fmt.Errorf("it was answered")
			}
			return nil
		}))
	})
	note("TCP that nobody answers", fmt.Sprint("tcp ", unanswered), "timeout")
	for _, family := range families {
		name := fmt.Sprintf(", IPv%d", family)
		port := 9200 + family*10

		c, s, own := e.talking(a, b, family, port)
		e.exchange(c, s, 20)
		c.Close()
		s.Close()
		note("TCP that the client closed"+name, fmt.Sprint("tcp ", own), "fin")

		c, s, own = e.talking(a, b, family, port+1)
		e.exchange(c, s, 3)
		s.Close()
		time.Sleep(50 * time.Millisecond)
		c.Close()
		note("TCP that the server closed"+name, fmt.Sprint("tcp ", own), "fin")

		c, s, own = e.talking(a, b, family, port+2)
		e.exchange(c, s, 5)
		e.must("linger", c.(*net.TCPConn).SetLinger(0))
		c.Close()
		s.Close()
		note("TCP that was reset"+name, fmt.Sprint("tcp ", own), "rst")

		c, s, own = e.talking(a, b, family, port+3)
		e.exchange(c, s, 5)
		e.losing(b, port+3, func() {
			_, err := c.Write(make([]byte, 333))
			e.must("write", err)
			e.eventually("segments are sent again", 20*time.Second, func() bool { return e.tcpInfo(c).Total_retrans >= 2 })
		})
		got := 0
		for got < 333 {
			n, err := s.Read(make([]byte, 512))
			e.must("what was lost comes", err)
			got += n
		}
		e.exchange(c, s, 2)
		again := [2]int{int(e.tcpInfo(c).Total_retrans), int(e.tcpInfo(s).Total_retrans)}
		c.Close()
		s.Close()
		note("TCP of which some was lost"+name, fmt.Sprint("tcp ", own), "fin")
		flows[len(flows)-1].of = again

		own = e.datagrams(a, b, family, port+4, 7)
		note("datagrams one way"+name, fmt.Sprint("udp ", own), "timeout")

		out, err := a.Run(e.ctx, "ping", "-c", "3", "-i", "0.2", "-s", "100", b.Addr(family))
		e.must("ping: "+out, err)
		note("echo"+name, fmt.Sprint("icmp ", family), "timeout")
	}

	records := map[string]*[2]*lab.Flow{} // new, ended
	e.eventually("all flows are over", 2*time.Minute, func() bool {
		time.Sleep(time.Second)
		clear(records)
		ended := 0
		for _, f := range e.flows("--last", "10000", "--from-pod", "ns/a", "--to-pod", "ns/b") {
			x := e.extension(f)
			key := recordKey(f)
			if records[key] == nil {
				records[key] = &[2]*lab.Flow{}
			}
			switch x.Kind {
			case api.FlowNew:
				records[key][0] = &f
			case api.FlowEnded:
				records[key][1] = &f
				ended++
			}
		}
		return ended >= len(flows)
	})
	all := seen.end(a)
	for _, f := range flows {
		r, w := records[f.key], all[f.key]
		if r == nil || r[0] == nil || r[1] == nil || w == nil {
			t.Errorf("%s (%s): records %v, tshark's %v", f.what, f.key, r, w)
			continue
		}
		x := e.extension(*r[1])
		if got := [2]uint64{x.Packets.Sent, x.Packets.Received}; got != w.packets {
			t.Errorf("%s: %d packets, tshark saw %d", f.what, got, w.packets)
		}
		if got := [2]uint64{x.Bytes.Sent, x.Bytes.Received}; got != w.bytes {
			t.Errorf("%s: %d bytes, tshark saw %d", f.what, got, w.bytes)
		}
		if got := [2]uint64{flagBits(x.FlagsSent), flagBits(x.FlagsBack)}; got != w.flags {
			t.Errorf("%s: flags %q and %q, tshark saw %#x", f.what, x.FlagsSent, x.FlagsBack, w.flags)
		}
		if x.End != f.end {
			t.Errorf("%s: it ended by %q, want %q", f.what, x.End, f.end)
		}
		const bound = 250 * time.Millisecond // the programs' clock goes by 100 ms, and this machine is busy
		if d := r[0].Time.Sub(w.first).Abs(); d > bound {
			t.Errorf("%s: it began at %v, tshark says %v", f.what, r[0].Time, w.first)
		}
		if got, want := time.Duration(x.Duration*1e9), w.last.Sub(w.first); (got - want).Abs() > bound {
			t.Errorf("%s: it took %v, tshark says %v", f.what, got, want)
		}
		if f.of[0] < 0 {
			continue
		}
		if x.TCPSource == nil || x.TCPDestination == nil {
			t.Errorf("%s: nothing of its sockets: %+v", f.what, x)
			continue
		}
		if got := [2]uint64{x.TCPSource.Retransmits, x.TCPDestination.Retransmits}; got != w.again || got != [2]uint64{uint64(f.of[0]), uint64(f.of[1])} {
			t.Errorf("%s: %d segments sent again, tshark saw %d, the sockets say %d", f.what, got, w.again, f.of)
		}
	}
	if e.status().Flows.Lost != 0 {
		t.Errorf("flows lost: %+v", e.status().Flows)
	}
}

// datagrams sends some, of lengths that are all different, to who takes them, and returns their port.
func (e *env) datagrams(from, to *lab.Host, family, port, n int) (own int) {
	e.t.Helper()
	var l, c net.PacketConn
	var err error
	e.must("listen", to.Do(func() error {
		l, err = (&net.ListenConfig{}).ListenPacket(context.Background(), fmt.Sprint("udp", family), fmt.Sprint(":", port))
		return err
	}))
	defer l.Close()
	e.must("open", from.Do(func() error {
		c, err = (&net.ListenConfig{}).ListenPacket(context.Background(), fmt.Sprint("udp", family), ":0")
		return err
	}))
	defer c.Close()
	for i := range n {
		_, err := c.WriteTo(make([]byte, 50+i*11), &net.UDPAddr{IP: net.ParseIP(to.Addr(family)), Port: port})
		e.must("send", err)
		_, _, err = l.ReadFrom(make([]byte, 2048))
		e.must("receive", err)
	}
	return c.LocalAddr().(*net.UDPAddr).Port
}

func recordKey(f lab.Flow) string {
	for name, fields := range f.L4 {
		port, _ := fields["source_port"].(float64)
		if port == 0 {
			return "icmp " + strings.TrimPrefix(f.IP.Version, "IPv")
		}
		return fmt.Sprint(strings.ToLower(name), " ", int(port))
	}
	return ""
}

// flagBits are those that a record names.
func flagBits(text string) (bits uint64) {
	for _, name := range strings.Split(text, ", ") {
		for i, flag := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
			if flag == name {
				bits |= 1 << i
			}
		}
	}
	return bits
}
