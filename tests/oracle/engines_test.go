package oracle

import (
	"context"
	"net"
	"net/netip"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"

	"github.com/weirnet/weir/controlplane/policy"
)

// answer is by direction; an end outside the cluster has none and allows.
type answer struct{ egress, ingress bool }

// engine answers for one scene.
type engine func(traffic) answer

func reference(s *scene) engine {
	return func(t traffic) answer {
		v := policy.Verdict(s.cluster, policy.Node{}, policy.Tuple{
			From: end(t.from, t.fromAddr), To: end(t.to, t.toAddr),
			Protocol: t.protocolNumber, Port: uint16(t.port),
		})
		return answer{v.Egress == nil || v.Egress.Verdict == policy.Forwarded, v.Ingress == nil || v.Ingress.Verdict == policy.Forwarded}
	}
}

func end(pod *corev1.Pod, addr netip.Addr) policy.End {
	e := policy.End{Addr: addr}
	if pod != nil {
		e.Pod = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	}
	return e
}

func cyclonus(s *scene) engine {
	var policies []*networkingv1.NetworkPolicy
	for _, np := range s.cluster.NetworkPolicies {
		policies = append(policies, withoutNotIn(np)...)
	}
	compiled := matcher.BuildNetworkPolicies(false, policies)
	peer := func(pod *corev1.Pod, addr string) *matcher.TrafficPeer {
		if pod == nil {
			return &matcher.TrafficPeer{IP: addr}
		}
		return &matcher.TrafficPeer{IP: addr, Internal: &matcher.InternalPeer{Namespace: pod.Namespace,
			NamespaceLabels: s.cluster.Namespaces[pod.Namespace].Labels, PodLabels: pod.Labels}}
	}
	return func(t traffic) answer {
		r := compiled.IsTrafficAllowed(&matcher.Traffic{
			Source: peer(t.from, t.fromAddr.String()), Destination: peer(t.to, t.toAddr.String()),
			ResolvedPort: t.port, ResolvedPortName: nameOfPort(t), Protocol: t.protocol,
		})
		return answer{r.Egress.IsAllowed(), r.Ingress.IsAllowed()}
	}
}

func nameOfPort(t traffic) string {
	if t.to != nil {
		for _, p := range t.to.Spec.Containers[0].Ports {
			if int(p.ContainerPort) == t.port && p.Protocol == t.protocol {
				return p.Name
			}
		}
	}
	return ""
}

// withoutNotIn says a policy in other words: cyclonus' NotIn does not match where the
// key is absent, Kubernetes' does, so each becomes Exists and NotIn, or DoesNotExist.
func withoutNotIn(np *networkingv1.NetworkPolicy) (out []*networkingv1.NetworkPolicy) {
	np = np.DeepCopy()
	for i := range np.Spec.Ingress {
		np.Spec.Ingress[i].From = splitPeers(np.Spec.Ingress[i].From)
	}
	for i := range np.Spec.Egress {
		np.Spec.Egress[i].To = splitPeers(np.Spec.Egress[i].To)
	}
	for _, s := range split(&np.Spec.PodSelector) {
		one := np.DeepCopy()
		one.Spec.PodSelector = *s
		out = append(out, one)
	}
	return out
}

func splitPeers(peers []networkingv1.NetworkPolicyPeer) (out []networkingv1.NetworkPolicyPeer) {
	for _, p := range peers {
		for _, pods := range split(p.PodSelector) {
			for _, namespaces := range split(p.NamespaceSelector) {
				out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: pods, NamespaceSelector: namespaces, IPBlock: p.IPBlock})
			}
		}
	}
	return out
}

func split(s *metav1.LabelSelector) []*metav1.LabelSelector {
	if s == nil {
		return []*metav1.LabelSelector{nil}
	}
	out := []*metav1.LabelSelector{{MatchLabels: s.MatchLabels}}
	for _, e := range s.MatchExpressions {
		var next []*metav1.LabelSelector
		for _, o := range out {
			add := func(es ...metav1.LabelSelectorRequirement) {
				c := o.DeepCopy()
				c.MatchExpressions = append(c.MatchExpressions, es...)
				next = append(next, c)
			}
			if e.Operator != metav1.LabelSelectorOpNotIn {
				add(e)
				continue
			}
			add(metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOpExists}, e)
			add(metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOpDoesNotExist})
		}
		out = next
	}
	return out
}

// kubeNetworkPolicies evaluates a subject and its peer; the policies are selected here.
func kubeNetworkPolicies(s *scene) engine {
	info := func(pod *corev1.Pod) *api.PodInfo {
		if pod == nil {
			return nil
		}
		out := &api.PodInfo{Name: pod.Name, Labels: pod.Labels, Node: &api.Node{Name: "n"},
			Namespace: &api.Namespace{Name: pod.Namespace, Labels: s.cluster.Namespaces[pod.Namespace].Labels}}
		for _, p := range pod.Spec.Containers[0].Ports {
			out.ContainerPorts = append(out.ContainerPorts, &api.ContainerPort{Name: p.Name, Port: p.ContainerPort, Protocol: string(p.Protocol)})
		}
		return out
	}
	selecting := func(pod *corev1.Pod) (out []*networkingv1.NetworkPolicy) {
		for _, np := range s.cluster.NetworkPolicies {
			selector, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
			if err != nil {
				panic(err)
			}
			if pod != nil && np.Namespace == pod.Namespace && selector.Matches(labels.Set(pod.Labels)) {
				out = append(out, np)
			}
		}
		return out
	}
	ctx := context.Background()
	return func(t traffic) answer {
		from, to := info(t.from), info(t.to)
		return answer{
			egress: networkpolicy.EvaluatePolicyDirection(ctx, selecting(t.from), networkingv1.PolicyTypeEgress,
				from, 40000, to, net.ParseIP(t.toAddr.String()), t.port, t.protocol),
			ingress: networkpolicy.EvaluatePolicyDirection(ctx, selecting(t.to), networkingv1.PolicyTypeIngress,
				to, t.port, from, net.ParseIP(t.fromAddr.String()), 40000, t.protocol),
		}
	}
}
