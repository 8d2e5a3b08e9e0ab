package randomcluster

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func (w *World) addPolicy() {
	w.policies++
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: string("xyz"[w.r.Intn(3)]), Name: fmt.Sprint("np", w.policies)}}
	np.Spec.PodSelector = w.selector(2)
	switch w.r.Intn(4) {
	case 0:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	case 1:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	case 2:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	for j := w.r.Intn(4); j > 0; j-- {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
	}
	for j := w.r.Intn(4); j > 0; j-- {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	w.Cluster.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
}

// selector is empty one time in n+1, else of all operators.
func (w *World) selector(n int) metav1.LabelSelector {
	var s metav1.LabelSelector
	if w.r.Intn(n+1) == 0 {
		return s
	}
	for i := 1 + w.r.Intn(2); i > 0; i-- {
		e := metav1.LabelSelectorRequirement{Key: w.key(), Values: []string{w.value(), w.value()}}
		switch w.r.Intn(5) {
		case 0:
			s.MatchLabels = map[string]string{e.Key: w.value()}
			continue
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
	return s
}

func (w *World) peers() (out []networkingv1.NetworkPolicyPeer) {
	for i := w.r.Intn(4); i > 0; i-- {
		var p networkingv1.NetworkPolicyPeer
		pods, namespaces := w.selector(3), w.selector(1)
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

// block cuts the pods' range at a random place, with up to three exceptions inside it, one
// inside the other as it comes.
func (w *World) block() *networkingv1.IPBlock {
	base, most := fmt.Sprintf("10.0.0.%d", w.r.Intn(32)), []int{0, 8, 24, 27, 28, 29, 30, 31, 32}
	if w.r.Intn(2) == 0 {
		base, most = fmt.Sprintf("fd00::%x", w.r.Intn(32)), []int{0, 64, 120, 123, 124, 125, 126, 127, 128}
	}
	a, i := netip.MustParseAddr(base), w.r.Intn(len(most))
	b := &networkingv1.IPBlock{CIDR: netip.PrefixFrom(a, most[i]).Masked().String()}
	for n := w.r.Intn(4); n > 0 && i < len(most)-1; n-- {
		longer := most[i+1+w.r.Intn(len(most)-i-1)]
		b.Except = append(b.Except, netip.PrefixFrom(a, longer).Masked().String())
	}
	return b
}

func (w *World) ports() (out []networkingv1.NetworkPolicyPort) {
	for i := w.r.Intn(4); i > 0; i-- {
		var p networkingv1.NetworkPolicyPort
		if protocol := w.protocol(); w.r.Intn(4) > 0 {
			p.Protocol = &protocol
		}
		number, name := intstr.FromInt32(int32(79+w.r.Intn(6))), intstr.FromString([]string{"http", "dns"}[w.r.Intn(2)])
		switch w.r.Intn(5) {
		case 0, 1:
			p.Port = &number
		case 2:
			end := number.IntVal + int32(w.r.Intn(4))
			p.Port, p.EndPort = &number, &end
		case 3:
			p.Port = &name
		}
		out = append(out, p)
	}
	return out
}
