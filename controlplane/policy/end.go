package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// ParseEnd reads "namespace/pod" or an address. A pod's address of the family (4 or 6)
// is taken from its interface here, else from the API; it stays zero where neither
// has one. An address that a pod's interface here has becomes that pod.
func ParseEnd(c *Cluster, locals []Local, text string, family int) (End, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return endOfAddress(locals, a.Unmap(), family)
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return End{}, fmt.Errorf("%q is neither NAMESPACE/POD nor an address", text)
	}
	e := End{Pod: types.NamespacedName{Namespace: namespace, Name: name}}
	pod := c.Pods[e.Pod]
	if pod == nil {
		return End{}, fmt.Errorf("pod %s is not there", text)
	}
	for _, l := range locals {
		if l.Pod != e.Pod {
			continue
		}
		for _, a := range l.Addresses() {
			if a.Unmap().Is4() == (family == 4) {
				e.Addr = a.Unmap()
				return e, nil
			}
		}
	}
	e.Addr = statusAddress(pod, family)
	return e, nil
}

func endOfAddress(locals []Local, a netip.Addr, family int) (End, error) {
	if a.Is4() != (family == 4) {
		return End{}, fmt.Errorf("%s is no IPv%d address", a, family)
	}
	for _, l := range locals {
		for _, own := range l.Addresses() {
			if own.Unmap() == a {
				return End{Pod: l.Pod, Addr: a}, nil
			}
		}
	}
	return End{Addr: a}, nil
}
