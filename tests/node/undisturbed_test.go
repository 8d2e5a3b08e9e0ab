package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// bulk is a connection on which the client sends all the time, so that a packet lost by any
// commit is one of its.
type bulk struct {
	*talk
	received atomic.Int64
}

func (e *env) bulk(from, to *lab.Host, family int) *bulk {
	e.t.Helper()
	e.ports++
	b := &bulk{talk: &talk{name: "bulk", family: family, from: from, to: to, port: portTalk + e.ports}}
	l, err := to.Listen(b.port)
	e.must("listen", err)
	defer l.Close()
	client, err := from.ConnectWithin(to.Addr(family), b.port, 10*time.Second)
	e.must("connect", err)
	server, err := l.Accept()
	e.must("accept", err)
	b.conns = [2]io.Closer{client, server}
	e.t.Cleanup(b.close)
	go func() {
		chunk := make([]byte, 128<<10)
		for b.note(second(client.Write(chunk))) {
			time.Sleep(2 * time.Millisecond) // the commits need the machine too
		}
	}()
	go b.drink(server)
	return b
}

func (b *bulk) drink(c net.Conn) {
	chunk := make([]byte, 256<<10)
	for {
		n, err := c.Read(chunk)
		b.received.Add(int64(n))
		if !b.note(err) {
			return
		}
	}
}

// tolerant makes the TCP of a host take packets that overtake each other, as they do on a
// busy machine with several CPUs, for late and not for lost: connections made from now on.
func (e *env) tolerant(h *lab.Host) {
	e.t.Helper()
	e.sysctl(h, "net/ipv4/tcp_reordering", "127")
}

// patient makes the TCP of a host send again only what is lost: none of the probes that it
// sends when an acknowledgement is late, as on a busy machine it is.
func (e *env) patient(h *lab.Host) {
	e.t.Helper()
	e.sysctl(h, "net/ipv4/tcp_early_retrans", "0")
	e.sysctl(h, "net/ipv4/tcp_recovery", "0")
	for _, family := range []string{"-4", "-6"} {
		out, err := h.Run(e.ctx, "ip", family, "route", "show")
		e.must("routes of "+h.Name, err)
		for _, route := range strings.Split(strings.TrimSpace(out), "\n") {
			if strings.Contains(route, "linkdown") || strings.HasPrefix(route, "fe80") {
				continue
			}
			args := append([]string{family, "route", "change"}, strings.Fields(route)...)
			out, err := h.Run(e.ctx, "ip", append(args, "rto_min", "20s")...)
			e.must(out, err)
		}
	}
}

// retransmitted is what the kernel counted for all TCP of a host.
func (e *env) retransmitted(h *lab.Host) int {
	e.t.Helper()
	n := -1
	e.must("read counters", h.Do(func() error {
		f, err := os.Open("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		defer f.Close()
		var names []string
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if fields[0] != "Tcp:" {
				continue
			}
			if names == nil {
				names = fields
				continue
			}
			for i, name := range names {
				if name == "RetransSegs" {
					n, err = strconv.Atoi(fields[i])
				}
			}
		}
		return err
	}))
	if n < 0 {
		e.t.Fatalf("%s has no count of retransmits", h.Name)
	}
	return n
}

// unconcerned are changes that leave what is going on as it is: of others' labels and
// policies, and of the talkers' own, rulesets and blocks, by rules that add nothing for it.
func unconcerned(i int) (file, text string) {
	other := fmt.Sprintf("n%d", i)
	switch i % 5 {
	case 0:
		return "third.yaml", pod("ns", "c", "app: c", "role: "+[]string{"client", "server", "none"}[i/5%3])
	case 1:
		return "third-policy.yaml", policy("ns", "third", fmt.Sprintf("  podSelector: {matchLabels: {app: c}}\n  ingress: [{ports: [{port: %d}]}]\n", 1+i))
	case 2:
		return "more-in.yaml", policy("sv", "more", fmt.Sprintf("  podSelector: {matchLabels: {app: b}}\n  ingress: [{from: [{podSelector: {matchLabels: {app: %s}}}], ports: [{port: %d}]}]\n", other, 1+i))
	case 3:
		return "more-out.yaml", policy("cl", "more", fmt.Sprintf("  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n  egress: [{to: [{ipBlock: {cidr: 192.0.2.%d/32}}, {namespaceSelector: {matchLabels: {team: %s}}}]}]\n", 20+i%200, other))
	default: // a block over the outside's address: its meaning changes, its access does not
		return "block.yaml", policy("cl", "block", fmt.Sprintf("  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n  egress: [{to: [{ipBlock: {cidr: 192.0.2.0/%d}}, {ipBlock: {cidr: \"2001:db8::/%d\"}}], ports: [{port: 1}]}]\n", 24+i/5%8, 64+i/5%60))
	}
}

// busy has two pods and the outside talk all the time: a with b and the outside, the outside
// with b. Nothing of it may be lost unseen.
func (e *env) busy(a, b *lab.Host) (talks []*talk, bulks []*bulk) {
	e.t.Helper()
	for _, h := range []*lab.Host{a, b, e.Outside} {
		e.quietICMP(h)
		e.tolerant(h)
	}
	for _, family := range families {
		for _, pair := range [][2]*lab.Host{{a, b}, {a, e.Outside}, {e.Outside, b}} {
			from, to := pair[0], pair[1]
			bulks = append(bulks, e.bulk(from, to, family))
			talks = append(talks,
				e.tcpTalk("both speak", from, to, family, true, true),
				e.tcpTalk("nobody speaks", from, to, family, false, false),
				e.udpTalk("both speak", from, to, family, true, true),
				e.icmpTalk(from, to, family))
		}
	}
	return talks, bulks
}

// TestUnconcernedCommitsDisturbNothing: hundreds of them, and of all the packets of
// connections that never rest none is lost, so none is sent twice.
func TestUnconcernedCommitsDisturbNothing(t *testing.T) {
	const commits = 300
	e := newEnv(t, "namespaces.yaml", clientNamespace+serverNamespace, "client.yaml", clientPod, "server.yaml", serverPod,
		"third.yaml", pod("ns", "c", "app: c"), "standing.yaml", standing, "in.yaml", letIn, "out.yaml", letOut)
	e.add("cl/a", "sv/b", "ns/c")
	a, b := e.host("cl/a"), e.host("sv/b")
	hosts := []*lab.Host{a, b, e.Outside}
	talks, bulks := e.busy(a, b)
	progress := make([]int64, len(bulks))
	moves := func(when string) {
		t.Helper()
		e.flow(when, clock(), talks...)
		for k, b := range bulks {
			was := progress[k]
			e.eventually(fmt.Sprintf("%v: bytes flow %s", b, when), 30*time.Second, func() bool {
				progress[k] = b.received.Load()
				return progress[k] > was+1<<20
			})
		}
	}
	moves("at first")
	for _, h := range hosts {
		e.patient(h)
	}
	moves("once all are patient")
	// What was sent again until here, was for a new link's neighbours, or a busy machine.
	sentAgain, hostsSentAgain := map[*talk][2]uint32{}, map[*lab.Host]int{}
	for _, b := range bulks {
		sentAgain[b.talk] = e.retransmits(b.talk)
	}
	for _, talk := range talks {
		if talk.protocol == "tcp" {
			sentAgain[talk] = e.retransmits(talk)
		}
	}
	for _, h := range hosts {
		hostsSentAgain[h] = e.retransmitted(h)
	}
	was := e.status()
	for i := range commits {
		file, text := unconcerned(i)
		e.apply(file, text)
		if i%50 == 0 {
			moves(fmt.Sprintf("after %d commits", i+1))
		}
	}
	is := e.status()
	if moved := is.Epoch - was.Epoch; moved < commits*9/10 {
		t.Errorf("the epoch moved by %d in %d commits", moved, commits)
	}
	var bytes int64
	for _, b := range bulks {
		bytes += b.received.Load()
	}
	for talk, before := range sentAgain {
		if n := e.retransmits(talk); n != before {
			t.Errorf("%v: %v segments sent again, %v before the commits", talk, n, before)
		}
	}
	for _, talk := range talks {
		if talk.protocol == "tcp" {
			continue
		}
		for i := range talk.ways {
			w := &talk.ways[i]
			sent := w.words.Load()
			e.eventually(fmt.Sprintf("%v: all of %d words of end %d arrive", talk, sent, i), 10*time.Second, func() bool { return w.arrived.Load() >= sent })
		}
	}
	for _, h := range hosts {
		if n := e.retransmitted(h) - hostsSentAgain[h]; n > 0 {
			t.Errorf("%s sent %d segments again", h.Name, n)
		}
	}
	for reason, n := range is.Drops {
		if n > was.Drops[reason] && reason != "multicast" {
			t.Errorf("%d packets dropped for %q", n-was.Drops[reason], reason)
		}
	}
	t.Logf("%d commits, epoch %d to %d, %d MiB by bulk", commits, was.Epoch, is.Epoch, bytes>>20)
}
