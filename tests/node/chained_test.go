package node

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// Pods whose interfaces another plugin makes: the reference plugins bridge (all pods on one
// link, cni0) and ptp (routed veths).
var chains = []string{"bridge", "ptp"}

func newChained(t *testing.T, chain string, files ...string) *env {
	t.Helper()
	e := newEnvWith(t, lab.Options{Chain: chain}, files...)
	if _, err := os.Stat(e.Binary(chain)); err != nil {
		t.Fatalf("run `make build-others` first: %v", err)
	}
	// What the plugins give to the node would be tentative for a while.
	for _, key := range []string{"accept_dad", "dad_transmits"} {
		e.must("sysctl of the node", e.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/"+key, []byte("0"), 0) }))
	}
	return e
}

const egressOfCToB = `  podSelector: {matchLabels: {app: c}}
  policyTypes: [Egress]
  egress:
    - to:
        - podSelector: {matchLabels: {app: b}}
`

// Policy holds on the link, through the gateway and to the outside, with the agent and
// without it, and changes at once.
func TestChainedPolicy(t *testing.T) {
	for _, chain := range chains {
		t.Run(chain, func(t *testing.T) {
			e := newChained(t, chain, "pods.yaml", abc, "policy.yaml", policy("ns", "b", fromA)+policy("ns", "c", egressOfCToB))
			e.add("ns/a", "ns/b", "ns/c")
			held := []probe{
				{"ns/a", "ns/b", "tcp", portHTTP, yes},
				{"ns/a", "ns/b", "tcp", portOther, no},
				{"ns/a", "ns/b", "icmp", 0, no},
				{"ns/c", "ns/b", "tcp", portHTTP, no}, // egress may, ingress may not
				{"ns/c", "ns/a", "tcp", portHTTP, no}, // egress
				{"ns/c", "outside", "icmp", 0, no},
				{"ns/c", "node", "icmp", 0, no},
				{"ns/b", "ns/a", "udp", portOther, yes},
				{"ns/a", "ns/c", "icmp", 0, yes},
				{"ns/a", "ns/a", "tcp", portHTTP, yes},
				{"ns/a", "outside", "icmp", 0, yes},
				{"ns/a", "node", "icmp", 0, yes},
				{"outside", "ns/b", "tcp", portHTTP, no},
				{"outside", "ns/a", "tcp", portHTTP, yes},
				{"node", "ns/b", "tcp", portHTTP, yes},
				{"node", "ns/b", "icmp", 0, yes},
			}
			e.check(held...)
			for _, p := range e.pods {
				e.must("check", e.CheckPod(e.ctx, p))
			}
			e.chainedStatus(3)
			for _, f := range e.flows("--verdict", "forwarded", "--pod", "ns/b") {
				if x := e.extension(f); x.Path == "bpf" {
					t.Errorf("a chained flow went by BPF: %+v", f)
				}
			}
			e.must("kill", e.KillAgent())
			e.check(held...)
			e.must("start", e.StartAgent(e.ctx))
			e.must("wait", e.Wait(e.ctx))
			e.check(held...)
			s := e.openStream(e.host("ns/a"), e.host("ns/c"), 4, portStream)
			e.alive("while allowed", s)
			e.apply("more.yaml", policy("ns", "deny-a", "  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n"))
			e.dead("after the edit", s)
			e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no}, probe{"ns/a", "outside", "icmp", 0, no})
			e.must("remove", e.Remove("more.yaml"))
			e.must("wait", e.Wait(e.ctx))
			e.check(held...)
		})
	}
}

func (e *env) chainedStatus(want int) {
	e.t.Helper()
	s := e.status()
	if s.Chained != want || s.Endpoints != want {
		e.t.Errorf("status: %d endpoints, %d chained, want %d", s.Endpoints, s.Chained, want)
	}
	if text := e.Weir(e.ctx, "status").Stdout; !strings.Contains(text, fmt.Sprintf("%d of them chained", want)) {
		e.t.Errorf("weir status does not say that endpoints are chained:\n%s", text)
	}
	for _, h := range s.Hooks {
		if strings.Contains(h, "veth") {
			e.t.Errorf("a chained pod's interface is held for a device of the node: %s", h)
		}
	}
}

func (e *env) endpoints() (list []api.Endpoint) {
	e.t.Helper()
	r := e.Weir(e.ctx, "endpoints", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil || r.Status != 0 {
		e.t.Fatalf("weir endpoints: exit status %d, %v: %s", r.Status, err, r.Stderr)
	}
	return list
}

// What the node knows a pod's flow by survives its NAT, on the way there and back, though
// under a bridge the answer is a packet that no hook has seen.
func TestChainedServices(t *testing.T) {
	const vip4, vip6 = "10.96.0.10", "fd96::10"
	for _, chain := range chains {
		t.Run(chain, func(t *testing.T) {
			e := newChained(t, chain, "pods.yaml", abc, "policy.yaml", policy("ns", "b", fromA))
			e.add("ns/a", "ns/b", "ns/c")
			b := e.host("ns/b")
			masquerade := ""
			if chain == "bridge" { // else b answers a by the bridge, past the node's NAT
				masquerade = "ct status dnat masquerade;"
			}
			rules := fmt.Sprintf(`table inet nat {
 chain pre { type nat hook prerouting priority -100; ip daddr %s tcp dport 80 dnat to %s:%d; ip6 daddr %s tcp dport 80 dnat to [%s]:%d; }
 chain post { type nat hook postrouting priority 100; %s }
}`, vip4, b.Addr4, portHTTP, vip6, b.Addr6, portHTTP, masquerade)
			out, err := e.Run(e.ctx, "nft", rules)
			if err != nil {
				t.Fatalf("nft: %v %s", err, out)
			}
			for from, want := range map[string]lab.Answer{"ns/a": yes, "ns/c": no} {
				for _, vip := range []string{vip4, vip6} {
					got, err := e.host(from).Probe("tcp", vip, 80)
					if err != nil || got != want {
						t.Errorf("%s to b by %s: %v (%v), want %v", from, vip, got, err, want)
					}
				}
			}
		})
	}
}

// DEL takes Weir's part and nothing of the other plugin's, in any order of things; what it
// leaves to that plugin is closed.
func TestChainedDel(t *testing.T) {
	for _, chain := range chains {
		t.Run(chain, func(t *testing.T) {
			e := newChained(t, chain, "pods.yaml", abc)
			e.add("ns/a", "ns/b")
			a, b := e.pods["ns/a"], e.pods["ns/b"]
			c, err := e.AddPod(e.ctx, "ns", "c") // serves nothing: no socket keeps its namespace
			e.must("add", err)
			e.check(probe{"outside", "ns/a", "tcp", portHTTP, yes})
			before := e.linksAndRoutes()
			e.must("DEL of weir-cni", e.DetachLast(e.ctx, a))
			if after := e.linksAndRoutes(); after != before {
				t.Errorf("DEL of weir-cni changed the node, from\n%sto\n%s", before, after)
			}
			e.chainedStatus(2)
			e.check(probe{"outside", "ns/a", "tcp", portHTTP, no}, probe{"ns/b", "ns/a", "icmp", 0, no}, probe{"ns/a", "ns/b", "icmp", 0, no})
			e.must("DEL", e.DelPod(e.ctx, a))
			e.must("kill", e.KillAgent())
			e.must("DEL without an agent", e.DelPod(e.ctx, b))
			e.must("end of c's namespace", c.End())
			e.must("DEL of a pod whose namespace is gone", e.DetachPod(e.ctx, c))
			e.must("DEL again", e.DetachPod(e.ctx, c))
			e.must("start", e.StartAgent(e.ctx))
			e.eventually("the agent forgets them", 10*time.Second, func() bool { return len(e.endpoints()) == 0 })
			e.eventually("what was pinned is gone", 10*time.Second, func() bool {
				pins, _ := filepath.Glob(filepath.Join(e.BPFFSDir(), "links", "*weir*"))
				return len(pins) == 0
			})
			e.nothingLeft()
			e.add("ns/a")
			e.check(probe{"outside", "ns/a", "tcp", portHTTP, yes})
		})
	}
}

func (e *env) linksAndRoutes() string {
	e.t.Helper()
	text := ""
	for _, args := range [][]string{{"-br", "link"}, {"-br", "addr"}, {"route"}, {"-6", "route"}} {
		out, err := e.Run(e.ctx, "ip", args...)
		e.must("ip", err)
		text += out
	}
	return text
}

// An interface that is no veth cannot be judged, and its pod is told so.
func TestChainedToNoVeth(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	p, err := e.AddForeign(e.ctx, "ns", "a", func(p *lab.Pod) error {
		out, err := e.Run(e.ctx, "ip", "link", "add", "eth0", "link", "up0", "netns", p.Netns, "type", "macvlan", "mode", "bridge")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err == nil || lab.CNICode(err) != api.CodeInvalid || !strings.Contains(err.Error(), "macvlan") {
		t.Errorf("ADD behind a macvlan (%v): %v, want code %d that names it", p, err, api.CodeInvalid)
	}
	if n := len(e.endpoints()); n != 0 {
		t.Errorf("%d endpoints", n)
	}
}

// On a link that pods share, each speaks for itself alone; and what it says goes to whom it
// was allowed to say it, whosever MAC it writes on it.
func TestSpeaksForItselfOnASharedLink(t *testing.T) {
	e := newChained(t, "bridge", "pods.yaml", abc, "policy.yaml", policy("ns", "a", egressAtoB))
	e.add("ns/a", "ns/b", "ns/c")
	e.check(probe{"ns/a", "ns/b", "icmp", 0, yes}, probe{"ns/a", "ns/c", "icmp", 0, no})
	a, c := openWire(t, e.pods["ns/a"]), openWire(t, e.pods["ns/c"])
	own, victim, gateway := e.host("ns/a"), e.host("ns/b"), netip.MustParseAddr("10.77.0.1")
	broadcast, to := net.HardwareAddr{255, 255, 255, 255, 255, 255}, c.mac
	allNodes := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	for _, f := range []struct {
		what   string
		frame  frame
		reason string // "" = it arrives
	}{
		{"ARP for another pod", arp(broadcast, a.mac, 1, own.Addr4, e.host("ns/c").Addr4), ""},
		{"ARP for an address before its use", arp(broadcast, a.mac, 1, "0.0.0.0", own.Addr4), ""},
		{"gratuitous ARP of its own", arp(broadcast, a.mac, 1, own.Addr4, own.Addr4), ""},
		{"ARP answer of its own", arp(to, a.mac, 2, own.Addr4, e.host("ns/c").Addr4), ""},
		{"ARP answer as another pod", arp(to, a.mac, 2, victim.Addr4, e.host("ns/c").Addr4), "neighbour"},
		{"ARP answer as the gateway", arp(to, a.mac, 2, gateway.String(), e.host("ns/c").Addr4), "neighbour"},
		{"gratuitous ARP as the gateway", arp(broadcast, a.mac, 1, gateway.String(), gateway.String()), "neighbour"},
		{"ARP probe for another's address", arp(broadcast, a.mac, 1, "0.0.0.0", victim.Addr4), "neighbour"},
		{"advertisement of its own", ndp(allNodes, a.mac, 136, own.Addr6, "ff02::1", own.Addr6), ""},
		{"advertisement of its own link-local", ndp(allNodes, a.mac, 136, own.Addr6, "ff02::1", linkLocal(a.mac)), ""},
		{"solicitation", ndp(allNodes, a.mac, 135, own.Addr6, "ff02::1", e.host("ns/c").Addr6), ""},
		{"solicitation by its link-local name", ndp(allNodes, a.mac, 135, linkLocal(a.mac), "ff02::1", e.host("ns/c").Addr6), ""},
		{"duplicate detection of its own", ndp(allNodes, a.mac, 135, "::", "ff02::1", own.Addr6), ""},
		{"advertisement of another's", ndp(allNodes, a.mac, 136, own.Addr6, "ff02::1", victim.Addr6), "neighbour"},
		{"advertisement by another's address", ndp(allNodes, a.mac, 136, victim.Addr6, "ff02::1", own.Addr6), "neighbour"},
		{"solicitation as another pod", ndp(allNodes, a.mac, 135, victim.Addr6, "ff02::1", e.host("ns/c").Addr6), "neighbour"},
		{"solicitation by another's link-local name", ndp(allNodes, a.mac, 135, linkLocal(c.mac), "ff02::1", victim.Addr6), "neighbour"},
		{"duplicate detection of another's", ndp(allNodes, a.mac, 135, "::", "ff02::1", victim.Addr6), "neighbour"},
		{"router advertisement", ndp(allNodes, a.mac, 134, linkLocal(a.mac), "ff02::1", "::"), "multicast"},
		{"IPv4 as another pod", udp(to, a.mac, victim.Addr4, e.host("ns/c").Addr4), "spoofed source"},
		{"IPv6 as another pod", udp(to, a.mac, victim.Addr6, e.host("ns/c").Addr6), "spoofed source"},
		{"what is for b, to c's MAC", udp(to, a.mac, own.Addr4, victim.Addr4), "destination"},
		{"the same again, now it has an entry", udp(to, a.mac, own.Addr4, victim.Addr4), "destination"},
		{"what is for b, to c's MAC, IPv6", udp(to, a.mac, own.Addr6, victim.Addr6), "destination"},
		{"LLDP", marked(append(ethernet(broadcast, a.mac, 0x88cc), 1, 2, 3, 4)), "ethertype"},
	} {
		before := e.status().Drops
		a.send(t, f.frame.data)
		token := f.frame.token
		if f.reason == "" {
			e.eventually(f.what+" arrives", 2*time.Second, func() bool { return c.heard(token) })
			continue
		}
		e.eventually(f.what+" is counted as "+f.reason, 2*time.Second, func() bool { return e.status().Drops[f.reason] > before[f.reason] })
		if time.Sleep(50 * time.Millisecond); c.heard(token) {
			t.Errorf("%s: arrives", f.what)
		}
	}
	e.check(probe{"ns/a", "ns/b", "icmp", 0, yes})
}

// wire is eth0 of a pod, frames in and out.
type wire struct {
	fd  int
	mac net.HardwareAddr
	got [][]byte
}

func openWire(t *testing.T, p *lab.Pod) *wire {
	t.Helper()
	w := &wire{}
	err := p.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		w.mac = eth0.HardwareAddr
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xffff
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: eth0.Index})
	})
	if err != nil {
		t.Fatalf("packet socket of %s: %v", p.Name, err)
	}
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

// frame is one with a token by which it is known again.
type frame struct{ data, token []byte }

var tokens uint32

func nextToken() []byte {
	tokens++
	return binary.BigEndian.AppendUint32([]byte("weir-frame-"), tokens)
}

// marked appends the token, to what does not know its own length.
func marked(data []byte) frame {
	token := nextToken()
	return frame{append(append(data, make([]byte, 18)...), token...), token}
}

func (w *wire) send(t *testing.T, data []byte) {
	t.Helper()
	if _, err := unix.Write(w.fd, data); err != nil {
		t.Fatalf("send %s: %v", hex.EncodeToString(data), err)
	}
}

func (w *wire) heard(token []byte) bool {
	for {
		b := make([]byte, 2048)
		n, err := unix.Read(w.fd, b)
		if err != nil {
			break
		}
		w.got = append(w.got, b[:n])
	}
	return slices.ContainsFunc(w.got, func(f []byte) bool { return bytes.Contains(f, token) })
}

func ethernet(to, from net.HardwareAddr, ethertype uint16) []byte {
	return binary.BigEndian.AppendUint16(append(append([]byte{}, to...), from...), ethertype)
}

func arp(to, from net.HardwareAddr, op byte, sender, target string) frame {
	f := append(ethernet(to, from, 0x0806), 0, 1, 8, 0, 6, 4, 0, op)
	f = append(append(f, from...), netip.MustParseAddr(sender).AsSlice()...)
	return marked(append(append(f, make([]byte, 6)...), netip.MustParseAddr(target).AsSlice()...))
}

// ndp is a message with a nonce (RFC 3971), the token.
func ndp(to, from net.HardwareAddr, kind byte, src, dst, target string) frame {
	body := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
	token := nextToken()
	body = append(append(append(body, 14, 3), token...), make([]byte, 22-len(token))...)
	return frame{ip6(to, from, 58, 255, src, dst, body), token}
}

func ip6(to, from net.HardwareAddr, next, hops byte, src, dst string, body []byte) []byte {
	f := append(ethernet(to, from, 0x86dd), 0x60, 0, 0, 0, 0, byte(len(body)), next, hops)
	f = append(append(f, netip.MustParseAddr(src).AsSlice()...), netip.MustParseAddr(dst).AsSlice()...)
	if next == 58 {
		binary.BigEndian.PutUint16(body[2:], checksum(append(bytes.Clone(f[22:]), append([]byte{0, 0, 0, byte(len(body)), 0, 0, 0, next}, body...)...)))
	}
	return append(f, body...)
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

func udp(to, from net.HardwareAddr, src, dst string) frame {
	token := nextToken()
	body := append([]byte{0x30, 0x39, 0x1f, 0x90, 0, byte(8 + len(token)), 0, 0}, token...)
	if strings.Contains(src, ":") {
		return frame{ip6(to, from, 17, 64, src, dst, body), token}
	}
	f := append(ethernet(to, from, 0x0800), 0x45, 0, 0, byte(20+len(body)), 0, 1, 0, 0, 64, 17, 0, 0)
	f = append(append(f, netip.MustParseAddr(src).AsSlice()...), netip.MustParseAddr(dst).AsSlice()...)
	binary.BigEndian.PutUint16(f[24:], checksum(f[14:34]))
	return frame{append(f, body...), token}
}

// linkLocal is the address that an interface makes of its MAC.
func linkLocal(mac net.HardwareAddr) string {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}).String()
}
