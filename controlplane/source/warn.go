package source

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
)

// Warnings are policies of c, at their places in u, that are valid and name nothing: they select no pod, or a
// peer's namespaceSelector selects no namespace that has pods. They are sorted by policy. It looks
// at every policy and pod: for questions of people, not for the way of a change.
func (u Update) Warnings(c *policy.Cluster) []api.ObjectError {
	w := warner{update: u, cluster: c, pods: map[string][]*policy.Pod{}}
	for _, p := range c.Pods {
		w.pods[p.Namespace] = append(w.pods[p.Namespace], p)
	}
	for _, p := range c.NetworkPolicies {
		w.policy(p)
	}
	slices.SortStableFunc(w.out, func(x, y api.ObjectError) int { return strings.Compare(x.Object, y.Object) })
	return w.out
}

type warner struct {
	update  Update
	cluster *policy.Cluster
	pods    map[string][]*policy.Pod // by namespace
	out     []api.ObjectError
}

func (w *warner) warn(p *networkingv1.NetworkPolicy, field, message string) {
	file, document, _ := w.update.Place("NetworkPolicy", types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
	w.out = append(w.out, api.ObjectError{File: file, Document: document, Object: "NetworkPolicy " + p.Namespace + "/" + p.Name, Field: field, Message: message})
}

func (w *warner) policy(p *networkingv1.NetworkPolicy) {
	if s := selector(&p.Spec.PodSelector); !slices.ContainsFunc(w.pods[p.Namespace], func(pod *policy.Pod) bool { return s.Matches(labels.Set(pod.Labels)) }) {
		w.warn(p, "spec.podSelector", fmt.Sprintf("selects no pod of namespace %q: the policy does nothing now", p.Namespace))
	}
	for i, r := range p.Spec.Ingress {
		w.peers(p, fmt.Sprintf("spec.ingress[%d].from", i), r.From)
	}
	for i, r := range p.Spec.Egress {
		w.peers(p, fmt.Sprintf("spec.egress[%d].to", i), r.To)
	}
}

func (w *warner) peers(p *networkingv1.NetworkPolicy, field string, peers []networkingv1.NetworkPolicyPeer) {
	for i, peer := range peers {
		if peer.NamespaceSelector == nil {
			continue
		}
		s := selector(peer.NamespaceSelector)
		found := false
		for name := range w.pods {
			ns := w.cluster.Namespaces[name] // nil: only what is left of its pods here keeps it alive
			found = found || ns != nil && s.Matches(labels.Set(ns.Labels))
		}
		if !found {
			w.warn(p, fmt.Sprintf("%s[%d].namespaceSelector", field, i), "selects no namespace that has pods: the peer allows nothing now")
		}
	}
}

// selector of a valid object.
func selector(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}
