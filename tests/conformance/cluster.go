package conformance

import (
	"fmt"
	"maps"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/generator"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/controlplane/policy"
)

// What every case begins with: cyclonus' own cluster. A pod a of any namespace has the
// label pod=a, the namespace x has ns=x.
var (
	namespaces = []string{"x", "y", "z"}
	podNames   = []string{"a", "b", "c"}
	ports      = []int{80, 81}
	protocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
)

// cluster is the objects that a step leaves behind.
type cluster struct{ policy.Cluster }

func newCluster() *cluster {
	c := &cluster{policy.Cluster{
		Namespaces:      map[string]*corev1.Namespace{},
		Pods:            map[types.NamespacedName]*policy.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
	}}
	for _, ns := range namespaces {
		c.setNamespace(ns, map[string]string{"ns": ns})
		for _, name := range podNames {
			c.setPod(ns, name, map[string]string{"pod": name})
		}
	}
	return c
}

// setNamespace gives a namespace its labels, and the one that the API server insists on.
func (c *cluster) setNamespace(name string, labels map[string]string) {
	labels = maps.Clone(labels)
	labels[policy.NamespaceLabel] = name
	c.Namespaces[name] = &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
	}
}

// setPod makes a pod that serves every port by every protocol, each under its name.
func (c *cluster) setPod(namespace, name string, labels map[string]string) {
	pod := &policy.Pod{Namespace: namespace, Name: name, Labels: labels}
	for _, port := range ports {
		for _, protocol := range protocols {
			pod.Ports = append(pod.Ports, corev1.ContainerPort{Name: portName(port, protocol), ContainerPort: int32(port), Protocol: protocol})
		}
	}
	c.Pods[types.NamespacedName{Namespace: namespace, Name: name}] = pod
}

// portName is cyclonus' name for a port.
func portName(port int, protocol corev1.Protocol) string {
	return fmt.Sprintf("serve-%d-%s", port, strings.ToLower(string(protocol)))
}

func (c *cluster) setPolicy(np *networkingv1.NetworkPolicy) {
	np = np.DeepCopy()
	np.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
	c.NetworkPolicies[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np
}

// apply does what a step says.
func (c *cluster) apply(a *generator.Action) error {
	switch {
	case a.CreatePolicy != nil:
		c.setPolicy(a.CreatePolicy.Policy)
	case a.UpdatePolicy != nil:
		c.setPolicy(a.UpdatePolicy.Policy)
	case a.DeletePolicy != nil:
		delete(c.NetworkPolicies, types.NamespacedName{Namespace: a.DeletePolicy.Namespace, Name: a.DeletePolicy.Name})
	case a.CreateNamespace != nil:
		c.setNamespace(a.CreateNamespace.Namespace, a.CreateNamespace.Labels)
	case a.SetNamespaceLabels != nil:
		c.setNamespace(a.SetNamespaceLabels.Namespace, a.SetNamespaceLabels.Labels)
	case a.DeleteNamespace != nil:
		c.deleteNamespace(a.DeleteNamespace.Namespace)
	case a.CreatePod != nil:
		c.setPod(a.CreatePod.Namespace, a.CreatePod.Pod, a.CreatePod.Labels)
	case a.SetPodLabels != nil:
		c.setPod(a.SetPodLabels.Namespace, a.SetPodLabels.Pod, a.SetPodLabels.Labels)
	case a.DeletePod != nil:
		delete(c.Pods, types.NamespacedName{Namespace: a.DeletePod.Namespace, Name: a.DeletePod.Pod})
	default:
		return fmt.Errorf("unknown action %+v", *a)
	}
	return nil
}

func (c *cluster) deleteNamespace(name string) {
	delete(c.Namespaces, name)
	maps.DeleteFunc(c.Pods, func(n types.NamespacedName, _ *policy.Pod) bool { return n.Namespace == name })
	maps.DeleteFunc(c.NetworkPolicies, func(n types.NamespacedName, _ *networkingv1.NetworkPolicy) bool { return n.Namespace == name })
}

// files are the manifests, an object each, by name.
func (c *cluster) files() (map[string]string, error) {
	out := map[string]string{}
	add := func(object any, kind string, names ...string) error {
		text, err := yaml.Marshal(object)
		if err != nil {
			return fmt.Errorf("write %s %s: %w", kind, strings.Join(names, "/"), err)
		}
		out[kind+"."+strings.Join(names, ".")+".yaml"] = string(text)
		return nil
	}
	for name, object := range c.Namespaces {
		if err := add(object, "namespace", name); err != nil {
			return nil, err
		}
	}
	for name, object := range c.Pods {
		bare := object.Object()
		bare.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		bare.Status = corev1.PodStatus{} // the agent has the addresses from the plugin
		if err := add(bare, "pod", name.Namespace, name.Name); err != nil {
			return nil, err
		}
	}
	for name, object := range c.NetworkPolicies {
		if err := add(object, "policy", name.Namespace, name.Name); err != nil {
			return nil, err
		}
	}
	return out, nil
}
