package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
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
	Reason      string `json:"reason"`
	differ, far int    // see difference
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
	slices.SortStableFunc(misses, func(a, b NearMiss) int { return cmp.Or(a.differ-b.differ, a.far-b.far) })
	return misses[:min(len(misses), nearMissMax)]
}

// nearMiss says what a rule has where the connection has something else: the peer that
// differs least, and the ports if none fits.
func (r *reference) nearMiss(rule flatRule, subject *Pod, peer party) NearMiss {
	miss := NearMiss{RuleRef: RuleRef{Ref: refOf(rule.policy), Index: rule.index}}
	var reasons []string
	if len(r.peersThatAllow(rule, peer)) == 0 {
		best := r.peerMiss(rule.peers[0], rule.policy.Namespace, peer)
		for _, p := range rule.peers[1:] {
			if other := r.peerMiss(p, rule.policy.Namespace, peer); cmp.Or(other.differ-best.differ, other.far-best.far) < 0 {
				best = other
			}
		}
		reasons = append(reasons, best.reasons...)
		miss.differ, miss.far = miss.differ+best.differ, best.far
	}
	if len(r.portsThatAllow(rule, subject, peer)) == 0 {
		reasons = append(reasons, r.portMiss(rule, subject, peer))
		miss.differ++
	}
	miss.Reason = strings.Join(reasons, "; ")
	return miss
}

func (r *reference) portMiss(rule flatRule, subject *Pod, peer party) string {
	var has []string
	for _, p := range rule.ports {
		has = append(has, r.portText(p, rule, subject, peer))
	}
	if !hasPorts(r.tuple.Protocol) {
		return fmt.Sprintf("protocol %d, rule has only %s", r.tuple.Protocol, strings.Join(has, ", "))
	}
	return fmt.Sprintf("port %d/%s, rule has %s", r.tuple.Port, r.protocol(), strings.Join(has, ", "))
}

func (r *reference) portText(p networkingv1.NetworkPolicyPort, rule flatRule, subject *Pod, peer party) string {
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
func portNumbers(pod *Pod, name string, protocol corev1.Protocol) string {
	if pod == nil {
		return "the receiver is no pod: it has no named ports"
	}
	var numbers []string
	for _, p := range pod.Ports {
		if p.Name == name && protocolOf(&p.Protocol) == protocol {
			numbers = append(numbers, fmt.Sprint(p.ContainerPort))
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
	differ  int // how much differs
	far     int // of what differs as much: how far the address is from the block
}

func (r *reference) peerMiss(p networkingv1.NetworkPolicyPeer, namespace string, peer party) difference {
	switch {
	case p.IPBlock != nil && peer.pod != nil:
		return blockMiss(p.IPBlock, peer, otherKind)
	case p.IPBlock != nil:
		return blockMiss(p.IPBlock, peer, 1)
	case peer.pod == nil:
		return difference{reasons: []string{fmt.Sprintf("%s is no pod, rule has pods only", addressText(peer))}, differ: otherKind}
	}
	return r.selectorMisses(p, namespace, peer.pod)
}

func (r *reference) selectorMisses(p networkingv1.NetworkPolicyPeer, namespace string, pod *Pod) (out difference) {
	switch {
	case p.NamespaceSelector != nil:
		out.addLabels("namespace", p.NamespaceSelector, namespaceLabels(r.cluster, pod.Namespace))
	case pod.Namespace != namespace:
		out = difference{reasons: []string{fmt.Sprintf("pod's namespace is %s, not %s", pod.Namespace, namespace)}, differ: 1}
	}
	if p.PodSelector != nil {
		out.addLabels("pod", p.PodSelector, pod.Labels)
	}
	return out
}

func blockMiss(b *networkingv1.IPBlock, peer party, differ int) difference {
	for _, e := range b.Except {
		if blockHas(&networkingv1.IPBlock{CIDR: e}, peer.address) {
			return difference{reasons: []string{fmt.Sprintf("address %s is in the exception %s of %s", addressText(peer), e, b.CIDR)}, differ: differ}
		}
	}
	return difference{[]string{fmt.Sprintf("address %s is not in %s", addressText(peer), b.CIDR)}, differ, distance(b.CIDR, peer.address)}
}

// distance of an address from a block that does not have it: less the longer the prefix
// that they share, and most in the other family.
func distance(cidr string, a netip.Addr) int {
	const most = 129
	p, err := netip.ParsePrefix(cidr)
	if err != nil || p.Addr().BitLen() != a.BitLen() {
		return most
	}
	shared := a.BitLen()
	for ; shared > 0; shared-- {
		if both, err := a.Prefix(shared); err == nil && both.Contains(p.Addr()) {
			break
		}
	}
	return most - 1 - shared
}

func addressText(p party) string {
	if !p.address.IsValid() {
		return "(not known)"
	}
	return p.address.String()
}

// addLabels adds a text for every label that is not as the selector wants it. It names all
// that is wanted of that label: what differs now may not be all that has to hold.
func (d *difference) addLabels(of string, s *metav1.LabelSelector, l map[string]string) {
	for _, key := range keysOf(s) {
		wants := wantsOf(s, key)
		if meets(wants, l) {
			continue
		}
		d.differ++
		text := missText(labelText(of, key, l), wants)
		if contradict(of, key, wants) {
			text, d.differ = text+", and nothing is that", d.differ+otherKind
		}
		d.reasons = append(d.reasons, text)
	}
}

// want is what a selector requires of one label.
type want struct {
	metav1.LabelSelector
	text string
}

func keysOf(s *metav1.LabelSelector) []string {
	out := slices.Sorted(maps.Keys(s.MatchLabels))
	for _, e := range s.MatchExpressions {
		if !slices.Contains(out, e.Key) {
			out = append(out, e.Key)
		}
	}
	return out
}

func wantsOf(s *metav1.LabelSelector, key string) (out []want) {
	if v, has := s.MatchLabels[key]; has {
		out = append(out, want{metav1.LabelSelector{MatchLabels: map[string]string{key: v}}, key + "=" + v})
	}
	for _, e := range s.MatchExpressions {
		if e.Key == key {
			out = append(out, want{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{e}}, wanted(e)})
		}
	}
	return out
}

func meets(wants []want, l map[string]string) bool {
	return !slices.ContainsFunc(wants, func(w want) bool { return !matches(&w.LabelSelector, l) })
}

// contradict: neither a value that is mentioned, nor another, nor none meets all.
func contradict(of, key string, wants []want) bool {
	candidates := []map[string]string{{key: "~"}} // no label has that value
	if of != "namespace" || key != NamespaceLabel {
		candidates = append(candidates, nil)
	}
	for _, w := range wants {
		for _, v := range w.MatchLabels {
			candidates = append(candidates, map[string]string{key: v})
		}
		for _, e := range w.MatchExpressions {
			for _, v := range e.Values {
				candidates = append(candidates, map[string]string{key: v})
			}
		}
	}
	return !slices.ContainsFunc(candidates, func(l map[string]string) bool { return meets(wants, l) })
}

func missText(has string, wants []want) string {
	if len(wants) == 1 && wants[0].MatchLabels != nil {
		return has + ", not " + wants[0].text
	}
	var texts []string
	for _, w := range wants {
		texts = append(texts, w.text)
	}
	return has + ", rule wants " + strings.Join(texts, " and ")
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
