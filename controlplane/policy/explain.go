package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// nearMissMax is how many near misses a side lists, the nearest first.
const nearMissMax = 8

// NearMiss is a rule that does not allow the connection, and what differs.
type NearMiss struct {
	RuleRef
	Reason string `json:"reason"`
	differ int    // how much differs
}

// Explain is Verdict with the rules that nearly allowed what was dropped.
func Explain(c *Cluster, n Node, t Tuple) Answer {
	return (&reference{cluster: c, node: n, tuple: t, explain: true}).answer()
}

// refusedMiss is about a whole policy: none of its rules is in force.
func refusedMiss(np *networkingv1.NetworkPolicy) NearMiss {
	return NearMiss{RuleRef: RuleRef{Ref: refOf(np)},
		Reason: "the policy cannot be enforced as it is written, so it isolates and allows nothing: weir status says why"}
}

// nearest keeps the rules with the least difference.
func nearest(misses []NearMiss) []NearMiss {
	slices.SortStableFunc(misses, func(a, b NearMiss) int { return a.differ - b.differ })
	return misses[:min(len(misses), nearMissMax)]
}

// nearMiss says what a rule has where the connection has something else: the peer that
// differs least, and the ports if none fits.
func (r *reference) nearMiss(rule flatRule, subject *corev1.Pod, peer party) NearMiss {
	miss := NearMiss{RuleRef: RuleRef{Ref: refOf(rule.policy), Index: rule.index}}
	var reasons []string
	if len(r.peersThatAllow(rule, peer)) == 0 {
		best := r.peerMiss(rule.peers[0], rule.policy.Namespace, peer)
		for _, p := range rule.peers[1:] {
			if other := r.peerMiss(p, rule.policy.Namespace, peer); other.differ < best.differ {
				best = other
			}
		}
		reasons = append(reasons, best.reasons...)
		miss.differ += best.differ
	}
	if len(r.portsThatAllow(rule, subject, peer)) == 0 {
		reasons = append(reasons, r.portMiss(rule, subject, peer))
		miss.differ++
	}
	miss.Reason = strings.Join(reasons, "; ")
	return miss
}

func (r *reference) portMiss(rule flatRule, subject *corev1.Pod, peer party) string {
	var has []string
	for _, p := range rule.ports {
		has = append(has, r.portText(p, rule, subject, peer))
	}
	if !hasPorts(r.tuple.Protocol) {
		return fmt.Sprintf("protocol %d, rule has only %s", r.tuple.Protocol, strings.Join(has, ", "))
	}
	return fmt.Sprintf("port %d/%s, rule has %s", r.tuple.Port, r.protocol(), strings.Join(has, ", "))
}

func (r *reference) portText(p networkingv1.NetworkPolicyPort, rule flatRule, subject *corev1.Pod, peer party) string {
	protocol := string(protocolOf(p.Protocol))
	switch {
	case p.Port == nil:
		return "any/" + protocol
	case p.Port.Type == intstr.String:
		target := subject
		if rule.egress {
			target = peer.pod
		}
		return p.Port.StrVal + "/" + protocol + " (" + portNumbers(target, p.Port.StrVal, protocolOf(p.Protocol)) + ")"
	case p.EndPort != nil:
		return fmt.Sprintf("%d-%d/%s", p.Port.IntVal, *p.EndPort, protocol)
	}
	return fmt.Sprintf("%d/%s", p.Port.IntVal, protocol)
}

// portNumbers says what a port's name means at a pod.
func portNumbers(pod *corev1.Pod, name string, protocol corev1.Protocol) string {
	if pod == nil {
		return "the receiver is no pod: it has no named ports"
	}
	var numbers []string
	for _, c := range containers(pod) {
		for _, p := range c.Ports {
			if p.Name == name && protocolOf(&p.Protocol) == protocol {
				numbers = append(numbers, fmt.Sprint(p.ContainerPort))
			}
		}
	}
	if len(numbers) == 0 {
		return "the pod has no port of that name"
	}
	return strings.Join(numbers, ", ") + " there"
}

// otherKind is how much it differs that a rule means addresses and the peer is a pod, or
// the other way round: more than labels can.
const otherKind = 10

// difference is what keeps a peer from being meant.
type difference struct {
	reasons []string
	differ  int
}

func (r *reference) peerMiss(p networkingv1.NetworkPolicyPeer, namespace string, peer party) difference {
	switch {
	case p.IPBlock != nil && peer.pod != nil:
		return difference{[]string{blockMiss(p.IPBlock, peer)}, otherKind}
	case p.IPBlock != nil:
		return difference{[]string{blockMiss(p.IPBlock, peer)}, 1}
	case peer.pod == nil:
		return difference{[]string{fmt.Sprintf("%s is no pod, rule has pods only", addressText(peer))}, otherKind}
	}
	reasons := r.selectorMisses(p, namespace, peer.pod)
	return difference{reasons, len(reasons)}
}

func (r *reference) selectorMisses(p networkingv1.NetworkPolicyPeer, namespace string, pod *corev1.Pod) (out []string) {
	switch {
	case p.NamespaceSelector != nil:
		out = labelMisses("namespace", p.NamespaceSelector, namespaceLabels(r.cluster, pod.Namespace))
	case pod.Namespace != namespace:
		out = []string{fmt.Sprintf("pod's namespace is %s, not %s", pod.Namespace, namespace)}
	}
	if p.PodSelector != nil {
		out = append(out, labelMisses("pod", p.PodSelector, pod.Labels)...)
	}
	return out
}

func blockMiss(b *networkingv1.IPBlock, peer party) string {
	for _, e := range b.Except {
		if blockHas(&networkingv1.IPBlock{CIDR: e}, peer.address) {
			return fmt.Sprintf("address %s is in the exception %s of %s", addressText(peer), e, b.CIDR)
		}
	}
	return fmt.Sprintf("address %s is not in %s", addressText(peer), b.CIDR)
}

func addressText(p party) string {
	if !p.address.IsValid() {
		return "(not known)"
	}
	return p.address.String()
}

func labelMisses(of string, s *metav1.LabelSelector, l map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		if v, has := l[k]; !has || v != s.MatchLabels[k] {
			out = append(out, fmt.Sprintf("%s, not %s=%s", labelText(of, k, l), k, s.MatchLabels[k]))
		}
	}
	for _, e := range s.MatchExpressions {
		if !matches(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{e}}, l) {
			out = append(out, fmt.Sprintf("%s, rule wants %s", labelText(of, e.Key, l), wanted(e)))
		}
	}
	return out
}

func labelText(of, key string, l map[string]string) string {
	if v, has := l[key]; has {
		return fmt.Sprintf("%s label %s=%s", of, key, v)
	}
	return fmt.Sprintf("%s has no label %s", of, key)
}

func wanted(e metav1.LabelSelectorRequirement) string {
	values := " (" + strings.Join(e.Values, ", ") + ")"
	switch e.Operator {
	case metav1.LabelSelectorOpIn:
		return e.Key + " in" + values
	case metav1.LabelSelectorOpNotIn:
		return e.Key + " not in" + values
	case metav1.LabelSelectorOpExists:
		return e.Key + " to be there"
	}
	return e.Key + " not to be there"
}
