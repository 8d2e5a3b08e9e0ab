package source

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkService allocates nothing: a Service without clusterIP has none.
func checkService(s *corev1.Service) field.ErrorList {
	errs := checkMeta(s, true, apivalidation.NameIsDNS1035Label)
	if s.Spec.Type == "" {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if s.Spec.SessionAffinity == "" {
		s.Spec.SessionAffinity = corev1.ServiceAffinityNone
	}
	errs = append(errs, oneOf(spec.Child("type"), s.Spec.Type,
		corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	errs = append(errs, oneOf(spec.Child("sessionAffinity"), s.Spec.SessionAffinity,
		corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	errs = append(errs, metavalidation.ValidateLabels(s.Spec.Selector, spec.Child("selector"))...)
	errs = append(errs, checkClusterIPs(&s.Spec)...)
	errs = append(errs, checkServicePorts(&s.Spec)...)
	return append(errs, checkOutsideAddresses(s)...)
}

func checkClusterIPs(s *corev1.ServiceSpec) field.ErrorList {
	if s.ClusterIP != "" && len(s.ClusterIPs) == 0 {
		s.ClusterIPs = []string{s.ClusterIP}
	}
	if s.ClusterIP == "" && len(s.ClusterIPs) > 0 {
		s.ClusterIP = s.ClusterIPs[0]
	}
	one, list := spec.Child("clusterIP"), spec.Child("clusterIPs")
	var errs field.ErrorList
	for i, f := range s.IPFamilies {
		errs = append(errs, oneOf(spec.Child("ipFamilies").Index(i), f, corev1.IPv4Protocol, corev1.IPv6Protocol)...)
	}
	switch {
	case s.Type == corev1.ServiceTypeExternalName && len(s.ClusterIPs) > 0:
		return append(errs, field.Forbidden(one, "may not be set for ExternalName services"))
	case len(s.ClusterIPs) == 1 && s.ClusterIPs[0] == corev1.ClusterIPNone && s.ClusterIP == corev1.ClusterIPNone:
		if s.Type != corev1.ServiceTypeClusterIP {
			errs = append(errs, field.Invalid(one, s.ClusterIP, fmt.Sprintf("may not be set to 'None' for %s services", s.Type)))
		}
		return errs
	}
	return append(errs, checkIPs(one, s.ClusterIP, list, s.ClusterIPs)...)
}

func checkServicePorts(s *corev1.ServiceSpec) field.ErrorList {
	path := spec.Child("ports")
	var errs field.ErrorList
	if len(s.Ports) == 0 && s.ClusterIP != corev1.ClusterIPNone && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(path, "only headless services may have none"))
	}
	names, numbers := map[string]bool{}, map[string]bool{}
	for i := range s.Ports {
		p, path := &s.Ports[i], path.Index(i)
		errs = append(errs, checkServicePort(path, p, len(s.Ports) > 1)...)
		if p.Name != "" && names[p.Name] {
			errs = append(errs, field.Duplicate(path.Child("name"), p.Name))
		}
		number := fmt.Sprintf("%s/%d", p.Protocol, p.Port)
		if numbers[number] {
			errs = append(errs, field.Duplicate(path, number))
		}
		names[p.Name], numbers[number] = true, true
	}
	return errs
}

func checkServicePort(path *field.Path, p *corev1.ServicePort, named bool) field.ErrorList {
	if p.TargetPort == (intstr.IntOrString{}) || p.TargetPort == intstr.FromString("") {
		p.TargetPort = intstr.FromInt32(p.Port)
	}
	errs := checkPortNumber(path.Child("port"), p.Port)
	switch {
	case p.Name != "":
		errs = append(errs, messages(path.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
	case named:
		errs = append(errs, field.Required(path.Child("name"), "ports beside others need one"))
	}
	errs = append(errs, checkProtocol(path.Child("protocol"), &p.Protocol)...)
	if p.NodePort != 0 {
		errs = append(errs, checkPortNumber(path.Child("nodePort"), p.NodePort)...)
	}
	if p.TargetPort.Type == intstr.String || p.TargetPort.IntVal != p.Port {
		errs = append(errs, checkPort(path.Child("targetPort"), p.TargetPort)...)
	}
	return errs
}

func checkOutsideAddresses(s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	for i, ip := range s.Spec.ExternalIPs {
		errs = append(errs, checkIP(spec.Child("externalIPs").Index(i), ip)...)
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			errs = append(errs, checkIP(status.Child("loadBalancer", "ingress").Index(i).Child("ip"), in.IP)...)
		}
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		errs = append(errs, messages(spec.Child("externalName"), s.Spec.ExternalName, validation.IsDNS1123Subdomain(s.Spec.ExternalName))...)
	}
	return errs
}
