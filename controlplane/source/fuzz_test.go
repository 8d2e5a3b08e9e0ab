package source

import (
	"encoding/json"
	"slices"
	"testing"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// Whatever the text: parse comes back; what it says is one printable line; what it takes is
// valid by Kubernetes' own functions, and is the same after it is written and read again.
func FuzzParse(f *testing.F) {
	for _, r := range rules {
		f.Add([]byte(heads[r.kind] + r.text))
	}
	f.Add([]byte("{a: 1}\n...\n%x\n--- |\n x\n---\n- \n"))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {kind: \"\\e[2J\\n\"}\n"))
	f.Add([]byte("\ufeff%YAML 1.1\r\n---\r\na: &x [*x]\r\n--- # b\r\n{\"\\u202e\": \"\\u0000\"}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, name := range []string{"f.yaml", "f.json"} {
			objects, errs := parse(name, text)
			for _, e := range errs {
				holdPrintable(t, printable(e).String())
			}
			if len(errs) > 0 {
				continue
			}
			for _, o := range objects {
				holdValid(t, o)
				holdSame(t, o)
			}
		}
	})
}

func holdPrintable(t *testing.T, line string) {
	t.Helper()
	for _, r := range line {
		if !unicode.IsPrint(r) {
			t.Errorf("%q in the line %q", r, line)
		}
	}
}

// holdSame writes an object as JSON and as YAML and reads it.
func holdSame(t *testing.T, o object) {
	t.Helper()
	asJSON, err := json.Marshal(o.value)
	if err != nil {
		t.Fatalf("%s: %v", o.key, err)
	}
	asYAML, err := yaml.JSONToYAML(asJSON)
	if err != nil {
		t.Fatalf("%s: %v", o.key, err)
	}
	for name, text := range map[string][]byte{"f.json": asJSON, "f.yaml": asYAML} {
		again, errs := parse(name, text)
		if len(errs) > 0 || len(again) != 1 || again[0].key != o.key || again[0].hash != o.hash {
			t.Errorf("%s written to %s and read again: %d objects, errors %v\n%s", o.key, name, len(again), errs, text)
		}
	}
}

// FuzzPolicy makes policies that are nearly right from its arguments: what the directory
// takes of them Kubernetes takes, and the other way around but for the addresses that it
// refuses because different software reads them differently.
func FuzzPolicy(f *testing.F) {
	type args struct {
		name, key, value, operator, cidr, except, port, protocol, policyType string
		number, end                                                          int32
		has                                                                  uint16
	}
	add := func(a args) {
		f.Add(a.name, a.key, a.value, a.operator, a.cidr, a.except, a.port, a.protocol, a.policyType, a.number, a.end, a.has)
	}
	good := args{"p", "app", "web", "In", "10.0.0.0/8", "10.1.0.0/16", "http", "UDP", "Egress", 80, 90, 0}
	for bit := range 16 {
		good.has = 1 << bit
		add(good)
	}
	good.has = 0x7fff
	add(good)
	for _, a := range []args{
		{"a.b", "example.com/app", "", "Exists", "::/0", "fd00::/8", "80", "SCTP", "Ingress", 65535, 65536, 0x01ff},
		{"A", "-", "a b", "NotIn", "10.0.0.1/8", "10.0.0.0/8", "http--x", "tcp", "Both", 0, -1, 0x0bff},
		{"", "", "\x1b", "", "::ffff:10.0.0.0/104", "010.0.0.0/16", "", "", "", 1, 1, 0x57f},
	} {
		add(a)
	}
	f.Fuzz(func(t *testing.T, name, key, value, operator, cidr, except, portName, protocol, policyType string, number, end int32, has uint16) {
		p := madePolicy(name, key, value, operator, cidr, except, portName, protocol, policyType, number, end, has)
		theirs := validPolicy(p.DeepCopy())
		ours := checkNetworkPolicy(p.DeepCopy())
		if len(ours) == 0 && theirs != "" {
			t.Errorf("taken, and Kubernetes says %s: %+v", theirs, p)
		}
		if len(ours) > 0 && theirs == "" && !slices.ContainsFunc([]string{cidr, except}, isAmbiguous) {
			t.Errorf("refused, and Kubernetes takes it: %v: %+v", ours, p)
		}
	})
}

// madePolicy has what the bits of has say.
func madePolicy(name, key, value, operator, cidr, except, portName, protocol, policyType string, number, end int32, has uint16) *networkingv1.NetworkPolicy {
	bit := func(n int) bool { return has>>n&1 == 1 }
	selector := &metav1.LabelSelector{}
	if bit(0) {
		selector.MatchLabels = map[string]string{key: value}
	}
	if bit(1) {
		e := metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOperator(operator)}
		if bit(2) {
			e.Values = []string{value, name}
		}
		selector.MatchExpressions = append(selector.MatchExpressions, e)
	}
	var peer networkingv1.NetworkPolicyPeer
	if bit(3) {
		peer.PodSelector = selector
	}
	if bit(4) {
		peer.NamespaceSelector = selector
	}
	if bit(5) {
		peer.IPBlock = &networkingv1.IPBlock{CIDR: cidr}
		if bit(6) {
			peer.IPBlock.Except = []string{except}
		}
	}
	var port networkingv1.NetworkPolicyPort
	if bit(7) {
		port.Protocol = (*corev1.Protocol)(&protocol)
	}
	if bit(8) {
		port.Port = &intstr.IntOrString{Type: intstr.Int, IntVal: number}
	}
	if bit(9) {
		port.Port = &intstr.IntOrString{Type: intstr.String, StrVal: portName}
	}
	if bit(10) {
		port.EndPort = &end
	}
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	if bit(11) {
		p.Spec.PodSelector = *selector
	}
	if bit(12) {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyType(policyType)}
	}
	peers, ports := []networkingv1.NetworkPolicyPeer{peer}, []networkingv1.NetworkPolicyPort{port}
	if !bit(13) {
		peers = nil
	}
	if bit(14) {
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}}
	} else {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers, Ports: ports}}
	}
	return p
}
