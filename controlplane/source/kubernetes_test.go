package source

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// The second opinion on validity: what the API's documentation asks for, in terms of the
// functions that API servers use, without the code that the directory uses. "" = valid.

// holdValid holds what policy reads of an object that was taken.
func holdValid(t *testing.T, o object) {
	t.Helper()
	wrong := ""
	switch v := o.value.(type) {
	case *networkingv1.NetworkPolicy:
		wrong = validPolicy(v)
	case *corev1.Pod:
		wrong = validPod(v)
	case *corev1.Namespace:
		wrong = first(apivalidation.ValidateNamespaceName(v.Name, false)...)
		if v.Labels[corev1.LabelMetadataName] != v.Name {
			wrong = "without its name as a label"
		}
	case *corev1.Service:
		wrong = validService(v)
	case *discoveryv1.EndpointSlice:
		wrong = validSlice(v)
	}
	if wrong == "" {
		wrong = validMeta(o.value, o.kind != "Namespace")
	}
	if wrong != "" {
		t.Errorf("%s was taken: %s", o.key, wrong)
	}
}

func first(messages ...string) string {
	for _, m := range messages {
		if m != "" {
			return m
		}
	}
	return ""
}

func validMeta(o metav1.Object, namespaced bool) string {
	if namespaced {
		if wrong := first(validation.IsDNS1123Label(o.GetNamespace())...); wrong != "" {
			return "namespace: " + wrong
		}
	}
	return validLabels(o.GetLabels())
}

func validLabels(l map[string]string) string {
	for k, v := range l {
		if wrong := first(append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...)...); wrong != "" {
			return fmt.Sprintf("label %q=%q: %s", k, v, wrong)
		}
	}
	return ""
}

// validSelector: the API server's selectors, which are those that a client can make, with
// values that labels can have.
func validSelector(s *metav1.LabelSelector) string {
	if wrong := validLabels(s.MatchLabels); wrong != "" {
		return wrong
	}
	for _, e := range s.MatchExpressions {
		for _, v := range e.Values {
			if wrong := validLabels(map[string]string{"k": v}); wrong != "" {
				return wrong
			}
		}
	}
	made, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return err.Error()
	}
	if _, selectable := made.Requirements(); !selectable && made.String() == labels.Nothing().String() {
		return "selects nothing at all"
	}
	return ""
}

func validPolicy(p *networkingv1.NetworkPolicy) string {
	wrong := first(append(apivalidation.NameIsDNSSubdomain(p.Name, false), validSelector(&p.Spec.PodSelector))...)
	if p.Name == "" {
		wrong = "no name"
	}
	if len(p.Spec.PolicyTypes) > 2 {
		wrong = "policyTypes"
	}
	for _, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			wrong = "policy type " + string(t)
		}
	}
	for _, r := range p.Spec.Ingress {
		wrong = first(wrong, validPeers(r.From), validPorts(r.Ports))
	}
	for _, r := range p.Spec.Egress {
		wrong = first(wrong, validPeers(r.To), validPorts(r.Ports))
	}
	return wrong
}

func validPeers(peers []networkingv1.NetworkPolicyPeer) (wrong string) {
	for _, p := range peers {
		selectors := 0
		for _, s := range []*metav1.LabelSelector{p.PodSelector, p.NamespaceSelector} {
			if s != nil {
				selectors++
				wrong = first(wrong, validSelector(s))
			}
		}
		switch {
		case p.IPBlock == nil && selectors == 0:
			wrong = "a peer of nothing"
		case p.IPBlock != nil && selectors > 0:
			wrong = "a peer of two kinds"
		case p.IPBlock != nil:
			wrong = first(wrong, validBlock(p.IPBlock))
		}
	}
	return wrong
}

func validBlock(b *networkingv1.IPBlock) string {
	_, cidr, err := net.ParseCIDR(b.CIDR)
	if err != nil {
		return err.Error()
	}
	for _, e := range b.Except {
		_, except, err := net.ParseCIDR(e)
		if err != nil {
			return err.Error()
		}
		inside, _ := cidr.Mask.Size()
		outside, _ := except.Mask.Size()
		if !cidr.Contains(except.IP) || outside <= inside {
			return "an except that is no strict subset"
		}
	}
	return ""
}

// isAmbiguous reports whether software differs on what a CIDR is: with leading zeros it is
// octal to some, and IPv4-mapped it is of either family.
func isAmbiguous(cidr string) bool {
	p, err := netip.ParsePrefix(cidr)
	return err != nil || p.Addr().Is4In6()
}

func validPorts(ports []networkingv1.NetworkPolicyPort) (wrong string) {
	for _, p := range ports {
		if p.Protocol != nil {
			wrong = first(wrong, validProtocol(*p.Protocol))
		}
		switch {
		case p.Port == nil && p.EndPort != nil:
			wrong = "an endPort alone"
		case p.Port == nil:
		case p.Port.Type == intstr.String:
			wrong = first(append([]string{wrong}, validation.IsValidPortName(p.Port.StrVal)...)...)
			if p.EndPort != nil {
				wrong = "an endPort of a name"
			}
		default:
			wrong = first(append([]string{wrong}, validation.IsValidPortNum(int(p.Port.IntVal))...)...)
			if p.EndPort != nil && (*p.EndPort < p.Port.IntVal || *p.EndPort > 65535) {
				wrong = fmt.Sprint("endPort ", *p.EndPort)
			}
		}
	}
	return wrong
}

func validProtocol(p corev1.Protocol) string {
	if p == corev1.ProtocolTCP || p == corev1.ProtocolUDP || p == corev1.ProtocolSCTP {
		return ""
	}
	return "protocol " + string(p)
}

func validPod(p *corev1.Pod) string {
	wrong := first(apivalidation.NameIsDNSSubdomain(p.Name, false)...)
	for _, c := range append(p.Spec.Containers, p.Spec.InitContainers...) {
		for _, port := range c.Ports {
			wrong = first(append(validation.IsValidPortNum(int(port.ContainerPort)), wrong, validProtocol(port.Protocol))...)
			if port.Name != "" {
				wrong = first(append(validation.IsValidPortName(port.Name), wrong)...)
			}
		}
	}
	families := map[bool]bool{}
	for _, ip := range p.Status.PodIPs {
		a := net.ParseIP(ip.IP)
		if v4 := a.To4() != nil; a == nil || families[v4] {
			return "address " + ip.IP
		} else {
			families[v4] = true
		}
	}
	return wrong
}

func validService(s *corev1.Service) string {
	wrong := first(apivalidation.NameIsDNS1035Label(s.Name, false)...)
	for _, p := range s.Spec.Ports {
		wrong = first(append(validation.IsValidPortNum(int(p.Port)), wrong, validProtocol(p.Protocol))...)
		if p.NodePort != 0 {
			wrong = first(append(validation.IsValidPortNum(int(p.NodePort)), wrong)...)
		}
	}
	for _, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone && net.ParseIP(ip) == nil {
			return "address " + ip
		}
	}
	return first(wrong, validLabels(s.Spec.Selector))
}

func validSlice(s *discoveryv1.EndpointSlice) string {
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			ip := net.ParseIP(a)
			v4 := ip != nil && ip.To4() != nil && !strings.Contains(a, ":")
			switch {
			case s.AddressType == discoveryv1.AddressTypeIPv4 && !v4,
				s.AddressType == discoveryv1.AddressTypeIPv6 && (ip == nil || v4):
				return "address " + a
			}
		}
	}
	for _, p := range s.Ports {
		if p.Port != nil && len(validation.IsValidPortNum(int(*p.Port))) > 0 {
			return fmt.Sprint("port ", *p.Port)
		}
	}
	return first(apivalidation.NameIsDNSSubdomain(s.Name, false)...)
}
