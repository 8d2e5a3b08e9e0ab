package oracle

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/differential"
	"github.com/weirnet/weir/tests/randomcluster"
)

// What the engines are told of the world. They judge a pod, or an address, and its peer; who
// has which address, and what a node is, is not theirs to say.

// party is one end of a connection.
type party struct {
	pod  *policy.Pod // nil: none that policies mean
	addr string
}

func parties(c *policy.Cluster, t policy.Tuple) (from, to party) {
	return lookUp(c, t.From), lookUp(c, t.To)
}

func lookUp(c *policy.Cluster, e policy.End) party {
	p := party{pod: c.Pods[e.Pod], addr: e.Addr.String()}
	if p.pod == nil {
		for _, pod := range c.Pods {
			if hasAddress(pod, e.Addr) {
				p.pod = pod
			}
		}
	}
	if p.pod != nil && p.pod.HostNetwork { // is its node
		p.pod = nil
	}
	return p
}

func hasAddress(pod *policy.Pod, a netip.Addr) bool {
	return !pod.Finished && slices.Contains(pod.Addresses, a)
}

// silence is what Kubernetes decides before any policy, and the engines leave to others: a pod
// reaches itself, and a node its pods; and ours may be told to let pods reach their node.
func silence(o *differential.Opinion, n policy.Node, from, to party) {
	own := func(p party) bool {
		return slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return a.String() == p.addr })
	}
	if from.pod != nil && from.pod == to.pod {
		o[datapath.Egress].Silent, o[datapath.Ingress].Silent = "a pod and itself", "a pod and itself"
	}
	if own(from) {
		o[datapath.Ingress].Silent = "a pod's own node"
	}
	if own(to) && n.NodeEgressAllow {
		o[datapath.Egress].Silent = "a pod's own node"
	}
}

// namespaceLabels: an API server adds the name, and a namespace that is used is there.
func namespaceLabels(c *policy.Cluster, name string) map[string]string {
	out := map[string]string{corev1.LabelMetadataName: name}
	if ns := c.Namespaces[name]; ns != nil {
		maps.Copy(out, ns.Labels)
	}
	return out
}

// protocol by name; those without ports have one that no policy can say.
func protocol(t policy.Tuple) corev1.Protocol {
	switch t.Protocol {
	case datapath.TCP:
		return corev1.ProtocolTCP
	case datapath.UDP:
		return corev1.ProtocolUDP
	case datapath.SCTP:
		return corev1.ProtocolSCTP
	case randomcluster.ICMP, randomcluster.ICMPv6:
		return "ICMP"
	}
	return "other"
}

// defaulted is a policy as an API server hands it on: types and protocols written out, and
// nil for an empty list, which one of the engines reads as no restriction.
func defaulted(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	np = np.DeepCopy()
	if len(np.Spec.PolicyTypes) == 0 {
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(np.Spec.Egress) > 0 {
			np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	if len(np.Spec.Ingress) == 0 {
		np.Spec.Ingress = nil
	}
	if len(np.Spec.Egress) == 0 {
		np.Spec.Egress = nil
	}
	for i := range np.Spec.Ingress {
		defaultPorts(np.Spec.Ingress[i].Ports)
	}
	for i := range np.Spec.Egress {
		defaultPorts(np.Spec.Egress[i].Ports)
	}
	return np
}

func defaultPorts(ports []networkingv1.NetworkPolicyPort) {
	tcp := corev1.ProtocolTCP
	for i := range ports {
		if ports[i].Protocol == nil {
			ports[i].Protocol = &tcp
		}
	}
}
