package policy

import (
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Pod is what policy and names use of a Pod object, a tenth of its size: most of a large
// cluster's memory is its pods. It is never changed once it is somebody's.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	Labels          map[string]string
	NodeName        string
	Owner           *Owner                 // its controller; nil: none
	Ports           []corev1.ContainerPort // of containers that run beside each other, those that somebody can name or reach from outside
	Addresses       []netip.Addr           // of its status: unmapped, no two the same
	HostNetwork     bool
	Finished        bool // a finished pod keeps its address in the API while it is used again
}

// alike pods have an identity in common: of one namespace, with the very labels and ports. A source
// that holds once what objects have in common makes them so.
type alike struct {
	namespace     string
	labels, ports uintptr // of objects that the pods hold
	portCount     int
}

func alikeOf(p *Pod) alike {
	return alike{p.Namespace, reflect.ValueOf(p.Labels).Pointer(), reflect.ValueOf(p.Ports).Pointer(), len(p.Ports)}
}

// Owner is what made a pod.
type Owner struct{ Kind, Name string }

// PodOf an object, whose labels it shares. What it leaves out is not held in memory, and a change
// of it is no change: a field that something new needs is added here.
func PodOf(p *corev1.Pod) *Pod {
	out := &Pod{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels, NodeName: p.Spec.NodeName,
		Addresses: addressesOf(&p.Status), HostNetwork: p.Spec.HostNetwork,
		Finished: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if by := metav1.GetControllerOfNoCopy(p); by != nil {
		out.Owner = &Owner{by.Kind, by.Name}
	}
	for i := range p.Spec.Containers {
		out.addPorts(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers { // only if they keep running
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out.addPorts(c)
		}
	}
	return out
}

func (p *Pod) addPorts(c *corev1.Container) {
	for _, port := range c.Ports {
		if port.Name != "" || port.HostPort != 0 {
			p.Ports = append(p.Ports, port)
		}
	}
}

func addressesOf(s *corev1.PodStatus) (out []netip.Addr) {
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil {
			if a = a.Unmap().WithZone(""); !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	add(s.PodIP)
	for _, ip := range s.PodIPs {
		if ip.IP != s.PodIP {
			add(ip.IP)
		}
	}
	return slices.Clip(out)
}

// Object has all that PodOf takes.
func (p *Pod) Object() *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels},
		Spec:       corev1.PodSpec{NodeName: p.NodeName, HostNetwork: p.HostNetwork},
	}
	if p.Owner != nil {
		controller := true
		out.OwnerReferences = []metav1.OwnerReference{{Kind: p.Owner.Kind, Name: p.Owner.Name, Controller: &controller}}
	}
	if len(p.Ports) > 0 {
		out.Spec.Containers = []corev1.Container{{Ports: p.Ports}}
	}
	for _, a := range p.Addresses {
		out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(p.Addresses) > 0 {
		out.Status.PodIP = out.Status.PodIPs[0].IP
	}
	if p.Finished {
		out.Status.Phase = corev1.PodSucceeded
	}
	return out
}

// MarshalJSON writes the Object.
func (p *Pod) MarshalJSON() ([]byte, error) { return json.Marshal(p.Object()) }

// UnmarshalJSON reads an object.
func (p *Pod) UnmarshalJSON(text []byte) error {
	o := &corev1.Pod{}
	if err := json.Unmarshal(text, o); err != nil {
		return err
	}
	*p = *PodOf(o)
	return nil
}

// Clone has labels, ports and addresses of its own, to be changed.
func (p *Pod) Clone() *Pod {
	out := *p
	out.Labels, out.Ports, out.Addresses = maps.Clone(p.Labels), slices.Clone(p.Ports), slices.Clone(p.Addresses)
	return &out
}

// Equal reports whether nobody could tell the two apart.
func (p *Pod) Equal(o *Pod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.UID == o.UID && p.NodeName == o.NodeName &&
		p.HostNetwork == o.HostNetwork && p.Finished == o.Finished && maps.Equal(p.Labels, o.Labels) &&
		(p.Owner == nil) == (o.Owner == nil) && (p.Owner == nil || *p.Owner == *o.Owner) &&
		slices.Equal(p.Ports, o.Ports) && slices.Equal(p.Addresses, o.Addresses)
}

// StatusAddresses are those that the API has for a pod; none for a hostNetwork pod,
// which is its node, or a finished one.
func StatusAddresses(p *Pod) []netip.Addr {
	if p.HostNetwork || p.Finished {
		return nil
	}
	return p.Addresses
}
