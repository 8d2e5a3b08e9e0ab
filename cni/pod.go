package cni

import (
	"strings"

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

// Written out: to compile such expressions takes a quarter of the plugin's start.

// isLabel is DNS-1123's label.
func isLabel(s string) bool {
	return len(s) <= 63 && s != "" && s[0] != '-' && s[len(s)-1] != '-' && consistsOf(s, lower+digits+"-")
}

// isSubdomain is DNS-1123's subdomain, of labels of any length.
func isSubdomain(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' {
			return false
		}
	}
	return len(s) <= maxName && consistsOf(s, lower+digits+"-.")
}

func isUID(s string) bool { return len(s) <= 128 && consistsOf(s, lower+upper+digits+"._-") }

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
)

func consistsOf(s, chars string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(chars, r) })
}

// parsePod reads the pod from CNI_ARGS; errors have code 4 and name the argument.
func parsePod(args string) (pod, error) {
	var a podArgs
	if err := types.LoadArgs(args, &a); err != nil {
		return pod{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %v", err)
	}
	p := pod{string(a.K8S_POD_NAMESPACE), string(a.K8S_POD_NAME), string(a.K8S_POD_UID)}
	for _, v := range []struct {
		name, value string
		valid       func(string) bool
	}{
		{"K8S_POD_NAMESPACE", p.Namespace, isLabel},
		{"K8S_POD_NAME", p.Name, isSubdomain},
		{"K8S_POD_UID", p.UID, isUID},
	} {
		if v.value == "" && v.name != "K8S_POD_UID" {
			return pod{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %s is missing: the pod is known by K8S_POD_NAMESPACE and K8S_POD_NAME", v.name)
		}
		if !v.valid(v.value) {
			return pod{}, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %s %q is not valid", v.name, v.value)
		}
	}
	return p, nil
}
