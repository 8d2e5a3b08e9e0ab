package source

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// head of a valid object of each kind, in the form that the cases below continue.
var heads = map[string]string{
	"ns":     "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n",
	"pod":    "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n",
	"policy": "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x}\n",
	"svc":    "apiVersion: v1\nkind: Service\nmetadata: {name: x}\n",
	"slice":  "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\n",
}

// one rule case: the text after the head, and "field: part of the message" of the only
// error; "" if the object is valid.
type rule struct{ kind, text, want string }

func ports(p string) string { return "spec: {podSelector: {}, ingress: [{ports: [" + p + "]}]}" }
func from(p string) string  { return "spec: {podSelector: {}, ingress: [{from: [" + p + "]}]}" }
func block(b string) string { return from("{ipBlock: {" + b + "}}") }
func container(p string) string {
	return "spec: {containers: [{name: c, image: i, ports: [" + p + "]}]}"
}

var rules = []rule{
	{"policy", "spec: {podSelector: {}}", ""},
	{"policy", "spec: {podSelector: {}, policyTypes: [Ingress, Egress]}", ""},
	{"policy", "spec: {podSelector: {}, policyTypes: [ingress]}", `spec.policyTypes[0]: Unsupported value: "ingress": supported values: "Egress", "Ingress"`},
	{"policy", "spec: {podSelector: {}, policyTypes: [Ingress, Egress, Ingress]}", `spec.policyTypes: Too many`},
	{"policy", "spec: {podSelector: {matchLabels: {'a b': c}}}", `spec.podSelector.matchLabels: Invalid value: "a b"`},
	{"policy", "spec: {podSelector: {matchLabels: {a: '-c'}}}", `spec.podSelector.matchLabels: Invalid value: "-c"`},
	{"policy", "spec: {podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}, {key: a, operator: NotIn, values: [c]}, {key: d, operator: Exists}, {key: e, operator: DoesNotExist}]}}", ""},
	{"policy", "spec: {podSelector: {matchExpressions: [{key: a, operator: In}]}}", `spec.podSelector.matchExpressions[0].values: Required value`},
	{"policy", "spec: {podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}", `spec.podSelector.matchExpressions[0].values: Forbidden`},
	{"policy", "spec: {podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}", `spec.podSelector.matchExpressions[0].operator: Invalid value: "Is"`},
	{"policy", "spec: {podSelector: {matchExpressions: [{key: 'a b', operator: Exists}]}}", `spec.podSelector.matchExpressions[0].key: Invalid value: "a b"`},
	{"policy", "spec: {podSelector: {matchExpressions: [{key: a, operator: In, values: ['b c']}]}}", `spec.podSelector.matchExpressions[0].values[0]: Invalid value: "b c"`},
	{"policy", ports("{port: 80}"), ""},
	{"policy", ports("{}"), ""},
	{"policy", ports("{port: http, protocol: UDP}"), ""},
	{"policy", ports("{port: 80, endPort: 80, protocol: SCTP}"), ""},
	{"policy", ports("{port: 0}"), "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535"},
	{"policy", ports("{port: 1}, {port: 65536}"), "spec.ingress[0].ports[1].port: Invalid value: 65536"},
	{"policy", ports("{port: -1}"), "spec.ingress[0].ports[0].port: Invalid value: -1"},
	{"policy", ports("{port: '80'}"), `spec.ingress[0].ports[0].port: Invalid value: "80": must contain at least one letter`},
	{"policy", ports("{port: a-name-of-16-chr}"), `spec.ingress[0].ports[0].port: Invalid value: "a-name-of-16-chr": must be no more than 15`},
	{"policy", ports("{port: http_x}"), `spec.ingress[0].ports[0].port: Invalid value: "http_x"`},
	{"policy", ports("{port: 80, protocol: tcp}"), `spec.ingress[0].ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"`},
	{"policy", ports("{port: 80, protocol: ''}"), `spec.ingress[0].ports[0].protocol: Unsupported value: ""`},
	{"policy", ports("{port: 80, protocol: ICMP}"), `spec.ingress[0].ports[0].protocol: Unsupported value: "ICMP"`},
	{"policy", ports("{port: 80, endPort: 79}"), "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal"},
	{"policy", ports("{port: 80, endPort: 65536}"), "spec.ingress[0].ports[0].endPort: Invalid value: 65536"},
	{"policy", ports("{port: http, endPort: 90}"), "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric"},
	{"policy", ports("{endPort: 90}"), "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is not"},
	{"policy", from("{podSelector: {}, namespaceSelector: {}}"), ""},
	{"policy", from("{}"), "spec.ingress[0].from[0]: Required value: must specify a peer"},
	{"policy", from("null"), "spec.ingress[0].from[0]: Required value: must specify a peer"},
	{"policy", from("{podSelector: {}}, {podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"), "spec.ingress[0].from[1]: Forbidden: may not specify both"},
	{"policy", from("{namespaceSelector: {matchLabels: {a: '*'}}}"), `spec.ingress[0].from[0].namespaceSelector.matchLabels: Invalid value: "*"`},
	{"policy", block("cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.3.4/32]"), ""},
	{"policy", block("cidr: 10.0.0.5/8, except: [10.1.0.9/16]"), ""},
	{"policy", block("cidr: '2001:db8::/32', except: ['2001:db8:1::/48']"), ""},
	{"policy", block("except: [10.1.0.0/16]"), "spec.ingress[0].from[0].ipBlock.cidr: Required value"},
	{"policy", block("cidr: 10.0.0.0"), `spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.0": must be a valid CIDR`},
	{"policy", block("cidr: 10.0.0.0/33"), `spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.0/33"`},
	{"policy", block("cidr: 010.0.0.0/8"), `spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "010.0.0.0/8": must not have leading 0s`},
	{"policy", block("cidr: 10.0.0.0/08"), `spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.0/08": must not have leading 0s`},
	{"policy", block("cidr: '::ffff:10.0.0.0/104'"), `spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "::ffff:10.0.0.0/104": must not have an IPv4-mapped`},
	{"policy", block("cidr: 'fe80::%eth0/64'"), `spec.ingress[0].from[0].ipBlock.cidr: Invalid value`},
	{"policy", block("cidr: 10.0.0.0/8, except: [10.0.0.0/8]"), `spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "10.0.0.0/8": must be a strict subset`},
	{"policy", block("cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]"), `spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: "11.0.0.0/16": must be a strict subset`},
	{"policy", block("cidr: 10.0.0.0/8, except: [0.0.0.0/0]"), `spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "0.0.0.0/0": must be a strict`},
	{"policy", block("cidr: '::/0', except: [10.0.0.0/8]"), `spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "10.0.0.0/8": must be a strict`},
	{"policy", block("cidr: 10.0.0.0/8, except: [x]"), `spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "x": must be a valid CIDR`},
	{"policy", "spec: {podSelector: {}, egress: [{to: [{podSelector: {}}]}, {to: [{}]}]}", "spec.egress[1].to[0]: Required value"},
	{"policy", "spec: {podSelector: {}, egress: [{ports: [{port: 70000}]}]}", "spec.egress[0].ports[0].port: Invalid value"},

	{"ns", "", ""},
	{"ns", "spec: {finalizers: [kubernetes]}\nstatus: {phase: Active}", ""},
	{"ns", "status: {phase: Gone}", `status.phase: Unsupported value: "Gone"`},

	{"pod", "", ""},
	{"pod", container("{containerPort: 80, name: http}, {containerPort: 81, protocol: UDP}"), ""},
	{"pod", "spec: {containers: [{ports: [{containerPort: 80}]}]}", ""},
	{"pod", "spec: {containers: [{name: a}, {}]}", "spec.containers[1].name: Required value"},
	{"pod", "spec: {containers: [{name: a}, {name: a}]}", `spec.containers[1].name: Duplicate value: "a"`},
	{"pod", "spec: {initContainers: [{name: a}], containers: [{name: a}]}", `spec.containers[0].name: Duplicate value: "a"`},
	{"pod", "spec: {containers: [{name: A_b}]}", `spec.containers[0].name: Invalid value: "A_b"`},
	{"pod", container("{name: http}"), "spec.containers[0].ports[0].containerPort: Required value"},
	{"pod", container("{containerPort: 65536}"), "spec.containers[0].ports[0].containerPort: Invalid value: 65536"},
	{"pod", container("{containerPort: 80, protocol: HTTP}"), `spec.containers[0].ports[0].protocol: Unsupported value: "HTTP"`},
	{"pod", container("{containerPort: 80, name: a}, {containerPort: 81, name: a}"), `spec.containers[0].ports[1].name: Duplicate value: "a"`},
	{"pod", container("{containerPort: 80, name: '80'}"), `spec.containers[0].ports[0].name: Invalid value: "80"`},
	{"pod", container("{containerPort: 80, hostPort: 70000}"), "spec.containers[0].ports[0].hostPort: Invalid value: 70000"},
	{"pod", "spec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 80}]}]}", ""},
	{"pod", "spec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 80, hostPort: 81}]}]}", "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match"},
	{"pod", "spec: {nodeName: 'a b'}", `spec.nodeName: Invalid value: "a b"`},
	{"pod", "status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}", ""},
	{"pod", "status: {phase: running}", `status.phase: Unsupported value: "running"`},
	{"pod", "status: {podIP: 10.0.0}", `status.podIPs[0]: Invalid value: "10.0.0"`},
	{"pod", "status: {podIP: 010.0.0.1}", `status.podIPs[0]: Invalid value: "010.0.0.1": must not have leading 0s`},
	{"pod", "status: {podIP: '::ffff:10.0.0.1'}", `status.podIPs[0]: Invalid value: "::ffff:10.0.0.1"`},
	{"pod", "status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.1}]}", `status.podIP: Invalid value: "10.0.0.2": must be the first of`},
	{"pod", "status: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]}", `status.podIPs[1]: Invalid value: "10.0.0.2": must not be a second`},
	{"pod", "status: {hostIP: here}", `status.hostIP: Invalid value: "here"`},

	{"svc", "spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}", ""},
	{"svc", "spec: {clusterIP: None}", ""},
	{"svc", "spec: {type: ExternalName, externalName: example.org}", ""},
	{"svc", "spec: {clusterIPs: [10.0.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6], selector: {a: b}, ports: [{port: 80, targetPort: http}]}", ""},
	{"svc", "spec: {}", "spec.ports: Required value"},
	{"svc", "spec: {type: Cluster, ports: [{port: 80}]}", `spec.type: Unsupported value: "Cluster"`},
	{"svc", "spec: {ports: [{port: 0}]}", "spec.ports[0].port: Invalid value: 0"},
	{"svc", "spec: {ports: [{port: 80, name: a}, {port: 81}]}", "spec.ports[1].name: Required value"},
	{"svc", "spec: {ports: [{port: 80, name: a}, {port: 81, name: a}]}", `spec.ports[1].name: Duplicate value: "a"`},
	{"svc", "spec: {ports: [{port: 80, name: a}, {port: 80, name: b}]}", `spec.ports[1]: Duplicate value: "TCP/80"`},
	{"svc", "spec: {ports: [{port: 80, targetPort: 70000}]}", "spec.ports[0].targetPort: Invalid value: 70000"},
	{"svc", "spec: {ports: [{port: 80, targetPort: a_b}]}", `spec.ports[0].targetPort: Invalid value: "a_b"`},
	{"svc", "spec: {ports: [{port: 80, nodePort: 70000}]}", "spec.ports[0].nodePort: Invalid value: 70000"},
	{"svc", "spec: {ports: [{port: 80, protocol: X}]}", `spec.ports[0].protocol: Unsupported value: "X"`},
	{"svc", "spec: {clusterIP: 10.0.0, ports: [{port: 80}]}", `spec.clusterIPs[0]: Invalid value: "10.0.0"`},
	{"svc", "spec: {clusterIP: 10.0.0.2, clusterIPs: [10.0.0.1], ports: [{port: 80}]}", `spec.clusterIP: Invalid value: "10.0.0.2"`},
	{"svc", "spec: {type: NodePort, clusterIP: None}", `spec.clusterIP: Invalid value: "None"`},
	{"svc", "spec: {ipFamilies: [IPv5], ports: [{port: 80}]}", `spec.ipFamilies[0]: Unsupported value: "IPv5"`},
	{"svc", "spec: {selector: {a: '/'}, ports: [{port: 80}]}", `spec.selector: Invalid value: "/"`},
	{"svc", "spec: {externalIPs: [x], ports: [{port: 80}]}", `spec.externalIPs[0]: Invalid value: "x"`},
	{"svc", "spec: {sessionAffinity: Yes please, ports: [{port: 80}]}", `spec.sessionAffinity: Unsupported value`},
	{"svc", "spec: {type: ExternalName, externalName: 'a b'}", `spec.externalName: Invalid value: "a b"`},

	{"slice", "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{port: 80}]", ""},
	{"slice", "addressType: FQDN\nendpoints: [{addresses: [db.example.org]}]", ""},
	{"slice", "endpoints: []", "addressType: Required value"},
	{"slice", "addressType: ipv4\nendpoints: []", `addressType: Unsupported value: "ipv4"`},
	{"slice", "addressType: IPv4\nendpoints: [{addresses: []}]", "endpoints[0].addresses: Required value"},
	{"slice", "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]", `endpoints[0].addresses[0]: Invalid value: "fd00::1": must be an IPv4`},
	{"slice", "addressType: IPv6\nendpoints: [{addresses: ['fd00::1']}, {addresses: [10.0.0.1]}]", `endpoints[1].addresses[0]: Invalid value: "10.0.0.1": must be an IPv6`},
	{"slice", "addressType: IPv4\nendpoints: [{addresses: [127.0.0.1]}]", `endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be`},
	{"slice", "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hostname: 'a.b'}]", `endpoints[0].hostname: Invalid value: "a.b"`},
	{"slice", "addressType: IPv4\nendpoints: []\nports: [{name: a}, {name: a}]", `ports[1].name: Duplicate value: "a"`},
	{"slice", "addressType: IPv4\nendpoints: []\nports: [{port: 0}]", `ports[0].port: Invalid value: 0`},
	{"slice", "addressType: IPv4\nendpoints: []\nports: [{port: 1, protocol: x}]", `ports[0].protocol: Unsupported value: "x"`},
}

func TestRules(t *testing.T) {
	for _, r := range rules {
		objects, errs := parse("f.yaml", []byte(heads[r.kind]+r.text))
		if len(objects) != 1 {
			t.Errorf("%s %s: %d objects", r.kind, r.text, len(objects))
		}
		switch {
		case r.want == "" && len(errs) > 0:
			t.Errorf("%s %s: %v, want it valid", r.kind, r.text, errs)
		case r.want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Field+": "+errs[0].Message, r.want)):
			t.Errorf("%s %s:\n got %v\nwant %s", r.kind, r.text, errs, r.want)
		}
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, c := range []struct{ kind, meta, want string }{
		{"ns", "{name: a-b}", ""},
		{"ns", "{name: a.b}", "metadata.name: Invalid value: \"a.b\""},
		{"ns", "{name: " + long + "}", "metadata.name: Invalid value"},
		{"ns", "{name: a, namespace: b}", "metadata.namespace: Forbidden"},
		{"ns", "{}", "metadata.name: Required value"},
		{"pod", "{name: a.b}", ""},
		{"pod", "{name: " + long + "}", ""},
		{"pod", "{name: a_b}", "metadata.name: Invalid value: \"a_b\""},
		{"pod", "{name: \"\\e[31mred\"}", "metadata.name: Invalid value: \"\\x1b[31mred\""},
		{"pod", "{generateName: a-}", "metadata.name: Required value: give the object a name"},
		{"pod", "{name: a, namespace: a.b}", "metadata.namespace: Invalid value: \"a.b\""},
		{"pod", "{name: a, labels: {'x/y/z': a}}", "metadata.labels: Invalid value: \"x/y/z\""},
		{"pod", "{name: a, labels: {a: 'b c'}}", "metadata.labels: Invalid value: \"b c\""},
		{"pod", "{name: a, annotations: {'a b': c}}", "metadata.annotations: Invalid value: \"a b\""},
		{"pod", "{name: a, uid: \"\\e\"}", "metadata.uid: Invalid value"},
		{"policy", "{name: A}", "metadata.name: Invalid value: \"A\""},
		{"svc", "{name: 1a}", "metadata.name: Invalid value: \"1a\""},
		{"slice", "{name: a.b-1}", ""},
	} {
		text := strings.Replace(heads[c.kind], "{name: x}", c.meta, 1)
		text += map[string]string{"svc": "spec: {clusterIP: None}", "slice": "addressType: IPv4\nendpoints: []"}[c.kind]
		_, errs := parse("f.yaml", []byte(text))
		if c.want == "" && len(errs) > 0 || c.want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Field+": "+errs[0].Message, c.want)) {
			t.Errorf("%s %s:\n got %v\nwant %s", c.kind, c.meta, errs, c.want)
		}
	}
}

func one[T any](t *testing.T, text string) T {
	t.Helper()
	objects, errs := parse("f.yaml", []byte(text))
	if len(errs) > 0 || len(objects) != 1 {
		t.Fatalf("%d objects, errors %v", len(objects), errs)
	}
	return objects[0].value.(any).(T)
}

func TestDefaults(t *testing.T) {
	types := func(spec string) string {
		p := one[*networkingv1.NetworkPolicy](t, heads["policy"]+"spec: "+spec)
		out := ""
		for _, t := range p.Spec.PolicyTypes {
			out += string(t) + " "
		}
		return out
	}
	for spec, want := range map[string]string{
		"{}":                                    "Ingress ",
		"{egress: []}":                          "Ingress ",
		"{egress: [{}]}":                        "Ingress Egress ",
		"{egress: [{}], policyTypes: [Egress]}": "Egress ",
		"{policyTypes: [Egress]}":               "Egress ",
	} {
		if got := types(spec); got != want {
			t.Errorf("policyTypes of %s: %q, want %q", spec, got, want)
		}
	}
	p := one[*networkingv1.NetworkPolicy](t, heads["policy"]+ports("{port: 80}"))
	if got := p.Spec.Ingress[0].Ports[0].Protocol; got == nil || *got != corev1.ProtocolTCP || p.Namespace != "default" {
		t.Errorf("protocol %v in namespace %q", got, p.Namespace)
	}
	n := one[*corev1.Namespace](t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {kubernetes.io/metadata.name: other, a: b}}")
	if n.Labels["kubernetes.io/metadata.name"] != "x" || n.Labels["a"] != "b" {
		t.Errorf("namespace labels %v", n.Labels)
	}
	pod := one[*corev1.Pod](t, heads["pod"]+"spec: {hostNetwork: true, containers: [{ports: [{containerPort: 5}]}]}\nstatus: {podIP: 10.0.0.1}")
	if c := pod.Spec.Containers[0].Ports[0]; c.Protocol != "TCP" || c.HostPort != 5 || len(pod.Status.PodIPs) != 1 || pod.Status.PodIPs[0].IP != "10.0.0.1" {
		t.Errorf("pod %v %v", c, pod.Status.PodIPs)
	}
	if pod := one[*corev1.Pod](t, heads["pod"]+"status: {podIPs: [{ip: 10.0.0.1}]}"); pod.Status.PodIP != "10.0.0.1" {
		t.Errorf("podIP %q", pod.Status.PodIP)
	}
	s := one[*corev1.Service](t, heads["svc"]+"spec: {clusterIP: 10.0.0.9, ports: [{port: 80}]}")
	if port := s.Spec.Ports[0]; s.Spec.Type != "ClusterIP" || port.Protocol != "TCP" || port.TargetPort.IntVal != 80 || s.Spec.ClusterIPs[0] != "10.0.0.9" {
		t.Errorf("service %+v", s.Spec)
	}
	e := one[*discoveryv1.EndpointSlice](t, heads["slice"]+"addressType: IPv4\nendpoints: []\nports: [{port: 80}]")
	if port := e.Ports[0]; *port.Name != "" || *port.Protocol != "TCP" {
		t.Errorf("slice port %v %v", *port.Name, *port.Protocol)
	}
}
