package policy

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/identity"
)

// mentions counts the policies' selectors and ports that can tell pods apart by a key.
type mentions struct {
	pods, namespaces, ports map[string]int
}

// add counts a policy by times, and notes whose count began or ended.
func (m *mentions) add(p *parsed, by int, moved *mentioned) {
	count := func(counts map[string]int, moved map[string]bool, key string) {
		was := counts[key]
		if counts[key] = was + by; counts[key] == 0 {
			delete(counts, key)
		}
		if (was == 0) != (was+by == 0) {
			if moved[key] = !moved[key]; !moved[key] {
				delete(moved, key) // ended and began
			}
		}
	}
	selector := func(counts map[string]int, moved map[string]bool, s identity.Selector) {
		for _, r := range s.Requirements() {
			count(counts, moved, r.Key)
		}
	}
	selector(m.pods, moved.pods, p.subject)
	for _, rules := range p.rules {
		for _, r := range rules {
			for _, peer := range r.peers {
				selector(m.pods, moved.pods, peer.Pods)
				selector(m.namespaces, moved.namespaces, peer.Namespaces)
			}
			for _, port := range r.ports {
				if port.name != "" {
					count(m.ports, moved.ports, port.name)
				}
			}
		}
	}
}

func (x *Incremental) space(name string) *space {
	s := x.spaces[name]
	if s == nil {
		s = &space{pods: map[*known]bool{}, keys: map[string]int{}, ports: map[string]int{}, policies: map[types.NamespacedName]*parsed{}, members: map[*member]bool{}}
		s.labels = x.namespaceLabels(name)
		x.spaces[name] = s
	}
	return s
}

func (x *Incremental) namespaceLabels(name string) map[string]string {
	out := map[string]string{}
	for k := range x.mentions.namespaces {
		if k == NamespaceLabel {
			out[k] = name
		} else if ns := x.cluster.Namespaces[name]; ns != nil {
			if v, there := ns.Labels[k]; there {
				out[k] = v
			}
		}
	}
	return out
}

// leave drops a space that nothing is in.
func (x *Incremental) leave(name string) {
	if s := x.spaces[name]; s != nil && len(s.pods) == 0 && len(s.policies) == 0 && len(s.members) == 0 {
		delete(x.spaces, name)
	}
}

func (x *Incremental) changePolicies(t *step, was Changes, ch *Changes) {
	moved := mentioned{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	for name, np := range ch.NetworkPolicies {
		s := x.space(name.Namespace)
		if old := x.policies[name]; old != nil {
			x.mentions.add(old, -1, &moved)
			x.selected(t, old, false)
			delete(s.policies, name)
			delete(x.policies, name)
		}
		if np == nil {
			x.leave(name.Namespace)
			continue
		}
		p := x.parsed(name)
		x.mentions.add(p, 1, &moved)
		s.policies[name], x.policies[name] = p, p
		x.selected(t, p, true)
	}
	x.mentioned(t, &moved)
}

// parsed is what is enforced of a policy.
func (x *Incremental) parsed(name types.NamespacedName) *parsed {
	np := x.cluster.NetworkPolicies[name]
	if x.cluster.Refused[name] {
		return parseSubject(np)
	}
	p, _ := parsePolicy(np)
	return p
}

// mentioned has those pods identified that keys tell apart which did not before, or did.
func (x *Incremental) mentioned(t *step, moved *mentioned) {
	if len(moved.namespaces) > 0 {
		for name := range x.spaces {
			x.relabel(t, name)
		}
	}
	if len(moved.pods) == 0 && len(moved.ports) == 0 {
		return
	}
	for _, s := range x.spaces {
		if !has(s.keys, moved.pods) && !has(s.ports, moved.ports) {
			continue
		}
		for k := range s.pods {
			if tellsApart(k.pod, moved) {
				t.pods[k] = true
			}
		}
	}
}

func has(counts map[string]int, any map[string]bool) bool {
	for key := range any {
		if counts[key] > 0 {
			return true
		}
	}
	return false
}

// count a pod by what policies may come to tell it apart by.
func (s *space) count(pod *Pod, by int) {
	add := func(counts map[string]int, key string) {
		if counts[key] += by; counts[key] == 0 {
			delete(counts, key)
		}
	}
	for key := range pod.Labels {
		add(s.keys, key)
	}
	for _, p := range pod.Ports {
		add(s.ports, p.Name)
	}
}

func tellsApart(pod *Pod, keys *mentioned) bool {
	for key := range keys.pods {
		if _, has := pod.Labels[key]; has {
			return true
		}
	}
	return len(keys.ports) > 0 && slices.ContainsFunc(pod.Ports, func(p corev1.ContainerPort) bool { return keys.ports[p.Name] })
}

// relabel looks at a namespace's labels again.
func (x *Incremental) relabel(t *step, name string) {
	s := x.spaces[name]
	if s == nil {
		return
	}
	labels := x.namespaceLabels(name)
	if maps.Equal(labels, s.labels) {
		return
	}
	s.labels = labels
	for k := range s.pods {
		t.pods[k] = true
	}
}

func (x *Incremental) changeNamespaces(t *step, ch *Changes) {
	for name := range ch.Namespaces {
		x.relabel(t, name)
	}
}
