package policy

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// warn finds what is enforced as it is written and may not be what was meant.
func (w *compiler) warn() {
	for _, p := range w.policies {
		w.warnHostNetwork(p)
		w.warnNames(p)
	}
	for _, l := range w.locals {
		if w.podID[l.Pod] == 0 {
			w.warning(Ref{Kind: "Pod", Namespace: l.Pod.Namespace, Name: l.Pod.Name}, "",
				"has an interface here and is in no source of objects: all its traffic is dropped")
		}
	}
}

func (w *compiler) warning(ref Ref, field, format string, args ...any) {
	w.result.Warnings = append(w.result.Warnings, Problem{Ref: ref, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (w *compiler) warnHostNetwork(p *parsed) {
	n, example := 0, ""
	for _, name := range sortedNames(w.cluster.Pods) {
		pod := w.cluster.Pods[name]
		if pod.Spec.HostNetwork && !finished(pod) && pod.Namespace == p.name.Namespace && p.subject.Matches(pod.Labels) {
			if n++; n == 1 {
				example = name.String()
			}
		}
	}
	if n > 0 {
		w.warning(p.ref, "spec.podSelector", "selects %d hostNetwork pods (%s): policies do not apply to those", n, example)
	}
}

// warnNames reports port names that mean nothing: of no selected pod (ingress), of no
// pod at all (egress).
func (w *compiler) warnNames(p *parsed) {
	for d, rules := range p.rules {
		for _, r := range rules {
			for i, port := range r.ports {
				if port.name == "" || w.hasPort(port, func(pod *corev1.Pod) bool {
					return datapath.Direction(d) == datapath.Egress || p.selects(pod)
				}) {
					continue
				}
				w.warning(p.ref, fmt.Sprintf("spec.%s[%d].ports[%d].port", datapath.Direction(d), r.index, i),
					"no pod that this could mean has a container port named %q with protocol %s: it allows nothing now",
					port.name, identity.ProtocolName(port.protocol))
			}
		}
	}
}

func (w *compiler) hasPort(port parsedPort, among func(*corev1.Pod) bool) bool {
	for name, n := range w.podID {
		for _, has := range w.inUse[n].Labels.Ports {
			if has.Name == port.name && has.Protocol == port.protocol && among(w.cluster.Pods[name]) {
				return true
			}
		}
	}
	return false
}
