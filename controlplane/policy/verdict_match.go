package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// allowed is a rule that allows the connection, and by what: that gives it its place
// in the order in which the kernel asks.
type allowed struct {
	rule flatRule
	port byPort
	peer byPeer
}

// byPort is how a rule came to allow a port. The kernel asks for exact numbers first
// (1), then ranges (2), names (3), whole protocols (4) and everything (5).
type byPort struct {
	rank      int
	low, high int32
	name      string
}

// byPeer is how a rule came to allow a peer: any (1), all pods (2), others by their
// canonical text (3).
type byPeer struct {
	rank int
	text string
}

func compareAllowed(a, b allowed) int {
	return cmp.Or(comparePorts(a.port, b.port), compareHow(a.peer, b.peer),
		cmp.Compare(a.rule.order, b.rule.order), cmp.Compare(a.rule.index, b.rule.index))
}

func comparePorts(a, b byPort) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.low, b.low), cmp.Compare(a.high, b.high), cmp.Compare(a.name, b.name))
}

func compareHow(a, b byPeer) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.text, b.text))
}

// allows: one of its ports and one of its peers, or none given where that means all.
func (r *reference) allows(rule flatRule, subject *Pod, peer party) (allowed, bool) {
	ports := r.portsThatAllow(rule, subject, peer)
	peers := r.peersThatAllow(rule, peer)
	if len(ports) == 0 || len(peers) == 0 {
		return allowed{}, false
	}
	return allowed{rule, slices.MinFunc(ports, comparePorts), slices.MinFunc(peers, compareHow)}, true
}

func (r *reference) portsThatAllow(rule flatRule, subject *Pod, peer party) []byPort {
	if len(rule.ports) == 0 {
		return []byPort{{rank: 5}}
	}
	var out []byPort
	for _, p := range rule.ports {
		if how, ok := r.portAllows(p, rule, subject, peer); ok {
			out = append(out, how)
		}
	}
	return out
}

func (r *reference) portAllows(p networkingv1.NetworkPolicyPort, rule flatRule, subject *Pod, peer party) (byPort, bool) {
	if !hasPorts(r.tuple.Protocol) || protocolOf(p.Protocol) != r.protocol() {
		return byPort{}, false
	}
	port := int32(r.tuple.Port)
	switch {
	case p.Port == nil:
		return byPort{rank: 4}, true
	case p.Port.Type == intstr.String && rule.egress:
		return byPort{rank: 3, name: p.Port.StrVal}, peer.pod != nil && r.named(peer.pod, p.Port.StrVal)
	case p.Port.Type == intstr.String:
		return byPort{rank: 1}, r.named(subject, p.Port.StrVal)
	case p.EndPort != nil && *p.EndPort != p.Port.IntVal:
		return byPort{rank: 2, low: p.Port.IntVal, high: *p.EndPort}, p.Port.IntVal <= port && port <= *p.EndPort
	}
	return byPort{rank: 1}, p.Port.IntVal == port
}

// named reports whether the tuple's port has that name in the pod that it leads to.
func (r *reference) named(pod *Pod, name string) bool {
	for _, p := range pod.Ports {
		if p.Name == name && protocolOf(&p.Protocol) == r.protocol() && p.ContainerPort == int32(r.tuple.Port) {
			return true
		}
	}
	return false
}

func protocolOf(p *corev1.Protocol) corev1.Protocol {
	if p == nil || *p == "" {
		return corev1.ProtocolTCP
	}
	return *p
}

// protocol of the tuple as policies write it.
func (r *reference) protocol() corev1.Protocol {
	switch r.tuple.Protocol {
	case 6:
		return corev1.ProtocolTCP
	case 17:
		return corev1.ProtocolUDP
	case 132:
		return corev1.ProtocolSCTP
	}
	return "other"
}

func (r *reference) peersThatAllow(rule flatRule, peer party) []byPeer {
	if len(rule.peers) == 0 {
		return []byPeer{{rank: 1}}
	}
	var out []byPeer
	for _, p := range rule.peers {
		if r.peerAllows(p, rule.policy.Namespace, peer) {
			out = append(out, howPeer(p, rule.policy.Namespace))
		}
	}
	return out
}

func (r *reference) peerAllows(p networkingv1.NetworkPolicyPeer, namespace string, peer party) bool {
	switch {
	case p.IPBlock != nil:
		return blockHas(p.IPBlock, peer.address)
	case peer.pod == nil || p.PodSelector == nil && p.NamespaceSelector == nil:
		return false
	case p.NamespaceSelector == nil && peer.pod.Namespace != namespace:
		return false
	case p.NamespaceSelector != nil && !matches(p.NamespaceSelector, namespaceLabels(r.cluster, peer.pod.Namespace)):
		return false
	}
	return p.PodSelector == nil || matches(p.PodSelector, peer.pod.Labels)
}

func blockHas(b *networkingv1.IPBlock, a netip.Addr) bool {
	contains := func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && a.IsValid() && p.Contains(a)
	}
	return contains(b.CIDR) && !slices.ContainsFunc(b.Except, contains)
}

func howPeer(p networkingv1.NetworkPolicyPeer, namespace string) byPeer {
	pods := "*"
	if p.PodSelector != nil {
		pods = selectorText(p.PodSelector)
	}
	switch {
	case p.IPBlock != nil:
		return byPeer{3, blockText(p.IPBlock)}
	case p.NamespaceSelector == nil:
		return byPeer{3, "namespace " + namespace + " pods " + pods}
	case selectorText(p.NamespaceSelector) == "*" && pods == "*":
		return byPeer{rank: 2}
	}
	return byPeer{3, "namespaces " + selectorText(p.NamespaceSelector) + " pods " + pods}
}

func blockText(b *networkingv1.IPBlock) string {
	text := func(s string) string {
		if p, err := netip.ParsePrefix(s); err == nil {
			return p.Masked().String()
		}
		return s
	}
	var except []string
	for _, e := range b.Except {
		except = append(except, text(e))
	}
	slices.Sort(except)
	if except = slices.Compact(except); len(except) == 0 {
		return "block " + text(b.CIDR)
	}
	return "block " + text(b.CIDR) + " except " + strings.Join(except, ",")
}

// selectorText is one text for all ways to write the same requirements.
func selectorText(s *metav1.LabelSelector) string {
	var parts []string
	for k, v := range s.MatchLabels {
		parts = append(parts, k+" in ("+v+")")
	}
	for _, e := range s.MatchExpressions {
		values := slices.Sorted(slices.Values(e.Values))
		list := " (" + strings.Join(slices.Compact(values), " ") + ")"
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			parts = append(parts, e.Key+" in"+list)
		case metav1.LabelSelectorOpNotIn:
			parts = append(parts, e.Key+" notin"+list)
		case metav1.LabelSelectorOpExists:
			parts = append(parts, e.Key+" exists")
		case metav1.LabelSelectorOpDoesNotExist:
			parts = append(parts, e.Key+" !exists")
		}
	}
	if len(parts) == 0 {
		return "*"
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ",")
}
