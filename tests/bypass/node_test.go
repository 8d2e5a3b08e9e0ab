package bypass

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

const serviceIP4, serviceIP6 = "10.96.0.10", "fd96::10"

// serviceYAML is a Service whose backends are whatever the node's NAT says.
var serviceYAML = fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {namespace: ns, name: svc}
spec:
  type: NodePort
  clusterIP: %s
  clusterIPs: [%s, "%s"]
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: open, port: 80, targetPort: 8080, nodePort: 30080}
    - {name: closed, port: 81, targetPort: 22, nodePort: 30081}
    - {name: excepted, port: 82, nodePort: 30082}
    - {name: outside, port: 83, nodePort: 30083}
    - {name: nobody, port: 84, nodePort: 30084}
`, serviceIP4, serviceIP4, serviceIP6)

// node is what goes by the node itself: its NAT, its addresses, its other family.
var node = []bypass{{
	id: "B31", name: "nodeport_and_hostport",
	title: "a pod reaches a target through NodePort or hostPort so that it looks like the node",
	try: func(a *attempt) {
		a.apply("service.yaml", serviceYAML)
		a.nat()
		m, e, al, b := a.mallory, a.eve, a.alice, a.bob
		for i, c := range [][3]string{{"192.0.2.1", serviceIP4, b.Addr4}, {"2001:db8::1", serviceIP6, b.Addr6}} {
			port := uint16(3100 + 10*i)
			self := func(x *end) string { return x.Addr(4 + 2*i) }
			isSYN := func(f []byte) bool { return isTo(f, c[2], openTCP) && !bytes.Contains(f, addr(self(m))) }
			a.arrives("NodePort, its backend open", m, b, isSYN, tcp(self(m), port, c[0], 30080, "S"))
			a.arrives("ClusterIP, its backend open", m, b, isSYN, tcp(self(m), port+1, c[1], 80, "S"))
			a.drop("NodePort, its backend closed", m, policy, tcp(self(m), port+2, c[0], 30081, "S"))
			a.drop("ClusterIP, its backend closed", m, policy, tcp(self(m), port+3, c[1], 81, "S"))
			a.arrives("the same for alice", al, b, func(f []byte) bool { return isTo(f, c[2], closedTCP) },
				tcp(self(al), port+2, c[0], 30081, "S"), tcp(self(al), port+3, c[1], 81, "S"))
			a.drop("NodePort of a node that the pod may not reach", e, policy, tcp(self(e), port, c[0], 30080, "S"), tcp(self(e), port, c[0], 30081, "S"))
			a.arrives("ClusterIP, both may", e, b, isSYN, tcp(self(e), port+1, c[1], 80, "S"))
			a.drop("ClusterIP, its backend closed", e, policy, tcp(self(e), port+2, c[1], 81, "S"))
			a.drop("from outside by NodePort", a.outside, policy, tcp([]string{beyond4, beyond6}[i], port, c[0], 30080, "S"))
		}
		a.drop("a port that nobody claims", e, policy, tcp(e.Addr4, 3130, "192.0.2.1", 30099, "S"), udp(e.Addr4, 3130, "192.0.2.1", 30080))
	},
	tests: []string{"tests/packet TestNodeAddressIsNoPass", "tests/packet TestServiceIsJudgedBehindNAT", "controlplane/policy TestServiceServedByThisNodeIsNoFrontend"},
}, {
	id: "B32", name: "host_network",
	title: "host-network pods and host processes as source or subject",
	try: func(a *attempt) {
		m, e, b := a.mallory, a.eve, a.bob
		// A pod of the node's network has bob's trust by its label, and the node's addresses.
		a.apply("host.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {namespace: ns, name: host, labels: {app: alice}}\n"+
			"spec: {hostNetwork: true, nodeName: node, containers: [{name: c, image: c}]}\n"+
			"status: {phase: Running, podIP: 192.0.2.1, podIPs: [{ip: 192.0.2.1}, {ip: '2001:db8::1'}]}\n---\n"+
			"apiVersion: v1\nkind: Pod\nmetadata: {namespace: ns, name: far, labels: {app: alice}}\n"+
			"spec: {hostNetwork: true, nodeName: other, containers: [{name: c, image: c}]}\n"+
			"status: {phase: Running, podIP: 192.0.2.10, podIPs: [{ip: 192.0.2.10}, {ip: '2001:db8::10'}]}\n")
		a.drop("the label of another node's pod is not that node's", a.outside, policy,
			tcp("192.0.2.10", 1, b.Addr4, 80, "S"), tcp("2001:db8::10", 1, b.Addr6, 80, "S"))
		a.drop("this node's address from outside", a.outside, foreignSource, tcp("192.0.2.1", 1, b.Addr4, 80, "S"), tcp("2001:db8::1", 1, b.Addr6, 80, "S"))
		a.drop("this node's address from a pod", m, spoofed, tcp("192.0.2.1", 1, b.Addr4, 80, "S"))
		a.drop("to the node, by a pod that may not", e, policy,
			tcp(e.Addr4, 1, "192.0.2.1", 10250, "S"), tcp(e.Addr6, 1, "2001:db8::1", 10250, "S"), echo(e.Addr4, "192.0.2.1", 1, false),
			udp(e.Addr4, 1, "192.0.2.255", 53))
		a.apply("out.yaml", policyYAML("ns", "eve-out", `{podSelector: {matchLabels: {app: eve}}, policyTypes: [Egress], egress: [
  {to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.1/32]}}, {ipBlock: {cidr: "::/0", except: ["2001:db8::1/128"]}}]},
  {to: [{podSelector: {matchLabels: {app: alice}}}]}]}`))
		a.drop("all the world but the node", e, policy, tcp(e.Addr4, 2, "192.0.2.1", 10250, "S"), tcp(e.Addr6, 2, "2001:db8::1", 10250, "S"))
		a.drop("the node by its name on the pod's link", e, destination,
			v6(e.Addr6, "fe80::ecee:eeff:feee:eeee", protoTCP, segment(2, 10250, "S")), v6(e.Addr6, "fe80::1", protoUDP, datagram(2, 53, nil)))
		a.drop("the node by what it shares with everybody", e, multicast,
			udp(e.Addr4, 2, "255.255.255.255", 53), udp(e.Addr4, 2, "224.0.0.1", 53), udp(e.Addr6, 2, "ff02::1", 53))
		a.pass("the world", e, a.outside, tcp(e.Addr4, 2, beyond4, 80, "S"), tcp(e.Addr6, 2, beyond6, 80, "S"))
		_, _ = a.shell("ping -c 1 -W 1 " + b.Addr4 + " & ping -c 1 -W 1 " + b.Addr6 + "; wait") // bob has no stack to answer with
		for _, to := range []string{b.Addr4, b.Addr6} {
			if b.find(func(f []byte) bool { return bytes.Contains(f, addr(to)) && len(f) > 60 }) == nil {
				a.Errorf("the node's own echo does not arrive at %s", to)
			}
		}
		a.shown("the node's own reach its pods, as Kubernetes says")
		if w := a.Weir(a.ctx, "status").Stdout; !strings.Contains(w, "host") {
			a.Errorf("weir status says nothing of the pod that policies select in vain:\n%s", w)
		}
	},
	note: "a policy that selects a pod of the node's network does not apply to it, and `weir status` says so; " +
		"an `except` of the node's address leaves the broadcast address of its subnet, which the node hears",
}, {
	id: "B33", name: "redirect_paths",
	title:  "load balancer, gateway or redirect path skips policy",
	public: "CVE-2025-30162, CVE-2026-33726",
	try: func(a *attempt) {
		a.apply("service.yaml", serviceYAML)
		a.nat()
		m, e, b := a.mallory, a.eve, a.bob
		for i, c := range [][4]string{{serviceIP4, beyond4, "203.0.113.13", "192.0.2.1"}, {serviceIP6, beyond6, "2001:db8:1::13", "2001:db8::1"}} {
			self := func(x *end) string { return x.Addr(4 + 2*i) }
			port := uint16(3300 + 10*i)
			a.drop("a backend outside that an exception names", e, policy, tcp(self(e), port, c[0], 82, "S"))
			if i == 0 {
				a.arrives("a backend outside that the block has", e, a.outside, func(f []byte) bool { return isTo(f, c[1], 80) && bytes.Contains(f, addr(c[3])) },
					tcp(self(e), port, c[0], 83, "S"))
			} else {
				a.drop("a backend outside that no block has", e, policy, tcp(self(e), port, c[0], 83, "S"))
			}
			a.drop("a Service whose NAT is not there yet", e, policy, tcp(self(e), port, c[0], 84, "S"))
			a.arrives("the same, not isolated", m, a.outside, func(f []byte) bool { return isTo(f, c[2], 80) }, tcp(self(m), port, c[0], 82, "S"))
			// Bob's answers by NAT are nobody's way to begin with bob.
			a.arrives("ClusterIP", m, b, func(f []byte) bool { return isTo(f, self(b), openTCP) }, tcp(self(m), port+1, c[0], 80, "S"))
			a.drop("a new flow on its tuple, the other way", b, policy, tcp(self(b), openTCP, self(a.alice), port+1, "S"))
		}
	},
	tests: []string{"tests/packet TestPathIsFixedByTheFirstPacket", "tests/packet TestServiceIsJudgedBehindNAT", "tests/packet TestAnswerThroughNATIsDecided"},
	note:  "every hook judges what was not judged: there is no path that only one of them sees",
}, {
	id: "B34", name: "a_second_path",
	title:  "a second path: the other family, a second interface, a route not programmed yet",
	public: "CVE-2023-27594",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		a.apply("block.yaml", policyYAML("ns", "by-block", fmt.Sprintf(
			"{podSelector: {matchLabels: {app: alice}}, ingress: [{from: [{ipBlock: {cidr: %s/32}}, {ipBlock: {cidr: %s/32}}]}]}", m.Addr4, beyond4)))
		a.pass("the family that is allowed", m, al, tcp(m.Addr4, 1, al.Addr4, 80, "S"))
		a.drop("the other", m, policy, tcp(m.Addr6, 1, al.Addr6, 80, "S"))
		a.drop("the other, from outside", a.outside, policy, tcp(beyond6, 1, al.Addr6, 80, "S"))
		a.drop("another pod's address by the node's stack", a.outside, policy, tcp(beyond6, 1, b.Addr6, 80, "S"))
		a.drop("an address of the pods' range that nobody has", a.eve, unmanaged, tcp(a.eve.Addr4, 1, "10.77.0.200", openTCP, "S"), tcp(a.eve.Addr6, 1, "fd77::200", openTCP, "S"))
	},
	tests: []string{"tests/packet TestUnknownInterface", "tests/packet TestUnmanagedIsNotWorld", "cni TestReachable"},
	note:  "a second interface that another plugin gives a pod is outside of Weir: it is not judged",
}}

// isTo reports whether a frame is a TCP segment to an address and port.
func isTo(f []byte, dst string, port uint16) bool {
	at, l4 := 30, 34
	if len(f) > 54 && f[12] == 0x86 {
		at, l4 = 38, 54
	}
	want := addr(dst)
	return len(f) >= l4+4 && bytes.Equal(f[at:at+len(want)], want) && binary.BigEndian.Uint16(f[l4+2:]) == port
}

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// nat is the node's NAT as kube-proxy has it: the Service's ports, and everything it
// translates masqueraded.
func (a *attempt) nat() {
	a.Helper()
	rules := func(family, node, service, bob, excepted, outside string) string {
		to := func(address string, port int) string {
			if family == "ip6" {
				address = "[" + address + "]"
			}
			return fmt.Sprintf("%s:%d", address, port)
		}
		var b strings.Builder
		for _, r := range []struct {
			port    int
			backend string
		}{{80, to(bob, openTCP)}, {81, to(bob, closedTCP)}, {82, to(excepted, 80)}, {83, to(outside, 80)}} {
			fmt.Fprintf(&b, "add rule inet bypass pre %s daddr %s tcp dport %d dnat %s to %s\n", family, service, r.port, family, r.backend)
			fmt.Fprintf(&b, "add rule inet bypass pre %s daddr %s tcp dport %d dnat %s to %s\n", family, node, 30000+r.port, family, r.backend)
		}
		return b.String()
	}
	script := "add table inet bypass\n" +
		"add chain inet bypass pre { type nat hook prerouting priority dstnat; }\n" +
		"add chain inet bypass post { type nat hook postrouting priority srcnat; }\n" +
		"add rule inet bypass post ct status dnat masquerade\n" +
		rules("ip", "192.0.2.1", serviceIP4, a.bob.Addr4, "203.0.113.13", beyond4) +
		rules("ip6", "2001:db8::1", serviceIP6, a.bob.Addr6, "2001:db8:1::13", beyond6)
	a.nft(script)
	a.Cleanup(func() { a.nft("delete table inet bypass") })
}

// nft gives the node rules.
func (a *attempt) nft(script string) {
	a.Helper()
	if out, err := a.Node.Run(a.ctx, "nft", script); err != nil {
		a.Errorf("nft: %v: %s\n%s", err, out, script)
	}
}
