package bypass

import (
	"fmt"
	"strings"
)

// meaning is what a policy means at its edges.
var meaning = []bypass{{
	id: "B26", name: "namespace_deleted",
	title:  "namespace deletion removes the policy before the pods",
	public: "CVE-2024-7598",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		a.apply("pods.yaml", podYAML("ns", "mallory", "app: mallory")+podYAML("ns", "eve", "app: eve"))
		a.drop("to a pod whose object is deleted and whose interface is not", m, policy, tcp(m.Addr4, 1, b.Addr4, closedTCP, "S"), tcp(m.Addr6, 1, b.Addr6, closedTCP, "S"))
		a.drop("to another", m, policy, tcp(m.Addr4, 1, a.alice.Addr4, openTCP, "S"))
		a.pass("what was allowed, still is", m, b, tcp(m.Addr4, 1, b.Addr4, openTCP, "S"))
		a.apply("pods.yaml", "")
		a.drop("by a pod whose object is deleted", m, policy, tcp(m.Addr4, 2, b.Addr4, closedTCP, "S"), tcp(m.Addr6, 2, b.Addr6, closedTCP, "S"))
	},
	tests: []string{"controlplane/policy TestAnInterfaceWithoutPodHasNoRulesets"},
	note:  "policies that an API server deletes before the pods of a namespace: with the Kubernetes source, tests/cluster",
}, {
	id: "B27", name: "empty_selector",
	title:  "an empty selector or set turns into allow-all (or deny-all)",
	public: "CVE-2025-64715",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		syn := func(from *end, port uint16) [][]byte {
			return [][]byte{tcp(from.Addr4, port, b.Addr4, port, "S"), tcp(from.Addr6, port, b.Addr6, port, "S")}
		}
		for i, rule := range []string{
			"[]",
			"[{from: [{podSelector: {matchLabels: {app: nobody}}}]}]",
			"[{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [nobody]}]}}]}]",
			"[{from: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]",
			"[{from: [{namespaceSelector: {matchLabels: {no: one}}}]}]",
			"[{from: [{namespaceSelector: {matchLabels: {no: one}}, podSelector: {}}]}]",
			"[{from: [{ipBlock: {cidr: 10.77.0.0/16, except: [10.77.0.0/17, 10.77.128.0/17]}}]}]",
			"[{from: [{ipBlock: {cidr: 192.0.2.77/32}}]}]",
			"[{ports: [{port: nobody}]}]",
			"[{from: [{podSelector: {}}], ports: [{port: nobody}, {port: 1}]}]",
		} {
			a.apply("policy.yaml", policyYAML("ns", "bob", "{podSelector: {matchLabels: {app: bob}}, policyTypes: [Ingress], ingress: "+rule+"}"))
			a.drop("a rule that means nobody: "+rule, m, policy, syn(m, uint16(2700+i))...)
			a.drop("from outside: "+rule, a.outside, policy, tcp(beyond4, 1, b.Addr4, uint16(2700+i), "S"), tcp(beyond6, 1, b.Addr6, uint16(2700+i), "S"))
		}
		bob := func(rule string) {
			must(a.T, a.Apply(a.ctx, "policy.yaml", policyYAML("ns", "bob", "{podSelector: {matchLabels: {app: bob}}, ingress: "+rule+"}")+
				policyYAML("ns", "alice", "{podSelector: {matchLabels: {app: alice}}, policyTypes: [Ingress]}")))
		}
		bob("[{from: [], ports: [{port: 80}]}]")
		a.pass("no peers mean all, on the ports named", m, b, syn(m, 80)...)
		a.drop("on no others", m, policy, syn(m, 81)...)
		bob("[{from: [{podSelector: {matchLabels: {app: alice}}}], ports: []}]")
		a.pass("no ports mean all, for the peers named", al, b, syn(al, 2711)...)
		a.drop("for no others", m, policy, syn(m, 2711)...)
		bob("[{from: [{podSelector: {}}]}]")
		a.pass("an empty podSelector is the namespace's pods", m, b, syn(m, 2712)...)
		a.drop("and nobody outside", a.outside, policy, tcp(beyond4, 1, b.Addr4, 2712, "S"))
		must(a.T, a.Apply(a.ctx, "policy.yaml", policies))
		for i, rule := range []string{"[]", "[{to: [{podSelector: {matchLabels: {app: nobody}}}]}]", "[{to: [{ipBlock: {cidr: 10.77.0.0/31}}]}]", "[{ports: [{port: nobody}]}]"} {
			must(a.T, a.Apply(a.ctx, "policy.yaml", policyYAML("ns", "eve", "{podSelector: {matchLabels: {app: eve}}, policyTypes: [Egress], egress: "+rule+"}")))
			e := a.eve
			a.drop("an egress rule that means nobody: "+rule, e, policy, tcp(e.Addr4, uint16(2720+i), b.Addr4, openTCP, "S"), tcp(e.Addr6, uint16(2720+i), beyond6, 80, "S"))
		}
	},
	tests: []string{"controlplane/policy TestSemantics", "controlplane/source TestRules"},
}, {
	id: "B28", name: "cidr_precedence",
	title:  "CIDR precedence: narrow allow and wide deny, host bits set, except overlap, mixed families; an ipBlock rule that lets in the whole namespace",
	public: "CVE-2024-47825, cilium #46305",
	try: func(a *attempt) {
		m, b, al := a.mallory, a.bob, a.alice
		a.apply("policy.yaml", policyYAML("ns", "bob", fmt.Sprintf(`{podSelector: {matchLabels: {app: bob}}, ingress: [{from: [
  {ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/25, 203.0.113.64/26, 203.0.113.200/32]}},
  {ipBlock: {cidr: 203.0.113.32/27, except: [203.0.113.40/30]}}, {ipBlock: {cidr: 203.0.113.41/32}},
  {ipBlock: {cidr: 198.51.100.77/24}}, {ipBlock: {cidr: "2001:db8:1::/48", except: ["2001:db8:1:8000::/49"]}},
  {ipBlock: {cidr: %s/32}}]}]}`, al.Addr4)))
		from := func(addresses ...string) (frames [][]byte) {
			for _, s := range addresses {
				to := b.Addr4
				if strings.Contains(s, ":") {
					to = b.Addr6
				}
				frames = append(frames, tcp(s, 1, to, 80, "S"))
			}
			return frames
		}
		a.pass("in a block", a.outside, b, from("203.0.113.128", "203.0.113.199", "203.0.113.201", "203.0.113.255",
			"203.0.113.32", "203.0.113.39", "203.0.113.44", "203.0.113.63", "203.0.113.41",
			"198.51.100.0", "198.51.100.77", "198.51.100.255", "2001:db8:1::1", "2001:db8:1:7fff:ffff::1")...)
		a.drop("in an exception, or beside a block", a.outside, policy, from("203.0.113.0", "203.0.113.31", "203.0.113.64", "203.0.113.127", "203.0.113.200",
			"203.0.113.40", "203.0.113.42", "203.0.113.43", "203.0.114.0", "203.0.112.255",
			"198.51.99.255", "198.51.101.0", "2001:db8:1:8000::1", "2001:db8:1:ffff::1", "2001:db8:2::1", "2001:db7:ffff::1")...)
		a.pass("a pod by its address", al, b, tcp(al.Addr4, 1, b.Addr4, 80, "S"))
		a.drop("its other family", al, policy, tcp(al.Addr6, 1, b.Addr6, 80, "S"))
		a.drop("others of its namespace", m, policy, tcp(m.Addr4, 1, b.Addr4, 80, "S"), tcp(m.Addr6, 1, b.Addr6, 80, "S"))
		for _, c := range []struct{ block, in, out string }{{"::/0", beyond6, beyond4}, {"0.0.0.0/0", beyond4, beyond6}} {
			must(a.T, a.Apply(a.ctx, "policy.yaml", policyYAML("ns", "bob", `{podSelector: {matchLabels: {app: bob}}, ingress: [{from: [{ipBlock: {cidr: "`+c.block+`"}}]}]}`)))
			a.pass("all of a family", a.outside, b, from(c.in)...)
			a.drop("nothing of the other", a.outside, policy, from(c.out)...)
		}
	},
	tests: []string{"identity TestBlocksAreExactByLongestCIDR", "controlplane/source TestRules", "tests/packet TestFamiliesAreApart"},
}, {
	id: "B29", name: "priority_overflow",
	title:  "rule order or priority overflow at scale",
	public: "CVE-2026-25804",
	try: func(a *attempt) {
		const many = 1000
		m, b, al := a.mallory, a.bob, a.alice
		var text strings.Builder
		for i := range many {
			text.WriteString(policyYAML("ns", fmt.Sprintf("p%d", i), fmt.Sprintf(
				"{podSelector: {matchLabels: {app: bob}}, ingress: [{from: [{podSelector: {matchLabels: {app: alice}}}], ports: [{port: %d}]}]}", 20000+i)))
		}
		text.WriteString(policyYAML("ns", "last", "{podSelector: {matchLabels: {app: bob}}, ingress: [{from: [{podSelector: {matchLabels: {app: mallory}}}], ports: [{port: 22000}]}]}"))
		a.apply("policy.yaml", text.String())
		for _, port := range []uint16{20000, 20001, 20000 + many/2, 20000 + many - 1} {
			a.drop("another's rule among a thousand", m, policy, tcp(m.Addr4, 1, b.Addr4, port, "S"), tcp(m.Addr6, 1, b.Addr6, port, "S"))
			a.pass("his own", al, b, tcp(al.Addr4, 1, b.Addr4, port, "S"), tcp(al.Addr6, 1, b.Addr6, port, "S"))
		}
		a.pass("the last one's", m, b, tcp(m.Addr4, 1, b.Addr4, 22000, "S"))
		a.drop("no rule's", m, policy, tcp(m.Addr4, 1, b.Addr4, closedTCP, "S"), tcp(m.Addr4, 1, b.Addr4, 20000+many, "S"), tcp(m.Addr4, 1, b.Addr4, 22001, "S"))
		a.drop("no rule's, for alice", al, policy, tcp(al.Addr4, 1, b.Addr4, 22000, "S"))
	},
	tests: []string{"controlplane/policy TestTooManyRangesRefuseTheLargestPolicy"},
	note:  "policies only allow: there is no order and no priority",
}, {
	id: "B30", name: "port_range_edges",
	title:  "port-range edges and wildcards (start, end, 0, 65535)",
	public: "CVE-2024-52529",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		a.apply("policy.yaml", policyYAML("ns", "bob", `{podSelector: {matchLabels: {app: bob}}, ingress: [{ports: [
  {port: 1}, {port: 7000, endPort: 7010}, {port: 7008, endPort: 7020}, {port: 8000, endPort: 8000}, {port: 65530, endPort: 65535},
  {port: 100, endPort: 200, protocol: UDP}]}]}`))
		syn := func(ports ...uint16) (frames [][]byte) {
			for _, p := range ports {
				frames = append(frames, tcp(m.Addr4, 30, b.Addr4, p, "S"), tcp(m.Addr6, 30, b.Addr6, p, "S"))
			}
			return frames
		}
		datagrams := func(ports ...uint16) (frames [][]byte) {
			for _, p := range ports {
				frames = append(frames, udp(m.Addr4, 30, b.Addr4, p), udp(m.Addr6, 30, b.Addr6, p))
			}
			return frames
		}
		a.pass("in a range", m, b, syn(1, 7000, 7001, 7010, 7011, 7020, 8000, 65530, 65534, 65535)...)
		a.drop("beside it", m, policy, syn(0, 2, 6999, 7021, 7999, 8001, 65529)...)
		a.pass("in a range of UDP", m, b, datagrams(100, 150, 200)...)
		a.drop("beside it, or of the other protocol", m, policy, datagrams(0, 99, 201, 7000, 65535)...)
		a.drop("of the other protocol", m, policy, syn(100, 200)...)
		must(a.T, a.Apply(a.ctx, "policy.yaml", policyYAML("ns", "bob", `{podSelector: {matchLabels: {app: bob}}, ingress: [{ports: [{port: 1, endPort: 65535}, {protocol: UDP}]}]}`)))
		a.pass("all ports", m, b, append(syn(1, closedTCP, 65535), datagrams(0, 1, 65535)...)...)
		a.drop("no port, and no other protocol", m, policy, append(syn(0), echo(m.Addr4, b.Addr4, 1, false), v4(m.Addr4, b.Addr4, protoSCTP, make([]byte, 12)), v4(m.Addr4, b.Addr4, 136, datagram(1, 1, nil)))...)
	},
	tests: []string{"controlplane/policy TestSemantics", "controlplane/source TestRules"},
}}
