package conformance

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
)

// question is whether one pod may talk to another, by one protocol to one port, over one
// family of addresses.
type question struct {
	from, to         types.NamespacedName
	fromAddr, toAddr netip.Addr
	protocol         corev1.Protocol
	port             int
}

func (q question) family() int {
	if q.toAddr.Is4() {
		return 4
	}
	return 6
}

var numbers = map[corev1.Protocol]uint8{corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}

// expectation is a question and what has to come of it: what the engines say.
type expectation struct {
	question
	cyclonus  bool
	reference policy.Answer
}

// allowed is true if both engines allow; agreed if they do not differ.
func (e expectation) allowed() bool { return e.cyclonus }
func (e expectation) agreed() bool  { return e.cyclonus == e.reference.Forwarded }

// denier is the direction whose policies deny first: a packet meets its sender's first.
func (e expectation) denier() (direction string, side *policy.Side) {
	if s := e.reference.Egress; s != nil && s.Verdict == policy.Dropped {
		return "EGRESS", s
	}
	return "INGRESS", e.reference.Ingress
}

// expectations asks the engines about every two pods, port, protocol and family. A pod and
// itself are left out: cyclonus has no rule for that.
func (c *cluster) expectations() []expectation {
	engine := matcher.BuildNetworkPolicies(true, c.policies())
	var out []expectation
	for _, from := range c.podNames() {
		for _, to := range c.podNames() {
			for _, q := range c.between(from, to) {
				out = append(out, expectation{q, c.askCyclonus(engine, q), c.askReference(q)})
			}
		}
	}
	return out
}

func (c *cluster) between(from, to types.NamespacedName) []question {
	if from == to {
		return nil
	}
	var out []question
	for family := range 2 {
		q := question{from: from, to: to, fromAddr: c.address(from, family), toAddr: c.address(to, family)}
		for _, q.protocol = range protocols {
			for _, q.port = range ports {
				out = append(out, q)
			}
		}
	}
	return out
}

func (c *cluster) podNames() []types.NamespacedName {
	var out []types.NamespacedName
	for name := range c.Pods {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// address is a pod's: 0 for IPv4, 1 for IPv6.
func (c *cluster) address(pod types.NamespacedName, family int) netip.Addr {
	return c.Pods[pod].Addresses[family]
}

func (c *cluster) policies() []*networkingv1.NetworkPolicy {
	var out []*networkingv1.NetworkPolicy
	for _, np := range c.NetworkPolicies {
		out = append(out, np)
	}
	return out
}

func (c *cluster) askCyclonus(engine *matcher.Policy, q question) bool {
	peer := func(pod types.NamespacedName, a netip.Addr) *matcher.TrafficPeer {
		return &matcher.TrafficPeer{IP: a.String(), Internal: &matcher.InternalPeer{
			Namespace: pod.Namespace, NamespaceLabels: c.Namespaces[pod.Namespace].Labels, PodLabels: c.Pods[pod].Labels,
		}}
	}
	return engine.IsTrafficAllowed(&matcher.Traffic{
		Source: peer(q.from, q.fromAddr), Destination: peer(q.to, q.toAddr),
		ResolvedPort: q.port, ResolvedPortName: portName(q.port, q.protocol), Protocol: q.protocol,
	}).IsAllowed()
}

func (c *cluster) askReference(q question) policy.Answer {
	return policy.Verdict(&c.Cluster, policy.Node{}, policy.Tuple{
		From: policy.End{Pod: q.from, Addr: q.fromAddr}, To: policy.End{Pod: q.to, Addr: q.toAddr},
		Protocol: numbers[q.protocol], Port: uint16(q.port),
	})
}
