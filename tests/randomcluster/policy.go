package randomcluster

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/policy"
)

// addPolicy adds one that is new in all, or, so that policies contradict each other: one that
// denies or allows everything, or one like another but for a rule or its selector.
func (w *World) addPolicy() {
	w.policies++
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: string("xyz"[w.r.Intn(3)]), Name: fmt.Sprint("np", w.policies)}}
	switch kind := w.r.Intn(12); {
	case kind < 2:
		np.Spec.PodSelector = w.selector(1)
		np.Spec.PolicyTypes = w.policyTypes()
	case kind == 2:
		np.Spec.PodSelector = w.selector(1)
		np.Spec.Ingress, np.Spec.Egress = []networkingv1.NetworkPolicyIngressRule{{}}, []networkingv1.NetworkPolicyEgressRule{{}}
		np.Spec.PolicyTypes = w.policyTypes()
	case kind == 3 && len(w.Cluster.NetworkPolicies) > 0:
		twin := w.Cluster.NetworkPolicies[w.anyPolicy()]
		np.Namespace, np.Spec = twin.Namespace, *twin.Spec.DeepCopy()
		w.alter(&np.Spec)
	default:
		np.Spec.PodSelector = w.selector(2)
		np.Spec.PolicyTypes = w.policyTypes()
		for j := w.r.Intn(4); j > 0; j-- {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
		}
		for j := w.r.Intn(4); j > 0; j-- {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
		}
	}
	w.Cluster.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
}

func (w *World) policyTypes() []networkingv1.PolicyType {
	const in, out = networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	return [][]networkingv1.PolicyType{nil, {in}, {out}, {in, out}, {out, in}}[w.r.Intn(5)]
}

func (w *World) alter(s *networkingv1.NetworkPolicySpec) {
	switch in, out := len(s.Ingress), len(s.Egress); {
	case in > 0 && w.r.Intn(3) == 0:
		s.Ingress[w.r.Intn(in)] = networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()}
	case out > 0 && w.r.Intn(2) == 0:
		s.Egress[w.r.Intn(out)] = networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()}
	case w.r.Intn(2) == 0:
		s.PolicyTypes = w.policyTypes()
	default:
		s.PodSelector = w.selector(2)
	}
}

// selector is empty one time in n+1, else of all operators; long ones hardly match anything.
func (w *World) selector(n int) metav1.LabelSelector {
	var s metav1.LabelSelector
	if w.r.Intn(n+1) == 0 {
		return s
	}
	most := 2
	if w.r.Intn(6) == 0 {
		most = 5
	}
	for i := 1 + w.r.Intn(most); i > 0; i-- {
		w.require(&s, w.key(), w.value)
	}
	return s
}

// namespaces is a selector, now and then by name.
func (w *World) namespaces() metav1.LabelSelector {
	s := w.selector(1)
	if w.r.Intn(6) == 0 {
		w.require(&s, policy.NamespaceLabel, func() string { return string("xyz"[w.r.Intn(3)]) })
	}
	return s
}

func (w *World) require(s *metav1.LabelSelector, key string, value func() string) {
	e := metav1.LabelSelectorRequirement{Key: key}
	for i := 1 + w.r.Intn(3); i > 0; i-- {
		e.Values = append(e.Values, value())
	}
	switch w.r.Intn(5) {
	case 0:
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		s.MatchLabels[e.Key] = e.Values[0]
		return
	case 1:
		e.Operator = metav1.LabelSelectorOpIn
	case 2:
		e.Operator = metav1.LabelSelectorOpNotIn
	case 3:
		e.Operator, e.Values = metav1.LabelSelectorOpExists, nil
	case 4:
		e.Operator, e.Values = metav1.LabelSelectorOpDoesNotExist, nil
	}
	s.MatchExpressions = append(s.MatchExpressions, e)
}

func (w *World) peers() (out []networkingv1.NetworkPolicyPeer) {
	for i := w.r.Intn(4); i > 0; i-- {
		var p networkingv1.NetworkPolicyPeer
		pods, namespaces := w.selector(3), w.namespaces()
		switch w.r.Intn(4) {
		case 0:
			p.PodSelector = &pods
		case 1:
			p.NamespaceSelector = &namespaces
		case 2:
			p.PodSelector, p.NamespaceSelector = &pods, &namespaces
		case 3:
			p.IPBlock = w.block()
		}
		out = append(out, p)
	}
	return out
}

// block cuts the pods' range, or one outside, at a random place, with up to four exceptions
// inside it: around one address, one inside the other as it comes, or beside each other.
func (w *World) block() *networkingv1.IPBlock {
	families := []struct {
		base, outside string
		lengths       []int
	}{
		{"10.0.0.%d", "192.0.2.%d", []int{0, 8, 24, 27, 28, 29, 30, 31, 32}},
		{"fd00::%x", "2001:db8::%x", []int{0, 64, 120, 123, 124, 125, 126, 127, 128}},
	}
	f := families[w.r.Intn(2)]
	if w.r.Intn(8) == 0 {
		f.base = f.outside
	}
	address := func() netip.Addr { return netip.MustParseAddr(fmt.Sprintf(f.base, w.r.Intn(32))) }
	a, i := address(), w.r.Intn(len(f.lengths))
	cidr := netip.PrefixFrom(a, f.lengths[i])
	b := &networkingv1.IPBlock{CIDR: w.written(cidr)}
	for n := w.r.Intn(5); n > 0 && i < len(f.lengths)-1; n-- {
		at := a
		if other := address(); w.r.Intn(2) == 0 && cidr.Contains(other) {
			at = other
		}
		longer := f.lengths[i+1+w.r.Intn(len(f.lengths)-i-1)]
		b.Except = append(b.Except, w.written(netip.PrefixFrom(at, longer)))
	}
	return b
}

// written as most do, or with bits that the prefix does not have: those mean nothing.
func (w *World) written(p netip.Prefix) string {
	if w.r.Intn(6) > 0 {
		p = p.Masked()
	}
	return p.String()
}

// edges are ports beside those that most rules and tuples are about.
var edges = []uint16{1, 53, 443, 32768, 65534, 65535}

func (w *World) ports() (out []networkingv1.NetworkPolicyPort) {
	for i := w.r.Intn(4); i > 0; i-- {
		var p networkingv1.NetworkPolicyPort
		if protocol := w.protocol(); w.r.Intn(4) > 0 {
			p.Protocol = &protocol
		}
		number, name := intstr.FromInt32(int32(79+w.r.Intn(6))), intstr.FromString(portNames[w.r.Intn(len(portNames))])
		if w.r.Intn(8) == 0 {
			number = intstr.FromInt32(int32(edges[w.r.Intn(len(edges))]))
		}
		switch w.r.Intn(5) {
		case 0, 1:
			p.Port = &number
		case 2:
			end := min(number.IntVal+int32(w.r.Intn(4)), 65535)
			if w.r.Intn(6) == 0 {
				end += int32(w.r.Intn(int(65536 - end)))
			}
			p.Port, p.EndPort = &number, &end
		case 3:
			p.Port = &name
		}
		out = append(out, p)
	}
	if len(out) > 0 { // none is all ports
		out = append(out, w.overlapping()...)
	}
	return out
}

// overlapping are ranges over each other, of which all policies together have fewer than a
// pod may.
func (w *World) overlapping() (out []networkingv1.NetworkPolicyPort) {
	for i := w.r.Intn(1 + w.ranges); i > 0; i-- {
		protocol, low := w.protocol(), intstr.FromInt32(int32(78+w.r.Intn(5)))
		end := low.IntVal + 1 + int32(w.r.Intn(8))
		out = append(out, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &low, EndPort: &end})
	}
	return out
}
