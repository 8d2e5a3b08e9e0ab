package node

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

const portTalk = 20000

// Who talks to whom in these tests; a pod of one namespace with a pod of another, and either
// with a host behind the node.
const (
	podToPod = "pods"
	podOut   = "out"
	podIn    = "in"
)

// change makes the policy forbid some talks; it is undone by the file as it was before.
type change struct {
	name      string
	file      string
	text      string   // "" = the file is removed
	direction string   // that denies
	dead      []string // which talks
	deniedBy  string   // by the policies that isolate
}

// The cluster before each change: a, of namespace cl, may send to b, of namespace sv, and to
// the outside; b lets in a and the outside; nothing else is allowed.
var (
	clientNamespace = namespace("cl", "team: blue")
	serverNamespace = namespace("sv", "team: red")
	clientPod       = pod("cl", "a", "app: a", "role: client")
	serverPod       = pod("sv", "b", "app: b", "role: server")
	standing        = policy("cl", "deny", "  podSelector: {}\n  policyTypes: [Egress]\n") +
		policy("sv", "deny", "  podSelector: {}\n  policyTypes: [Ingress]\n")
	letIn  = ingressPolicy("client", outside4, outside6, "")
	letOut = egressPolicy("server", outside4, outside6, "")
)

func ingressPolicy(role, block4, block6, ports string) string {
	return policy("sv", "in", fmt.Sprintf(`  podSelector: {matchLabels: {app: b}}
  ingress:
    - from:
        - namespaceSelector: {matchLabels: {team: blue}}
          podSelector: {matchLabels: {role: %s}}
        - ipBlock: {%s}
        - ipBlock: {%s}
%s`, role, block4, block6, ports))
}

func egressPolicy(role, block4, block6, ports string) string {
	return policy("cl", "out", fmt.Sprintf(`  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress:
    - to:
        - namespaceSelector: {matchLabels: {team: red}}
          podSelector: {matchLabels: {role: %s}}
        - ipBlock: {%s}
        - ipBlock: {%s}
%s`, role, block4, block6, ports))
}

// Blocks: the host behind the node, and its neighbour.
const (
	outside4, outside6 = `cidr: 192.0.2.10/32`, `cidr: "2001:db8::10/128"`
	another4, another6 = `cidr: 192.0.2.11/32`, `cidr: "2001:db8::11/128"`
)

const onePort = "      ports: [{port: 1}, {port: 1, protocol: UDP}]\n"

var changes = []change{
	{"the rule's peer", "in.yaml", ingressPolicy("nobody", outside4, outside6, ""), "INGRESS", []string{podToPod}, "sv/deny sv/in"},
	{"the rule's block", "in.yaml", ingressPolicy("client", another4, another6, ""), "INGRESS", []string{podIn}, "sv/deny sv/in"},
	{"the rule's block, by exception", "in.yaml", ingressPolicy("client", `cidr: 192.0.2.0/24, except: [192.0.2.8/29]`, `cidr: "2001:db8::/64", except: ["2001:db8::10/124"]`, ""), "INGRESS", []string{podIn}, "sv/deny sv/in"},
	{"the rule's ports", "in.yaml", ingressPolicy("client", outside4, outside6, onePort), "INGRESS", []string{podToPod, podIn}, "sv/deny sv/in"},
	{"the policy goes", "in.yaml", "", "INGRESS", []string{podToPod, podIn}, "sv/deny"},
	{"the pod's labels", "server.yaml", pod("sv", "b", "app: other", "role: server"), "INGRESS", []string{podToPod, podIn}, "sv/deny"},
	{"the peer's labels", "client.yaml", pod("cl", "a", "app: a"), "INGRESS", []string{podToPod}, "sv/deny sv/in"},
	{"the peer's namespace's labels", "namespaces.yaml", namespace("cl", "team: green") + serverNamespace, "INGRESS", []string{podToPod}, "sv/deny sv/in"},

	{"the rule's peer", "out.yaml", egressPolicy("nobody", outside4, outside6, ""), "EGRESS", []string{podToPod}, "cl/deny cl/out"},
	{"the rule's block", "out.yaml", egressPolicy("server", another4, another6, ""), "EGRESS", []string{podOut}, "cl/deny cl/out"},
	{"the rule's ports", "out.yaml", egressPolicy("server", outside4, outside6, onePort), "EGRESS", []string{podToPod, podOut}, "cl/deny cl/out"},
	{"the policy goes", "out.yaml", "", "EGRESS", []string{podToPod, podOut}, "cl/deny"},
	{"the pod's labels", "client.yaml", pod("cl", "a", "app: other", "role: client"), "EGRESS", []string{podToPod, podOut}, "cl/deny"},
	{"the peer's labels", "server.yaml", pod("sv", "b", "app: b"), "EGRESS", []string{podToPod}, "cl/deny cl/out"},
	{"the peer's namespace's labels", "namespaces.yaml", clientNamespace + namespace("sv", "team: green"), "EGRESS", []string{podToPod}, "cl/deny cl/out"},
}

var before = map[string]string{
	"namespaces.yaml": clientNamespace + serverNamespace, "client.yaml": clientPod, "server.yaml": serverPod,
	"standing.yaml": standing, "in.yaml": letIn, "out.yaml": letOut,
}

// TestChangesRevoke: whatever makes a policy forbid what is going on, of TCP, UDP and ICMP,
// in both families, nothing more arrives at either end that is said after the change; it is
// recorded as revoked, by the side that denies; the others talk on; and when it is allowed
// again, they do too, on the same sockets.
func TestChangesRevoke(t *testing.T) {
	e := newEnv(t, "namespaces.yaml", clientNamespace+serverNamespace, "client.yaml", clientPod, "server.yaml", serverPod)
	e.add("cl/a", "sv/b")
	a, b := e.host("cl/a"), e.host("sv/b")
	e.quietICMP(b)
	e.quietICMP(e.Outside)
	talks := map[string][]*talk{}
	for _, family := range families {
		talks[podToPod] = append(talks[podToPod], e.talks(a, b, family)...)
		talks[podOut] = append(talks[podOut], e.talks(a, e.Outside, family)...)
		talks[podIn] = append(talks[podIn], e.talks(e.Outside, b, family)...)
	}
	all := slices.Concat(talks[podToPod], talks[podOut], talks[podIn])
	e.flow("without a policy", clock(), all...)

	e.apply("standing.yaml", standing)
	e.silence("isolated", clock(), all...)
	e.apply("in.yaml", letIn)
	e.silence("b lets in, a may not send", clock(), slices.Concat(talks[podToPod], talks[podOut])...)
	e.apply("out.yaml", letOut)
	e.flow("let in and out", clock(), all...)
	for _, c := range changes {
		t.Run(strings.ReplaceAll(strings.ToLower(c.direction)+" "+c.name, " ", "-"), func(t *testing.T) {
			was := e.t
			e.t = t
			defer func() { e.t = was }()
			e.revoke(c, talks)
		})
	}
}

// talks are those that a change is tried on, between two hosts.
func (e *env) talks(from, to *lab.Host, family int) []*talk {
	e.t.Helper()
	half := e.tcpTalk("half closed", from, to, family, false, true)
	e.must("hang up", half.hangUp())
	return []*talk{
		half,
		e.tcpTalk("both speak", from, to, family, true, true),
		e.tcpTalk("the server pushes", from, to, family, false, true),
		e.tcpTalk("idle, the client speaks", from, to, family, false, false).hush(1),
		e.tcpTalk("idle, the server speaks", from, to, family, false, false).hush(0),
		e.udpTalk("both speak", from, to, family, true, true),
		e.udpTalk("the server pushes", from, to, family, false, true),
		e.udpTalk("idle, the client speaks", from, to, family, false, false).hush(1),
		e.udpTalk("idle, the server speaks", from, to, family, false, false).hush(0),
		e.icmpTalk(from, to, family),
	}
}

func (e *env) revoke(c change, talks map[string][]*talk) {
	e.t.Helper()
	var dead, alive []*talk
	for who, some := range talks {
		if slices.Contains(c.dead, who) {
			dead = append(dead, some...)
		} else {
			alive = append(alive, some...)
		}
	}
	was := e.status()
	if c.text == "" {
		e.must("remove", e.Remove(c.file))
		e.must("wait", e.Wait(e.ctx))
	} else {
		e.apply(c.file, c.text)
	}
	at := clock()
	e.silence("forbidden", at, dead...)
	e.flow("not concerned", at, alive...)
	e.onlyDropped(was, "policy")
	e.recorded(c, was.Epoch, dead, alive)
	e.apply(c.file, before[c.file])
	e.flow("allowed again", clock(), slices.Concat(dead, alive)...)
}

// onlyDropped: since then, packets were dropped for the reason and no other; multicast is
// every host's chatter.
func (e *env) onlyDropped(since api.Status, reason string) {
	e.t.Helper()
	for r, n := range e.status().Drops {
		if n -= since.Drops[r]; n > 0 && r != reason && r != "multicast" {
			e.t.Errorf("%d packets dropped for %q", n, r)
		} else if n == 0 && r == reason {
			e.t.Errorf("no packet dropped for %q", r)
		}
	}
}

// recorded: each dead talk has one record of its end since the epoch, as it should be, and
// no other talk has any.
func (e *env) recorded(c change, epoch uint64, dead, alive []*talk) {
	e.t.Helper()
	key := func(t *talk) string {
		port := t.port
		if t.protocol == "icmp" {
			port = 0
		}
		return fmt.Sprintf("%s %s %s %d", t.protocol, t.from.Addr(t.family), t.to.Addr(t.family), port)
	}
	records := map[string][]lab.Flow{}
	e.eventually("a record of each revocation", 20*time.Second, func() bool {
		clear(records)
		for _, f := range e.flows("--verdict", "dropped", "--last", "100000") {
			if x := e.extension(f); x.Kind == api.FlowRevoked && x.Epoch > epoch {
				protocol, port := f.Port()
				k := fmt.Sprintf("%.4s %s %s %d", protocol, f.IP.Source, f.IP.Destination, port)
				records[k] = append(records[k], f)
			}
		}
		return len(records) >= len(dead)
	})
	for _, t := range dead {
		r := records[key(t)]
		if len(r) != 1 {
			e.t.Errorf("%v: %d records of its revocation", t, len(r))
			continue
		}
		x, by := e.extension(r[0]), r[0].IngressDeniedBy
		if c.direction == "EGRESS" {
			by = r[0].EgressDeniedBy
		}
		var names []string
		for _, p := range by {
			names = append(names, p.Namespace+"/"+p.Name)
		}
		if r[0].TrafficDirection != c.direction || x.Reason != "policy" || strings.Join(names, " ") != c.deniedBy || x.End != "revoked" || x.Packets == nil || x.Packets.Sent == 0 {
			e.t.Errorf("%v: recorded %+v, want %s, by %s", t, r[0], c.direction, c.deniedBy)
		}
	}
	for _, t := range alive {
		if r := records[key(t)]; len(r) > 0 {
			e.t.Errorf("%v: recorded as revoked: %+v", t, r[0])
		}
	}
}

// TestRevokedTupleOpensAnew (B16): on the ports of a revoked connection nothing opens while
// that is forbidden; afterwards a new flow does, and the log tells how the old one ended.
func TestRevokedTupleOpensAnew(t *testing.T) {
	const local = 40000
	e := newEnv(t, "pods.yaml", abc, "deny.yaml", policy("ns", "deny", denyIngress), "allow.yaml", policy("ns", "allow", fromAnyPort))
	e.add("ns/a", "ns/b")
	for _, family := range families {
		connect := func() (net.Conn, error) {
			from := net.TCPAddr{IP: net.ParseIP(e.host("ns/a").Addr(family)), Port: local}
			d := net.Dialer{LocalAddr: &from, Timeout: lab.Patience}
			d.SetMultipathTCP(false)
			var c net.Conn
			err := e.host("ns/a").Do(func() (err error) {
				c, err = d.Dial("tcp", net.JoinHostPort(e.host("ns/b").Addr(family), fmt.Sprint(portHTTP)))
				return err
			})
			return c, err
		}
		old, err := connect()
		e.must("connect", err)
		e.must("remove", e.Remove("allow.yaml"))
		e.must("wait", e.Wait(e.ctx))
		e.must("reset", old.(*net.TCPConn).SetLinger(0))
		old.Close() // the reset is dropped
		if _, err := connect(); err == nil {
			t.Errorf("IPv%d: connected from the same port while it is forbidden", family)
		}
		e.apply("allow.yaml", policy("ns", "allow", fromAnyPort))
		e.eventually("connects again from the same port", 30*time.Second, func() bool {
			c, err := connect()
			if err != nil {
				return false
			}
			_, err = c.Write([]byte{1})
			e.must("reset", c.(*net.TCPConn).SetLinger(0))
			c.Close()
			return err == nil
		})
		var kinds []string
		e.eventually("the records of both connections", 20*time.Second, func() bool {
			kinds = nil
			for _, f := range e.flows("--last", "1000", "--pod", "ns/a", "--port", fmt.Sprint(portHTTP)) {
				x := e.extension(f)
				if f.IP.Source == e.host("ns/a").Addr(family) && x.Kind != api.FlowDenied {
					kinds = append(kinds, strings.TrimSpace(x.Kind+" "+x.End))
				}
			}
			return len(kinds) >= 5
		})
		if got := strings.Join(kinds[:4], ", "); got != "new, revoked revoked, ended revoked, new" {
			t.Errorf("IPv%d: recorded %s", family, got)
		}
	}
}
