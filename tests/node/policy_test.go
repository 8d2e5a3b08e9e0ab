package node

import "testing"

func TestNoPolicyAllowsAll(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc)
	e.add("ns/a", "ns/b")
	e.check(
		probe{"ns/a", "ns/b", "tcp", portHTTP, yes},
		probe{"ns/a", "ns/b", "udp", portOther, yes},
		probe{"ns/a", "ns/b", "icmp", 0, yes},
		probe{"ns/a", "ns/a", "tcp", portHTTP, yes},
		probe{"ns/a", "outside", "icmp", 0, yes},
		probe{"outside", "ns/a", "tcp", portHTTP, yes},
		probe{"outside", "ns/a", "icmp", 0, yes},
		probe{"node", "ns/a", "tcp", portHTTP, yes},
		probe{"node", "ns/b", "icmp", 0, yes},
		probe{"ns/a", "node", "icmp", 0, yes},
	)
}

func TestDefaultDeny(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc+pod("free", "d"), "policy.yaml", policy("ns", "deny", denyAll))
	e.add("ns/a", "ns/b", "free/d")
	e.check(
		probe{"ns/a", "ns/b", "tcp", portHTTP, no},
		probe{"ns/a", "ns/b", "udp", portOther, no},
		probe{"ns/a", "ns/b", "icmp", 0, no},
		probe{"ns/a", "free/d", "tcp", portHTTP, no}, // egress of a
		probe{"free/d", "ns/a", "tcp", portHTTP, no}, // ingress of a
		probe{"outside", "ns/a", "tcp", portHTTP, no},
		probe{"ns/a", "outside", "icmp", 0, no},
		probe{"ns/a", "ns/a", "tcp", portHTTP, yes}, // a pod reaches itself
		probe{"node", "ns/a", "tcp", portHTTP, yes}, // a node reaches its pods
		probe{"node", "ns/a", "icmp", 0, yes},       //
		probe{"ns/a", "node", "icmp", 0, no},        // but not the other way round
		probe{"outside", "free/d", "udp", portOther, yes},
	)
}

func TestPortsByNumberNameAndRange(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "ports", `  podSelector: {matchLabels: {app: b}}
  ingress:
    - ports:
        - {port: http}
        - {port: 7000, endPort: 7010}
        - {port: dns, protocol: UDP}
`))
	e.add("ns/a", "ns/b")
	e.check(
		probe{"ns/a", "ns/b", "tcp", portHTTP, yes},
		probe{"ns/a", "ns/b", "udp", portHTTP, no},
		probe{"ns/a", "ns/b", "udp", portOther, yes},
		probe{"ns/a", "ns/b", "tcp", portOther, no},
		probe{"ns/a", "ns/b", "tcp", portLow, yes},
		probe{"ns/a", "ns/b", "tcp", portHigh, yes},
		probe{"ns/a", "ns/b", "tcp", portPast, no},
		probe{"ns/a", "ns/b", "udp", portLow, no},
		probe{"ns/a", "ns/b", "icmp", 0, no},
	)
}

func TestNamedPortsOfEgress(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "named", `  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress:
    - to:
        - podSelector: {}
      ports:
        - {port: http}
`))
	e.add("ns/a", "ns/b")
	e.check(
		probe{"ns/a", "ns/b", "tcp", portHTTP, yes},
		probe{"ns/a", "ns/b", "tcp", portOther, no},
		probe{"ns/b", "ns/a", "tcp", portOther, yes},
	)
}

func TestPeersByLabelsAndNamespaces(t *testing.T) {
	e := newEnv(t,
		"pods.yaml", namespace("blue", "team: blue")+abc+pod("blue", "x", "app: a", "tier: front")+pod("blue", "z", "app: z"),
		"policy.yaml", policy("ns", "peers", `  podSelector: {matchLabels: {app: b}}
  ingress:
    - from:
        - podSelector: {matchExpressions: [{key: app, operator: In, values: [a, w]}]}
        - namespaceSelector: {matchLabels: {team: blue}}
          podSelector: {matchExpressions: [{key: tier, operator: Exists}]}
`))
	e.add("ns/a", "ns/b", "ns/c", "blue/x", "blue/z")
	e.check(
		probe{"ns/a", "ns/b", "tcp", portOther, yes},
		probe{"ns/c", "ns/b", "tcp", portOther, no},
		probe{"blue/x", "ns/b", "udp", portOther, yes},
		probe{"blue/z", "ns/b", "udp", portOther, no},
		probe{"outside", "ns/b", "tcp", portOther, no},
	)
}

func TestAddressBlocksWithExceptions(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml",
		policy("ns", "in", `  podSelector: {matchLabels: {app: a}}
  ingress:
    - from:
        - ipBlock: {cidr: 192.0.2.0/24}
        - ipBlock: {cidr: "2001:db8::/64"}
`)+policy("ns", "in-except", `  podSelector: {matchLabels: {app: b}}
  ingress:
    - from:
        - ipBlock: {cidr: 192.0.0.0/16, except: [192.0.2.8/29]}
        - ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8::10/124"]}
`)+policy("ns", "pods-by-address", `  podSelector: {matchLabels: {app: c}}
  ingress:
    - from:
        - ipBlock: {cidr: 10.77.0.0/24}
        - ipBlock: {cidr: "fd77::/112"}
`))
	e.add("ns/a", "ns/b", "ns/c")
	e.check(
		probe{"outside", "ns/a", "tcp", portHTTP, yes},
		probe{"outside", "ns/b", "tcp", portHTTP, no},
		probe{"outside", "ns/c", "tcp", portHTTP, no},
		probe{"ns/c", "ns/a", "tcp", portHTTP, no},
		probe{"ns/a", "ns/c", "tcp", portHTTP, yes}, // a block matches the pods in it too
	)
}

func TestEditAppliesWithoutRestart(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "deny.yaml", policy("ns", "deny", denyIngress))
	e.add("ns/a", "ns/b", "ns/c")
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no})
	e.apply("allow.yaml", policy("ns", "allow", fromA))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes}, probe{"ns/c", "ns/b", "tcp", portHTTP, no})
	// Labels are policy too: a loses its access, c gains it.
	e.apply("pods.yaml", pod("ns", "a", "app: c")+pod("ns", "b", "app: b")+pod("ns", "c", "app: a"))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no}, probe{"ns/c", "ns/b", "tcp", portHTTP, yes})
	e.must("remove", e.Remove("allow.yaml"))
	e.must("wait", e.Wait(e.ctx))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, no}, probe{"ns/c", "ns/b", "tcp", portHTTP, no})
	e.must("remove", e.Remove("deny.yaml"))
	e.must("wait", e.Wait(e.ctx))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, yes})
}
