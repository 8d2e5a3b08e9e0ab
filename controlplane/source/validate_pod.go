package source

import (
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkPod asks for less than an API server where policy does not depend on it: a Pod
// may have no containers, and a container no image and, alone, no name.
func checkPod(p *corev1.Pod) field.ErrorList {
	errs := checkMeta(p, true, apivalidation.NameIsDNSSubdomain)
	names := map[string]bool{}
	errs = append(errs, checkContainers(spec.Child("initContainers"), p.Spec.InitContainers, p.Spec.HostNetwork, names)...)
	errs = append(errs, checkContainers(spec.Child("containers"), p.Spec.Containers, p.Spec.HostNetwork, names)...)
	if n := p.Spec.NodeName; n != "" {
		errs = append(errs, messages(spec.Child("nodeName"), n, validation.IsDNS1123Subdomain(n))...)
	}
	return append(errs, checkPodStatus(&p.Status)...)
}

func checkPodStatus(s *corev1.PodStatus) field.ErrorList {
	errs := oneOf(status.Child("phase"), s.Phase,
		"", corev1.PodFailed, corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodUnknown)
	if s.PodIP != "" && len(s.PodIPs) == 0 {
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
	var podIPs, hostIPs []string
	for _, ip := range s.PodIPs {
		podIPs = append(podIPs, ip.IP)
	}
	for _, ip := range s.HostIPs {
		hostIPs = append(hostIPs, ip.IP)
	}
	if s.PodIP == "" && len(podIPs) > 0 {
		s.PodIP = podIPs[0]
	}
	errs = append(errs, checkIPs(status.Child("podIP"), s.PodIP, status.Child("podIPs"), podIPs)...)
	if s.HostIP != "" && len(hostIPs) == 0 {
		errs = append(errs, checkIP(status.Child("hostIP"), s.HostIP)...)
	}
	return append(errs, checkIPs(status.Child("hostIP"), s.HostIP, status.Child("hostIPs"), hostIPs)...)
}

// checkContainers adds the names it finds to names.
func checkContainers(path *field.Path, containers []corev1.Container, hostNetwork bool, names map[string]bool) field.ErrorList {
	var errs field.ErrorList
	for i := range containers {
		c, path := &containers[i], path.Index(i)
		if c.Name != "" {
			errs = append(errs, messages(path.Child("name"), c.Name, validation.IsDNS1123Label(c.Name))...)
		} else if len(containers) > 1 {
			errs = append(errs, field.Required(path.Child("name"), "containers beside others need one"))
		}
		if c.Name != "" && names[c.Name] {
			errs = append(errs, field.Duplicate(path.Child("name"), c.Name))
		}
		names[c.Name] = true
		errs = append(errs, checkContainerPorts(path.Child("ports"), c.Ports, hostNetwork)...)
	}
	return errs
}

func checkContainerPorts(path *field.Path, ports []corev1.ContainerPort, hostNetwork bool) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i := range ports {
		p, path := &ports[i], path.Index(i)
		if p.Name != "" {
			errs = append(errs, messages(path.Child("name"), p.Name, validation.IsValidPortName(p.Name))...)
			if names[p.Name] {
				errs = append(errs, field.Duplicate(path.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		if p.ContainerPort == 0 {
			errs = append(errs, field.Required(path.Child("containerPort"), "a number from 1 to 65535"))
		} else {
			errs = append(errs, checkPortNumber(path.Child("containerPort"), p.ContainerPort)...)
		}
		errs = append(errs, checkHostPort(path, p, hostNetwork)...)
		errs = append(errs, checkProtocol(path.Child("protocol"), &p.Protocol)...)
	}
	return errs
}

// checkHostPort defaults to the container's port for a pod that is in its node's network.
func checkHostPort(path *field.Path, p *corev1.ContainerPort, hostNetwork bool) field.ErrorList {
	if hostNetwork && p.HostPort == 0 {
		p.HostPort = p.ContainerPort
	}
	var errs field.ErrorList
	if p.HostPort != 0 {
		errs = checkPortNumber(path.Child("hostPort"), p.HostPort)
	}
	if hostNetwork && p.HostPort != p.ContainerPort {
		errs = append(errs, field.Invalid(path.Child("hostPort"), p.HostPort, "must match `containerPort` when `hostNetwork` is true"))
	}
	if p.HostIP != "" {
		errs = append(errs, checkIP(path.Child("hostIP"), p.HostIP)...)
	}
	return errs
}
