package policy

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
)

// frontends are the addresses and ports that the node's NAT answers for.
// A Service that this node's own processes serve is none: what its NAT turns to the node
// no hook sees again, so such packets are judged on the address they name.
func (w *compiler) frontends() {
	here := w.servedHere()
	for _, l := range w.locals {
		if pod := w.cluster.Pods[l.Pod]; pod != nil {
			w.claim(podRef(l.Pod), hostPorts(pod, l))
		}
	}
	for _, name := range sortedNames(w.cluster.Services) {
		s := w.cluster.Services[name]
		if s.Spec.Type != corev1.ServiceTypeExternalName && !here[name] {
			w.claim(Ref{Kind: "Service", Namespace: name.Namespace, Name: name.Name}, service(s))
		}
	}
}

// claim adds an object's frontends if they fit, all or none.
func (w *compiler) claim(owner Ref, frontends []datapath.Frontend) {
	fresh := slices.DeleteFunc(frontends, func(f datapath.Frontend) bool { _, ok := w.state.Frontends[f]; return ok })
	if most := w.node.Limits.Frontends; most > 0 && len(w.state.Frontends)+len(fresh) > most {
		w.overflowed = true
		w.result.Errors = append(w.result.Errors, Problem{Ref: owner, Field: "spec", Message: fmt.Sprintf(
			"its %d addresses and ports do not fit, at most %d are known (--map-size frontends=N): packets to them are judged on the address they name",
			len(frontends), most)})
		return
	}
	for _, f := range fresh {
		w.state.Frontends[f] = struct{}{}
	}
}

// servedHere are the Services with an endpoint at an address of this node.
func (w *compiler) servedHere() map[types.NamespacedName]bool {
	own := map[string]bool{}
	for _, a := range w.node.Addresses {
		own[a.String()] = true
	}
	out := map[types.NamespacedName]bool{}
	for _, slice := range w.cluster.EndpointSlices {
		for _, e := range slice.Endpoints {
			if slices.ContainsFunc(e.Addresses, func(a string) bool { return own[a] }) {
				out[types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}] = true
			}
		}
	}
	return out
}

func service(s *corev1.Service) (out []datapath.Frontend) {
	addrs := serviceAddresses(s)
	for _, port := range s.Spec.Ports {
		protocol, ok := protocolNumber(port.Protocol)
		if !ok {
			continue
		}
		for _, a := range addrs {
			out = append(out, frontend(a, protocol, port.Port))
		}
		if port.NodePort != 0 {
			for _, a := range unspecified(s.Spec.IPFamilies) {
				out = append(out, frontend(a, protocol, port.NodePort))
			}
		}
	}
	return out
}

// serviceAddresses are all that stand for the Service; none for a headless one.
func serviceAddresses(s *corev1.Service) []netip.Addr {
	texts := append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...)
	texts = append(texts, s.Spec.ExternalIPs...)
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, in.IP)
		}
	}
	var out []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// unspecified addresses of some families; of both when none is named.
func unspecified(families []corev1.IPFamily) []netip.Addr {
	both := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	if len(families) != 1 {
		return both
	}
	if families[0] == corev1.IPv4Protocol {
		return both[:1]
	}
	return both[1:]
}

// hostPorts of a pod here, on the address they name or on all.
func hostPorts(pod *Pod, l Local) (out []datapath.Frontend) {
	for _, p := range pod.Ports {
		protocol, ok := protocolNumber(p.Protocol)
		if p.HostPort == 0 || !ok {
			continue
		}
		for _, a := range hostPortAddresses(p.HostIP, l) {
			out = append(out, frontend(a, protocol, p.HostPort))
		}
	}
	return out
}

func hostPortAddresses(hostIP string, l Local) []netip.Addr {
	if a, err := netip.ParseAddr(hostIP); err == nil {
		return []netip.Addr{a.Unmap()}
	}
	var out []netip.Addr
	for _, a := range l.Addresses() {
		if a.Unmap().Is4() {
			out = append(out, netip.IPv4Unspecified())
		} else {
			out = append(out, netip.IPv6Unspecified())
		}
	}
	return out
}

func frontend(a netip.Addr, protocol uint8, port int32) datapath.Frontend {
	return datapath.Frontend{Addr: a, Protocol: protocol, Port: uint16(port)}
}
