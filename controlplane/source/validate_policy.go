package source

import (
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func checkNetworkPolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	errs := checkMeta(p, true, apivalidation.NameIsDNSSubdomain)
	errs = append(errs, checkSelector(spec.Child("podSelector"), &p.Spec.PodSelector)...)
	for i, r := range p.Spec.Ingress {
		path := spec.Child("ingress").Index(i)
		errs = append(errs, checkPolicyPorts(path.Child("ports"), r.Ports)...)
		errs = append(errs, checkPeers(path.Child("from"), r.From)...)
	}
	for i, r := range p.Spec.Egress {
		path := spec.Child("egress").Index(i)
		errs = append(errs, checkPolicyPorts(path.Child("ports"), r.Ports)...)
		errs = append(errs, checkPeers(path.Child("to"), r.To)...)
	}
	return append(errs, checkPolicyTypes(&p.Spec)...)
}

// checkPolicyTypes defaults to Ingress, and Egress if there are egress rules.
func checkPolicyTypes(s *networkingv1.NetworkPolicySpec) field.ErrorList {
	path := spec.Child("policyTypes")
	if len(s.PolicyTypes) == 0 {
		s.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(s.Egress) > 0 {
			s.PolicyTypes = append(s.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	if len(s.PolicyTypes) > 2 {
		return field.ErrorList{field.TooMany(path, len(s.PolicyTypes), 2)}
	}
	var errs field.ErrorList
	for i, t := range s.PolicyTypes {
		errs = append(errs, oneOf(path.Index(i), t, networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress)...)
	}
	return errs
}

func checkPolicyPorts(path *field.Path, ports []networkingv1.NetworkPolicyPort) field.ErrorList {
	var errs field.ErrorList
	for i := range ports {
		p, path := &ports[i], path.Index(i)
		errs = append(errs, checkOptionalProtocol(path.Child("protocol"), &p.Protocol)...)
		if p.Port != nil {
			errs = append(errs, checkPort(path.Child("port"), *p.Port)...)
		}
		if p.EndPort != nil {
			errs = append(errs, checkEndPort(path.Child("endPort"), *p.EndPort, p.Port)...)
		}
	}
	return errs
}

func checkEndPort(path *field.Path, end int32, port *intstr.IntOrString) field.ErrorList {
	switch {
	case port == nil:
		return field.ErrorList{field.Invalid(path, end, "may not be specified when `port` is not specified")}
	case port.Type == intstr.String:
		return field.ErrorList{field.Invalid(path, end, "may not be specified when `port` is non-numeric")}
	case end < port.IntVal:
		return field.ErrorList{field.Invalid(path, end, "must be greater than or equal to `port`")}
	}
	return checkPortNumber(path, end)
}

func checkPeers(path *field.Path, peers []networkingv1.NetworkPolicyPeer) field.ErrorList {
	var errs field.ErrorList
	for i, p := range peers {
		path := path.Index(i)
		if p.PodSelector == nil && p.NamespaceSelector == nil && p.IPBlock == nil {
			errs = append(errs, field.Required(path, "must specify a peer: podSelector, namespaceSelector or ipBlock ({} selects all)"))
		}
		if p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil) {
			errs = append(errs, field.Forbidden(path, "may not specify both ipBlock and another peer: make two peers of it"))
		}
		if p.PodSelector != nil {
			errs = append(errs, checkSelector(path.Child("podSelector"), p.PodSelector)...)
		}
		if p.NamespaceSelector != nil {
			errs = append(errs, checkSelector(path.Child("namespaceSelector"), p.NamespaceSelector)...)
		}
		if p.IPBlock != nil {
			errs = append(errs, checkIPBlock(path.Child("ipBlock"), p.IPBlock)...)
		}
	}
	return errs
}

func checkIPBlock(path *field.Path, b *networkingv1.IPBlock) field.ErrorList {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "for example 10.0.0.0/8")}
	}
	cidr, errs := checkCIDR(path.Child("cidr"), b.CIDR)
	for i, e := range b.Except {
		path := path.Child("except").Index(i)
		except, bad := checkCIDR(path, e)
		errs = append(errs, bad...)
		if bad == nil && cidr.IsValid() && (!cidr.Contains(except.Addr()) || except.Bits() <= cidr.Bits()) {
			errs = append(errs, field.Invalid(path, e, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}

// checkCIDR takes an address with bits beyond the prefix length, as API servers did
// from the start, for the prefix it is in. Leading zeros and IPv4-mapped addresses mean
// different things to different software: it takes neither.
func checkCIDR(path *field.Path, text string) (netip.Prefix, field.ErrorList) {
	if errs := validation.IsValidCIDRForLegacyField(path, text, false, nil); len(errs) > 0 {
		return netip.Prefix{}, errs
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, field.ErrorList{field.Invalid(path, text, "must not have leading 0s in IP or prefix length")}
	case p.Addr().Is4In6():
		return netip.Prefix{}, field.ErrorList{field.Invalid(path, text, "must not have an IPv4-mapped IPv6 address")}
	}
	return p.Masked(), nil
}
