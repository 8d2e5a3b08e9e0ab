package cni

import (
	"regexp"

	"github.com/containernetworking/cni/pkg/types"
)

// podArgs is CNI_ARGS; the names are the runtime's. Arguments that are not here are errors unless IgnoreUnknown=1.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

// pod names the pod an interface is for; UID may be empty.
type pod struct{ Namespace, Name, UID string }

func (p pod) String() string { return p.Namespace + "/" + p.Name }

// maxName is how long a name may be that Kubernetes gives.
const maxName = 253

var (
	dns1123Label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dns1123Subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	uid              = regexp.MustCompile(`^[A-Za-z0-9._-]{0,128}$`)
)

// parsePod reads the pod from CNI_ARGS; errors have code 4 and name the argument.
func parsePod(args string) (pod, error) {
	var a podArgs
	if err := types.LoadArgs(args, &a); err != nil {
		return pod{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %v", err)
	}
	p := pod{string(a.K8S_POD_NAMESPACE), string(a.K8S_POD_NAME), string(a.K8S_POD_UID)}
	for _, v := range []struct {
		name, value string
		valid       *regexp.Regexp
	}{
		{"K8S_POD_NAMESPACE", p.Namespace, dns1123Label},
		{"K8S_POD_NAME", p.Name, dns1123Subdomain},
		{"K8S_POD_UID", p.UID, uid},
	} {
		if v.value == "" && v.valid != uid {
			return pod{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %s is missing: the pod is known by K8S_POD_NAMESPACE and K8S_POD_NAME", v.name)
		}
		if len(v.value) > maxName || !v.valid.MatchString(v.value) {
			return pod{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %s %q is not valid", v.name, v.value)
		}
	}
	return p, nil
}
