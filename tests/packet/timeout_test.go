package packet

import (
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

const (
	endFIN     = uint8(bpf.WeirFlowEndEND_FIN)
	endRST     = uint8(bpf.WeirFlowEndEND_RST)
	endTimeout = uint8(bpf.WeirFlowEndEND_TIMEOUT)
	endRevoked = uint8(bpf.WeirFlowEndEND_REVOKED)
)

// life is a flow of a's to b, the packets it saw and what it comes to when nothing follows.
type life struct {
	protocol layers.IPProtocol
	packets  string // ">S": flags from a, "<SA": from b; protocols without flags: "> <"
	timeout  func(loader.Timeouts) time.Duration
	end      uint8
}

var lives = []life{
	{layers.IPProtocolTCP, ">S", syn, endTimeout},
	{layers.IPProtocolTCP, ">S >S", syn, endTimeout},
	{layers.IPProtocolTCP, ">S <SA", established, endTimeout},
	{layers.IPProtocolTCP, ">S <SA >A", established, endTimeout},
	{layers.IPProtocolTCP, ">S <SA >A >PA <A", established, endTimeout},
	{layers.IPProtocolTCP, ">S <SA >A >FA", established, endTimeout}, // b may stream on
	{layers.IPProtocolTCP, ">S <SA >A >FA <PA", established, endTimeout},
	{layers.IPProtocolTCP, ">S <SA >A <FA", established, endTimeout},
	{layers.IPProtocolTCP, ">S <SA >A >FA <FA", closing, endFIN},
	{layers.IPProtocolTCP, ">S <SA >A <FA >FA <A", closing, endFIN},
	{layers.IPProtocolTCP, ">S <SA >A >R", closing, endRST},
	{layers.IPProtocolTCP, ">S <SA >A <RA", closing, endRST},
	{layers.IPProtocolTCP, ">S <RA", closing, endRST},
	{layers.IPProtocolTCP, ">S <SA >A >FA <FA >R", closing, endRST},
	{layers.IPProtocolTCP, ">PA", syn, endTimeout}, // from the middle of a connection
	{layers.IPProtocolTCP, ">PA <A", established, endTimeout},
	{layers.IPProtocolUDP, ">", udp, endTimeout},
	{layers.IPProtocolUDP, "> > >", udp, endTimeout},
	{layers.IPProtocolUDP, "> <", udpStream, endTimeout},
	{layers.IPProtocolICMPv4, ">", icmp, endTimeout},
	{layers.IPProtocolICMPv4, "> <", icmp, endTimeout},
	{layers.IPProtocolSCTP, ">", other, endTimeout},
	{layers.IPProtocolSCTP, "> <", other, endTimeout},
	{layers.IPProtocolGRE, "> <", other, endTimeout},
}

func syn(t loader.Timeouts) time.Duration         { return t.SYN }
func established(t loader.Timeouts) time.Duration { return t.TCP }
func closing(t loader.Timeouts) time.Duration     { return t.Closing }
func udp(t loader.Timeouts) time.Duration         { return t.UDP }
func udpStream(t loader.Timeouts) time.Duration   { return t.UDPStream }
func icmp(t loader.Timeouts) time.Duration        { return t.ICMP }
func other(t loader.Timeouts) time.Duration       { return t.Other }

// defaults are the idle times of bpf/config.h.
var defaults = loader.Timeouts{
	SYN: time.Minute, TCP: 6 * time.Hour, Closing: 10 * time.Second, UDP: time.Minute, UDPStream: 3 * time.Minute,
	ICMP: 30 * time.Second, Other: 10 * time.Minute,
}

// Every state has its idle time, the one of the knob, and says how it ended.
func TestTimeouts(t *testing.T) {
	knobs := loader.Timeouts{
		SYN: 110 * time.Second, TCP: 700 * time.Second, Closing: 80 * time.Second, UDP: 130 * time.Second,
		UDPStream: 170 * time.Second, ICMP: 190 * time.Second, Other: 230 * time.Second,
	}
	for name, c := range map[string]struct{ set, want loader.Timeouts }{"defaults": {loader.Timeouts{}, defaults}, "knobs": {knobs, knobs}} {
		t.Run(name, func(t *testing.T) {
			c.set.Linger = time.Hour // what is closed can be looked at
			w := newSceneWith(t, open, loader.Config{Timeouts: c.set}).watch(t)
			for _, v6 := range []bool{false, true} {
				w.live(c.want, v6)
			}
		})
	}
}

func (w *watch) live(want loader.Timeouts, v6 bool) {
	var firsts []testnode.Frame
	for i, l := range lives {
		firsts = append(firsts, w.play(l, uint16(1000+i), v6))
	}
	for i, l := range lives {
		w.age(l.timeout(want)/2, firsts[i])
	}
	w.tables.Sweep(w.t)
	for i, l := range lives {
		if f := w.flow(firsts[i]); f == nil || isClosed(f) {
			w.t.Errorf("v6 %v, %v %s: over after half its time", v6, l.protocol, l.packets)
		}
		w.age(l.timeout(want)/2, firsts[i])
	}
	w.tables.Sweep(w.t)
	for i, l := range lives {
		f := w.flow(firsts[i])
		if f == nil || !isClosed(f) {
			w.t.Errorf("v6 %v, %v %s: not closed after its time: %+v", v6, l.protocol, l.packets, f)
			continue
		}
		e := w.ended(firsts[i])
		sent, back := uint64(strings.Count(l.packets, ">")), uint64(strings.Count(l.packets, "<"))
		if e.End != l.end || e.Packets != [2]uint64{sent, back} {
			w.t.Errorf("v6 %v, %v %s: end %d after %v packets, want %d after %d and %d", v6, l.protocol, l.packets, e.End, e.Packets, l.end, sent, back)
		}
		w.age(time.Hour, firsts[i])
	}
	w.tables.Sweep(w.t)
	for i, l := range lives {
		if w.flow(firsts[i]) != nil {
			w.t.Errorf("v6 %v, %v %s: still there after its linger", v6, l.protocol, l.packets)
		}
	}
	if n, all := w.charged(w.a), w.control().Flows; n != 0 || all != 0 {
		w.t.Errorf("%d flows charged to a, %d in the table, want none", n, all)
	}
}

// play sends the packets of a life and returns its first.
func (w *watch) play(l life, port uint16, v6 bool) testnode.Frame {
	w.t.Helper()
	f := testnode.Frame{Src: w.a.Addr4, Dst: w.b.Addr4, Protocol: l.protocol, Sport: port, Dport: 80, Payload: []byte("life"), ICMPID: port, ICMPType: 8}
	if v6 {
		f.Src, f.Dst = w.a.Addr6, w.b.Addr6
	}
	if v6 && l.protocol == layers.IPProtocolICMPv4 {
		f.Protocol, f.ICMPType = layers.IPProtocolICMPv6, 128
	}
	f.Flags = strings.Fields(l.packets)[0][1:]
	for _, p := range strings.Fields(l.packets) {
		if p[0] == '>' {
			w.from(w.t, l.packets, w.a, flags(f, p[1:]), redirected)
		} else {
			w.from(w.t, l.packets, w.b, answer(f, p[1:]), redirected)
		}
	}
	return f
}

// What a flow's own ends send keeps it alive; what others send in its name does not, nor
// does what is dropped.
func TestWhatRefreshesAFlow(t *testing.T) {
	w := newScene(t, fromAAny).watch(t)
	w.Set(w.b, closed, fromAAny)
	w.Commit(t)
	first := testnode.UDP(w.a.Addr4, 1000, w.b.Addr4, 53)
	w.from(t, "request", w.a, first, redirected)
	w.from(t, "answer", w.b, answer(first, ""), redirected)
	refreshed := func(what string, want bool, send func()) {
		t.Helper()
		w.age(20*time.Second, first)
		was := w.flow(first)
		send()
		is := w.flow(first)
		if got := is.Side[0].Last != was.Side[0].Last || is.Side[1].Last != was.Side[1].Last; got != want {
			t.Errorf("%s: refreshed %v, want %v", what, got, want)
		}
	}
	forged := dropped(bpf.WeirDropReasonDROP_SPOOFED_SOURCE)
	foreign := dropped(bpf.WeirDropReasonDROP_FOREIGN_SOURCE)
	refreshed("request", true, func() { w.from(t, "request", w.a, first, redirected) })
	refreshed("answer", true, func() { w.from(t, "answer", w.b, answer(first, ""), redirected) })
	refreshed("forged request", false, func() { w.from(t, "by c", w.c, first, forged) })
	refreshed("forged answer", false, func() { w.from(t, "by c", w.c, answer(first, ""), forged) })
	refreshed("from outside", false, func() { w.to(t, "by the uplink", w.b, first, w.uplink, 0, foreign) })
	refreshed("ICMP error", false, func() { w.from(t, "error", w.b, unreachable(t, w.b.Addr4, first), next) })
	w.Set(w.b, closed, closed)
	w.Commit(t)
	refreshed("revoked request", false, func() { w.from(t, "request", w.a, first, dropped(bpf.WeirDropReasonDROP_POLICY)) })
	refreshed("revoked answer", false, func() { w.from(t, "answer", w.b, answer(first, ""), dropped(bpf.WeirDropReasonDROP_POLICY)) })
	w.Set(w.b, closed, fromAAny)
	w.Commit(t)
	refreshed("allowed again", true, func() { w.from(t, "answer", w.b, answer(first, ""), redirected) })
}
