package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/datapath"
)

// LabelServiceProxy is on Services that another than the node's default proxy serves.
const LabelServiceProxy = "service.kubernetes.io/service-proxy-name"

// services are what pods' sockets get for the addresses of Services. Cluster IPs come
// first: nobody's external address takes one over.
func (w *compiler) services() {
	names, all := sortedNames(w.cluster.Services), w.slicesByService()
	for _, name := range names {
		w.result.services[name] = w.compileService(w.cluster.Services[name], all[name])
	}
	for _, kind := range []func(*compiledService) []translation{
		func(c *compiledService) []translation { return c.cluster },
		func(c *compiledService) []translation { return c.external },
	} {
		for _, name := range names {
			c := w.result.services[name]
			w.translate(c.service, kind(c))
		}
	}
}

// slicesByService has each Service's by name.
func (w *compiler) slicesByService() map[types.NamespacedName][]*discoveryv1.EndpointSlice {
	out := map[types.NamespacedName][]*discoveryv1.EndpointSlice{}
	for _, s := range w.cluster.EndpointSlices {
		service := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		out[service] = append(out[service], s)
	}
	for _, slicesOf := range out {
		slices.SortFunc(slicesOf, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

// compiledService is what a Service stands for and what that was made from. Objects do not
// change in place, so of the same ones comes the same.
type compiledService struct {
	service           *corev1.Service
	slices            []*discoveryv1.EndpointSlice
	node              string
	cluster, external []translation
}

func (w *compiler) compileService(s *corev1.Service, in []*discoveryv1.EndpointSlice) *compiledService {
	name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	if was := w.before.services[name]; was != nil && was.service == s && was.node == w.node.Name && slices.Equal(was.slices, in) {
		if was.translated() {
			w.ids.service(name)
		}
		return was
	}
	c := &compiledService{service: s, slices: in, node: w.node.Name}
	if translated(s) {
		c.cluster, c.external = w.translations(s, clusterIPs, in), w.translations(s, externalAddresses, in)
	}
	if c.translated() {
		number := w.ids.service(name)
		for _, t := range slices.Concat(c.cluster, c.external) {
			t.service.Number = number
		}
	}
	return c
}

func (c *compiledService) translated() bool { return len(c.cluster)+len(c.external) > 0 }

func translated(s *corev1.Service) bool {
	_, foreign := s.Labels[LabelServiceProxy]
	return s.Spec.Type != corev1.ServiceTypeExternalName && !foreign
}

// addressKind is how pods reach a Service, which decides among which of its endpoints.
type addressKind struct {
	addresses func(*corev1.Service) []netip.Addr
	local     func(*corev1.Service) bool // only endpoints of this node
}

// To its external addresses pods of the cluster get any endpoint, whatever the external
// traffic policy: that one is about traffic from outside.
var (
	clusterIPs = addressKind{
		func(s *corev1.Service) []netip.Addr {
			return parseAddresses(append(s.Spec.ClusterIPs[:len(s.Spec.ClusterIPs):len(s.Spec.ClusterIPs)], s.Spec.ClusterIP))
		},
		func(s *corev1.Service) bool {
			p := s.Spec.InternalTrafficPolicy
			return p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal
		},
	}
	externalAddresses = addressKind{
		func(s *corev1.Service) []netip.Addr {
			return parseAddresses(append(balancerVIPs(s), s.Spec.ExternalIPs...))
		},
		func(*corev1.Service) bool { return false },
	}
)

// balancerVIPs are a load balancer's addresses that nodes answer for themselves; none where
// it lets in only some sources, which the node's NAT sees to.
func balancerVIPs(s *corev1.Service) (out []string) {
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		return nil
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			out = append(out, in.IP)
		}
	}
	return out
}

func parseAddresses(texts []string) (out []netip.Addr) {
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// translation is one address and port, and what it leads to.
type translation struct {
	frontend datapath.Frontend
	service  *datapath.Service
}

// translations of a Service; addresses of one family and port share a list.
func (w *compiler) translations(s *corev1.Service, kind addressKind, in []*discoveryv1.EndpointSlice) (out []translation) {
	addresses := kind.addresses(s)
	for _, port := range s.Spec.Ports {
		protocol, ok := protocolNumber(port.Protocol)
		if !ok || protocol == datapath.SCTP { // sockets of SCTP have no hooks
			continue
		}
		lists := map[bool]*datapath.Service{}
		for _, a := range addresses {
			if lists[a.Is4()] == nil {
				lists[a.Is4()] = &datapath.Service{
					ID:       servicePortID(s, port, a.Is4()),
					Affinity: affinity(s),
					Backends: backends(endpointsOf(in, port, a.Is4()), w.node.Name, kind.local(s)),
				}
			}
			out = append(out, translation{frontend(a, protocol, port.Port), lists[a.Is4()]})
		}
	}
	return out
}

// servicePortID is the same wherever and whenever the port is compiled.
func servicePortID(s *corev1.Service, p corev1.ServicePort, v4 bool) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s %s %s %v", s.Namespace, s.Name, p.Name, p.Protocol, v4))
	return binary.LittleEndian.Uint64(sum[:])
}

func affinity(s *corev1.Service) uint32 {
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
		return uint32(*c.ClientIP.TimeoutSeconds)
	}
	return uint32(corev1.DefaultClientIPServiceAffinitySeconds)
}

// serviceEndpoint is an endpoint of a Service's port.
type serviceEndpoint struct {
	at       netip.AddrPort
	node     string
	ready    bool
	draining bool // terminating, and still serving
}

// endpointsOf a Service's port; an endpoint counts by its first address.
func endpointsOf(in []*discoveryv1.EndpointSlice, port corev1.ServicePort, v4 bool) (out []serviceEndpoint) {
	for _, slice := range in {
		if slice.AddressType != addressType(v4) {
			continue
		}
		for _, p := range slice.Ports {
			if !samePort(p, port) {
				continue
			}
			for _, e := range slice.Endpoints {
				if a, ok := firstAddress(e, v4); ok {
					out = append(out, endpointAt(e, netip.AddrPortFrom(a, uint16(*p.Port))))
				}
			}
		}
	}
	return out
}

func addressType(v4 bool) discoveryv1.AddressType {
	if v4 {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

func samePort(p discoveryv1.EndpointPort, of corev1.ServicePort) bool {
	name, protocol := "", corev1.ProtocolTCP
	if p.Name != nil {
		name = *p.Name
	}
	if p.Protocol != nil {
		protocol = *p.Protocol
	}
	return p.Port != nil && *p.Port != 0 && name == of.Name && protocol == cmp.Or(of.Protocol, corev1.ProtocolTCP)
}

func firstAddress(e discoveryv1.Endpoint, v4 bool) (netip.Addr, bool) {
	if len(e.Addresses) == 0 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(e.Addresses[0])
	return a.Unmap(), err == nil && a.Unmap().Is4() == v4 && a.Zone() == ""
}

// endpointAt: conditions that are not said are ready, serving and not terminating.
func endpointAt(e discoveryv1.Endpoint, at netip.AddrPort) serviceEndpoint {
	is := func(b *bool, otherwise bool) bool { return b == nil && otherwise || b != nil && *b }
	c := e.Conditions
	out := serviceEndpoint{at: at, ready: is(c.Ready, true), draining: is(c.Serving, true) && is(c.Terminating, false)}
	if e.NodeName != nil {
		out.node = *e.NodeName
	}
	return out
}

// backends are the endpoints that new connections go to: the ready ones or, where none is,
// those that serve while they terminate. local keeps to those of a node, and is no more
// patient for it: without one there the connection is refused.
func backends(all []serviceEndpoint, node string, local bool) []netip.AddrPort {
	for _, usable := range []func(serviceEndpoint) bool{
		func(e serviceEndpoint) bool { return e.ready },
		func(e serviceEndpoint) bool { return e.draining },
	} {
		var out []netip.AddrPort
		for _, e := range all {
			if usable(e) && (!local || e.node == node) {
				out = append(out, e.at)
			}
		}
		if len(out) > 0 {
			slices.SortFunc(out, netip.AddrPort.Compare)
			return slices.Compact(out)
		}
	}
	return nil
}

// translate adds an object's translations if they fit, all or none. An address and port
// is its first owner's.
func (w *compiler) translate(s *corev1.Service, all []translation) {
	taken := func(t translation) bool { return w.state.Services[t.frontend] != nil }
	if slices.ContainsFunc(all, taken) {
		all = slices.DeleteFunc(slices.Clone(all), taken)
	}
	lists := map[*datapath.Service]bool{}
	need := 0
	for _, t := range all {
		if !lists[t.service] {
			lists[t.service] = true
			need += 1 + len(t.service.Backends)
		}
	}
	limits := w.node.Limits
	for _, room := range []struct {
		name             string
		used, need, most int
	}{
		{"services", len(w.state.Services), len(all), limits.Services},
		{"backends", w.backends, need, limits.Backends},
	} {
		if room.most > 0 && room.used+room.need > room.most {
			w.overflowed = true
			ref := Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}
			w.result.Errors = append(w.result.Errors, Problem{Ref: ref, Field: "spec", Message: fmt.Sprintf(
				"its %d %s do not fit, at most %d are held (--map-size %s=N): pods' connections to it are left to the node's own NAT",
				room.need, room.name, room.most, room.name)})
			return
		}
	}
	w.backends += need
	for _, t := range all {
		w.state.Services[t.frontend] = t.service
	}
}
