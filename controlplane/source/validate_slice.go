package source

import (
	"net/netip"

	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of an EndpointSlice, from its API.
const (
	maxSliceEndpoints    = 1000
	maxEndpointAddresses = 100
	maxSlicePorts        = 20000
)

func checkEndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	errs := checkMeta(s, true, apivalidation.NameIsDNSSubdomain)
	if s.AddressType == "" {
		errs = append(errs, field.Required(field.NewPath("addressType"), "IPv4, IPv6 or FQDN"))
	} else {
		errs = append(errs, oneOf(field.NewPath("addressType"), s.AddressType,
			discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)...)
	}
	path := field.NewPath("endpoints")
	if len(s.Endpoints) > maxSliceEndpoints {
		return append(errs, field.TooMany(path, len(s.Endpoints), maxSliceEndpoints))
	}
	for i, e := range s.Endpoints {
		errs = append(errs, checkSliceEndpoint(path.Index(i), e, s.AddressType)...)
	}
	return append(errs, checkSlicePorts(field.NewPath("ports"), s.Ports)...)
}

func checkSliceEndpoint(path *field.Path, e discoveryv1.Endpoint, t discoveryv1.AddressType) field.ErrorList {
	list := path.Child("addresses")
	var errs field.ErrorList
	switch n := len(e.Addresses); {
	case n == 0:
		errs = append(errs, field.Required(list, "must contain at least 1 address"))
	case n > maxEndpointAddresses:
		return append(errs, field.TooMany(list, n, maxEndpointAddresses))
	}
	for i, a := range e.Addresses {
		switch t {
		case discoveryv1.AddressTypeFQDN:
			errs = append(errs, validation.IsFullyQualifiedDomainName(list.Index(i), a)...)
		case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
			errs = append(errs, checkBackend(list.Index(i), a, t)...)
		}
	}
	if e.Hostname != nil {
		errs = append(errs, messages(path.Child("hostname"), *e.Hostname, validation.IsDNS1123Label(*e.Hostname))...)
	}
	if e.NodeName != nil {
		errs = append(errs, messages(path.Child("nodeName"), *e.NodeName, validation.IsDNS1123Subdomain(*e.NodeName))...)
	}
	return errs
}

// checkBackend refuses addresses that can only be the node's own or nobody's.
func checkBackend(path *field.Path, text string, t discoveryv1.AddressType) field.ErrorList {
	if errs := checkIP(path, text); len(errs) > 0 {
		return errs
	}
	a := netip.MustParseAddr(text)
	switch {
	case a.Is4() != (t == discoveryv1.AddressTypeIPv4):
		return field.ErrorList{field.Invalid(path, text, "must be an "+string(t)+" address, as addressType says")}
	case a.IsUnspecified(), a.IsLoopback(), a.IsLinkLocalUnicast(), a.IsLinkLocalMulticast(), a.IsMulticast():
		return field.ErrorList{field.Invalid(path, text, "may not be unspecified, loopback, link-local or multicast")}
	}
	return nil
}

func checkSlicePorts(path *field.Path, ports []discoveryv1.EndpointPort) field.ErrorList {
	if len(ports) > maxSlicePorts {
		return field.ErrorList{field.TooMany(path, len(ports), maxSlicePorts)}
	}
	var errs field.ErrorList
	names := map[string]bool{}
	for i := range ports {
		p, path := &ports[i], path.Index(i)
		if p.Name == nil {
			p.Name = new(string)
		}
		if *p.Name != "" {
			errs = append(errs, messages(path.Child("name"), *p.Name, validation.IsDNS1123Label(*p.Name))...)
		}
		if names[*p.Name] {
			errs = append(errs, field.Duplicate(path.Child("name"), *p.Name))
		}
		names[*p.Name] = true
		errs = append(errs, checkOptionalProtocol(path.Child("protocol"), &p.Protocol)...)
		if p.Port != nil {
			errs = append(errs, checkPortNumber(path.Child("port"), *p.Port)...)
		}
	}
	return errs
}
