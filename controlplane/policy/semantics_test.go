package policy

import (
	"strings"
	"testing"

	"github.com/weirnet/weir/datapath"
)

// semanticsPods: a and b in namespace x (team=one), c in z, all here.
const semanticsPods = `
kind: Namespace
metadata: {name: x, labels: {team: one}}
---
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}
---
kind: Pod
metadata: {name: b, namespace: x, labels: {app: b, tier: back}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}, {name: web, containerPort: 81, protocol: UDP}]}]}
---
kind: Pod
metadata: {name: c, namespace: z}
spec: {containers: [{name: c}, {name: d, ports: [{name: web, containerPort: 82}]}]}
`

// TestSemantics has what a policy must do, in words of its documentation; both the
// compiled state and the reference are asked.
func TestSemantics(t *testing.T) {
	for _, test := range []struct{ name, spec, allowed, denied string }{{
		"no policyTypes and no egress rules: ingress alone",
		`{podSelector: {}}`,
		"a>c:80/tcp a>192.0.2.1:80/tcp", "b>a:80/tcp c>a:80/tcp c>b:1/sctp 192.0.2.1>a:80/tcp",
	}, {
		"no policyTypes but egress rules: both",
		`{podSelector: {matchLabels: {app: a}}, egress: [{ports: [{port: 80}]}]}`,
		"a>c:80/tcp a>192.0.2.1:80/tcp", "a>c:81/tcp a>c:80/udp b>a:80/tcp",
	}, {
		"policyTypes Ingress with egress rules: those mean nothing",
		`{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 80}]}]}`,
		"a>c:81/tcp", "c>a:80/tcp",
	}, {
		"policyTypes Egress alone isolates nothing inbound",
		`{podSelector: {}, policyTypes: [Egress]}`,
		"c>a:80/tcp", "a>c:80/tcp a>b:80/tcp",
	}, {
		"an empty rule allows everything, ICMP too",
		`{podSelector: {}, ingress: [{}]}`,
		"c>a:80/tcp c>a:0/icmp 192.0.2.1>a:7/sctp", "",
	}, {
		"podSelector alone means the policy's namespace",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {}}]}]}`,
		"b>a:80/tcp", "c>a:80/tcp",
	}, {
		"namespaceSelector {} means every pod, and nobody else",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{namespaceSelector: {}}]}]}`,
		"b>a:80/tcp c>a:80/tcp", "192.0.2.1>a:80/tcp 10.0.9.9>a:80/tcp",
	}, {
		"an undeclared namespace has its name as a label",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}`,
		"c>a:80/tcp", "b>a:80/tcp",
	}, {
		"both selectors in one peer must match",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: one}}, podSelector: {matchLabels: {app: b}}}]}]}`,
		"b>a:80/tcp", "c>a:80/tcp",
	}, {
		"NotIn and DoesNotExist match an absent key",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [back]}, {key: zone, operator: DoesNotExist}]}}]}]}`,
		"c>a:80/tcp", "b>a:80/tcp",
	}, {
		"NotIn selects subjects without the key too",
		`{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [back]}]}}`,
		"c>b:80/tcp", "c>a:80/tcp",
	}, {
		"ipBlock means the literal address, of pods too, less its exceptions",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.2/32]}}]}]}`,
		"c>a:80/tcp", "b>a:80/tcp 192.0.2.1>a:80/tcp",
	}, {
		"an exception of one block is no exception of another",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.2/31]}}, {ipBlock: {cidr: 10.0.0.2/32}}]}]}`,
		"b>a:80/tcp", "c>a:80/tcp",
	}, {
		"::/0 has no IPv4 address in it",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{ipBlock: {cidr: "::/0"}}]}]}`,
		"2001:db8::1>a:80/tcp", "192.0.2.1>a:80/tcp b>a:80/tcp",
	}, {
		"0.0.0.0/0 has no IPv6 address in it",
		`{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`,
		"192.0.2.1>a:80/tcp b>a:80/tcp", "2001:db8::1>a:80/tcp",
	}, {
		"a port without protocol is TCP, a protocol without port all its ports",
		`{podSelector: {}, ingress: [{ports: [{port: 53}, {protocol: SCTP}]}]}`,
		"c>a:53/tcp c>a:9/sctp", "c>a:53/udp c>a:54/tcp c>a:0/icmp",
	}, {
		"endPort includes both ends",
		`{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: 100, endPort: 200}]}]}`,
		"c>a:100/udp c>a:200/udp", "c>a:99/udp c>a:201/udp c>a:150/tcp",
	}, {
		"an ingress name is the subject's own port of that protocol",
		`{podSelector: {}, ingress: [{ports: [{port: web}]}]}`,
		"c>a:80/tcp c>b:8080/tcp", "c>a:8080/tcp c>b:80/tcp c>b:81/udp c>b:81/tcp",
	}, {
		"an egress name is the receiver's, also when the peer is a block",
		`{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: web}]}]}`,
		"a>b:8080/tcp a>c:82/tcp", "a>b:80/tcp a>c:80/tcp a>b:81/udp a>10.0.0.99:80/tcp",
	}, {
		"the node reaches its pods, and is reached by ipBlock only",
		`{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress], egress: [{to: [{namespaceSelector: {}}]}]}`,
		"10.0.1.1>a:80/tcp a>b:80/tcp", "a>10.0.1.1:10250/tcp b>a:80/tcp",
	}, {
		"an ipBlock over the node's address reaches it",
		`{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.1.1/32}}]}]}`,
		"a>10.0.1.1:10250/tcp", "a>b:80/tcp",
	}, {
		"a pod reaches itself, whatever the policy",
		`{podSelector: {}, policyTypes: [Ingress, Egress]}`,
		"a>a:80/tcp", "a>b:80/tcp",
	}} {
		t.Run(test.name, func(t *testing.T) {
			k := semanticsTalk(t, test.spec)
			r := Compile(k.cluster, k.node, k.locals, k.ids)
			for _, p := range append(r.Errors, r.Warnings...) {
				if !strings.Contains(p.Message, "container port named") {
					t.Errorf("problem %+v", p)
				}
			}
			for _, probe := range strings.Fields(test.allowed) {
				k.probe(t, r.State, probe, true)
			}
			for _, probe := range strings.Fields(test.denied) {
				k.probe(t, r.State, probe, false)
			}
		})
	}
}

func semanticsTalk(t *testing.T, spec string) *talk {
	t.Helper()
	k := newTalk()
	k.answer(t, "node 10.0.1.1 10.0.0.0/16")
	k.answer(t, "apply\n"+strings.TrimSpace(semanticsPods))
	k.answer(t, "apply\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: "+spec)
	k.attach("x/a", []string{"10.0.0.1", "fd00::1"})
	k.attach("x/b", []string{"10.0.0.2"})
	k.attach("z/c", []string{"10.0.0.3"})
	return k
}

// probe asks both for "FROM>TO:PORT/PROTOCOL", where a, b, c are pods.
func (k *talk) probe(t *testing.T, state *datapath.State, probe string, want bool) {
	t.Helper()
	from, rest, _ := strings.Cut(probe, ">")
	colon := strings.LastIndex(rest, ":")
	to, port := rest[:colon], rest[colon+1:]
	family := 4
	if strings.Contains(from+to, ":") {
		family = 6
	}
	tuple := k.tuple(t, []string{full(from), full(to), port}, family)
	if got := Verdict(k.cluster, k.node, tuple).Forwarded; got != want {
		t.Errorf("%s: reference says %v", probe, got)
	}
	egress, ingress := Walk(state, k.node, tuple)
	if got := (egress == nil || egress.Allow) && (ingress == nil || ingress.Allow); got != want {
		t.Errorf("%s: compiled state says %v", probe, got)
	}
}

func full(end string) string {
	switch end {
	case "a", "b":
		return "x/" + end
	case "c":
		return "z/c"
	}
	return end
}
