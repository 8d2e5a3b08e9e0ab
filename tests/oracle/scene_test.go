package oracle

import (
	"fmt"
	"math/rand"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/controlplane/policy"
)

// scene is a random cluster in the terms that all three engines have: no nodes, no
// ICMP, one name for a port number, policyTypes always written.
type scene struct {
	r       *rand.Rand
	cluster *policy.Cluster
	pods    []*corev1.Pod // and nil, for outside
}

var (
	spaces    = []string{"x", "y", "z"}
	keys      = []string{"app", "tier"}
	values    = []string{"a", "b", "c"}
	outside   = [2]netip.Addr{netip.MustParseAddr("10.0.0.40"), netip.MustParseAddr("fd00::40")}
	protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
)

func newScene(r *rand.Rand) *scene {
	s := &scene{r: r, pods: []*corev1.Pod{nil}, cluster: &policy.Cluster{
		Namespaces:      map[string]*corev1.Namespace{},
		Pods:            map[types.NamespacedName]*corev1.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
	}}
	for _, name := range spaces {
		labels := s.labels()
		labels[policy.NamespaceLabel] = name
		s.cluster.Namespaces[name] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	for i := 1; i <= 9; i++ {
		s.addPod(i)
	}
	for i := 1 + r.Intn(6); i > 0; i-- {
		s.addPolicy(fmt.Sprint("np", i))
	}
	return s
}

func one[T any](r *rand.Rand, of []T) T { return of[r.Intn(len(of))] }

func (s *scene) labels() map[string]string {
	out := map[string]string{}
	for _, k := range keys {
		if s.r.Intn(3) > 0 {
			out[k] = one(s.r, values)
		}
	}
	return out
}

func (s *scene) addPod(i int) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: one(s.r, spaces), Name: fmt.Sprint("p", i), Labels: s.labels()}}
	var c corev1.Container
	for port := 80; port < 84; port++ {
		if s.r.Intn(2) == 0 {
			// a name once in a pod: one of the engines looks no further than the first
			c.Ports = append(c.Ports, corev1.ContainerPort{Name: fmt.Sprint("n", s.r.Intn(2)*10+len(c.Ports)), ContainerPort: int32(port), Protocol: one(s.r, protocols)})
		}
	}
	pod.Spec.Containers = []corev1.Container{c}
	pod.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", i)}, {IP: fmt.Sprintf("fd00::%x", i)}}
	s.cluster.Pods[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	s.pods = append(s.pods, pod)
}

func (s *scene) addPolicy(name string) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: one(s.r, spaces), Name: name}}
	np.Spec.PodSelector = s.selector()
	which := s.r.Intn(3)
	if which != 1 {
		np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		for i := s.r.Intn(4); i > 0; i-- {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: s.peers(), Ports: s.ports()})
		}
	}
	if which != 0 {
		np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		for i := s.r.Intn(4); i > 0; i-- {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: s.peers(), Ports: s.ports()})
		}
	}
	s.cluster.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
}

func (s *scene) selector() metav1.LabelSelector {
	var out metav1.LabelSelector
	for i := s.r.Intn(3); i > 0; i-- {
		e := metav1.LabelSelectorRequirement{Key: one(s.r, keys)}
		switch s.r.Intn(5) {
		case 0:
			out.MatchLabels = map[string]string{e.Key: one(s.r, values)}
			continue
		case 1:
			e.Operator, e.Values = metav1.LabelSelectorOpIn, []string{one(s.r, values), one(s.r, values)}
		case 2:
			e.Operator, e.Values = metav1.LabelSelectorOpNotIn, []string{one(s.r, values), one(s.r, values)}
		case 3:
			e.Operator = metav1.LabelSelectorOpExists
		case 4:
			e.Operator = metav1.LabelSelectorOpDoesNotExist
		}
		out.MatchExpressions = append(out.MatchExpressions, e)
	}
	return out
}

func (s *scene) peers() (out []networkingv1.NetworkPolicyPeer) {
	for i := s.r.Intn(3); i > 0; i-- {
		var p networkingv1.NetworkPolicyPeer
		pods, namespaces := s.selector(), s.selector()
		switch s.r.Intn(4) {
		case 0:
			p.PodSelector = &pods
		case 1:
			p.NamespaceSelector = &namespaces
		case 2:
			p.PodSelector, p.NamespaceSelector = &pods, &namespaces
		case 3:
			p.IPBlock = s.block()
		}
		out = append(out, p)
	}
	return out
}

func (s *scene) block() *networkingv1.IPBlock {
	base, lengths := netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", s.r.Intn(12))), []int{0, 26, 28, 29, 30, 31, 32}
	if s.r.Intn(2) == 0 {
		base, lengths = netip.MustParseAddr(fmt.Sprintf("fd00::%x", s.r.Intn(12))), []int{0, 122, 124, 125, 126, 127, 128}
	}
	i := s.r.Intn(len(lengths))
	b := &networkingv1.IPBlock{CIDR: netip.PrefixFrom(base, lengths[i]).Masked().String()}
	if i < len(lengths)-1 && s.r.Intn(2) == 0 {
		b.Except = []string{netip.PrefixFrom(base, lengths[i+1]).Masked().String()}
	}
	return b
}

func (s *scene) ports() (out []networkingv1.NetworkPolicyPort) {
	for i := s.r.Intn(3); i > 0; i-- {
		protocol := one(s.r, protocols)
		p := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		number, name := intstr.FromInt32(int32(79+s.r.Intn(6))), intstr.FromString(fmt.Sprint("n", s.r.Intn(14)))
		switch s.r.Intn(4) {
		case 0:
			p.Port = &number
		case 1:
			end := number.IntVal + int32(s.r.Intn(4))
			p.Port, p.EndPort = &number, &end
		case 2:
			p.Port = &name
		}
		out = append(out, p)
	}
	return out
}

// traffic is one question for all engines.
type traffic struct {
	from, to         *corev1.Pod // nil: outside
	fromAddr, toAddr netip.Addr
	port             int
	protocol         corev1.Protocol
	protocolNumber   uint8
}

func (s *scene) traffic(from, to *corev1.Pod) traffic {
	f, p := s.r.Intn(2), s.r.Intn(3)
	return traffic{from, to, address(from, f), address(to, f), 78 + s.r.Intn(8), protocols[p], [...]uint8{6, 17, 132}[p]}
}

func address(pod *corev1.Pod, family int) netip.Addr {
	if pod == nil {
		return outside[family]
	}
	return netip.MustParseAddr(pod.Status.PodIPs[family].IP)
}
