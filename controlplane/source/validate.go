package source

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The check functions give an object the defaults that an API server would and return
// what it would reject, by field. What is no business of policy (images, volumes,
// probes, quotas, ...) is decoded strictly and not looked at further.

var spec, status = field.NewPath("spec"), field.NewPath("status")

func checkMeta(o metav1.Object, namespaced bool, nameRule apivalidation.ValidateNameFunc) field.ErrorList {
	path := field.NewPath("metadata")
	meta := o.(metav1.ObjectMetaAccessor).GetObjectMeta().(*metav1.ObjectMeta)
	if meta.Name == "" {
		meta = meta.DeepCopy()
		meta.GenerateName = "" // only an API server can make a name of it
	}
	var errs field.ErrorList
	for _, e := range apivalidation.ValidateObjectMeta(meta, namespaced, nameRule, path) {
		if e.Type == field.ErrorTypeRequired && e.Field == "metadata.name" {
			e.Detail = "give the object a name"
		}
		errs = append(errs, e)
	}
	return append(errs, messages(path.Child("uid"), string(meta.UID), validation.IsValidLabelValue(string(meta.UID)))...)
}

func checkNamespace(n *corev1.Namespace) field.ErrorList {
	errs := checkMeta(n, false, apivalidation.ValidateNamespaceName)
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
	return append(errs, oneOf(status.Child("phase"), n.Status.Phase, "", corev1.NamespaceActive, corev1.NamespaceTerminating)...)
}

func checkSelector(path *field.Path, s *metav1.LabelSelector) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, path)
}

// messages of a rule about value, as errors of the field.
func messages(path *field.Path, value any, rule []string) field.ErrorList {
	var errs field.ErrorList
	for _, m := range rule {
		errs = append(errs, field.Invalid(path, value, m))
	}
	return errs
}

func oneOf[T ~string](path *field.Path, value T, allowed ...T) field.ErrorList {
	if slices.Contains(allowed, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, slices.DeleteFunc(allowed, func(a T) bool { return a == "" }))}
}

// checkProtocol defaults to TCP.
func checkProtocol(path *field.Path, p *corev1.Protocol) field.ErrorList {
	if *p == "" {
		*p = corev1.ProtocolTCP
	}
	return oneOfProtocols(path, *p)
}

// checkOptionalProtocol defaults to TCP where the field is not there; an empty one is wrong.
func checkOptionalProtocol(path *field.Path, p **corev1.Protocol) field.ErrorList {
	if *p == nil {
		*p = new(corev1.ProtocolTCP)
	}
	return oneOfProtocols(path, **p)
}

func oneOfProtocols(path *field.Path, p corev1.Protocol) field.ErrorList {
	return oneOf(path, p, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
}

func checkPortNumber[T ~int32](path *field.Path, port T) field.ErrorList {
	return messages(path, port, validation.IsValidPortNum(int(port)))
}

func checkPort(path *field.Path, port intstr.IntOrString) field.ErrorList {
	if port.Type == intstr.Int {
		return checkPortNumber(path, port.IntVal)
	}
	return messages(path, port.StrVal, validation.IsValidPortName(port.StrVal))
}

// checkIP takes no leading zeros and no IPv4-mapped addresses: different software
// reads those differently.
func checkIP(path *field.Path, ip string) field.ErrorList {
	return validation.IsValidIPForLegacyField(path, ip, true, nil)
}

// checkIPs takes one address, or one of each family; the first must be single where
// both are given.
func checkIPs(one *field.Path, single string, list *field.Path, ips []string) field.ErrorList {
	var errs field.ErrorList
	families := map[bool]bool{}
	for i, ip := range ips {
		bad := checkIP(list.Index(i), ip)
		if errs = append(errs, bad...); bad == nil {
			v4 := netip.MustParseAddr(ip).Is4()
			if families[v4] {
				errs = append(errs, field.Invalid(list.Index(i), ip, "must not be a second address of one family"))
			}
			families[v4] = true
		}
	}
	if single != "" && len(ips) > 0 && ips[0] != single {
		errs = append(errs, field.Invalid(one, single, "must be the first of "+list.String()))
	}
	return errs
}
