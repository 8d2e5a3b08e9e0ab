package policy

import (
	"fmt"
	"slices"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// warn finds what is enforced as it is written and may not be what was meant.
func (w *compiler) warn() {
	onHost, named := w.hostPods(), w.portNames()
	for _, p := range w.policies {
		w.warnHostNetwork(p, onHost[p.name.Namespace])
		w.warnNames(p, named)
	}
	for _, l := range w.locals {
		if w.podID[l.Pod] == 0 {
			w.warning(podRef(l.Pod), "",
				"has an interface here and is in no source of objects: all its traffic is dropped")
		}
	}
}

// hostPods are the pods that use their node's network, by namespace.
func (w *compiler) hostPods() map[string][]*Pod {
	out := map[string][]*Pod{}
	for _, name := range w.pods {
		if pod := w.cluster.Pods[name]; pod.HostNetwork && !pod.Finished {
			out[name.Namespace] = append(out[name.Namespace], pod)
		}
	}
	return out
}

// portNames are the pods that have a port by a name.
func (w *compiler) portNames() map[portName][]*Pod {
	out := map[portName][]*Pod{}
	for _, name := range w.pods {
		view := w.inUse[w.podID[name]]
		if view == nil {
			continue
		}
		for _, p := range view.Labels.Ports {
			key := portName{p.Name, p.Protocol}
			out[key] = append(out[key], w.cluster.Pods[name])
		}
	}
	return out
}

func (w *compiler) warning(ref Ref, field, format string, args ...any) {
	w.result.Warnings = append(w.result.Warnings, Problem{Ref: ref, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (w *compiler) warnHostNetwork(p *parsed, pods []*Pod) {
	var selected []string
	for _, pod := range pods {
		if p.subject.Matches(pod.Labels) {
			selected = append(selected, pod.Namespace+"/"+pod.Name)
		}
	}
	if n := len(selected); n > 0 {
		w.warning(p.ref, "spec.podSelector", "selects %d hostNetwork pods (%s): policies do not apply to those", n, selected[0])
	}
}

// warnNames reports port names that mean nothing: of no selected pod (ingress), of no
// pod at all (egress).
func (w *compiler) warnNames(p *parsed, named map[portName][]*Pod) {
	for d, rules := range p.rules {
		for _, r := range rules {
			for i, port := range r.ports {
				pods := named[portName{port.name, port.protocol}]
				if port.name == "" || len(pods) > 0 && datapath.Direction(d) == datapath.Egress || slices.ContainsFunc(pods, p.selects) {
					continue
				}
				w.warning(p.ref, fmt.Sprintf("spec.%s[%d].ports[%d].port", datapath.Direction(d), r.index, i),
					"no pod that this could mean has a container port named %q with protocol %s: it allows nothing now",
					port.name, identity.ProtocolName(port.protocol))
			}
		}
	}
}
