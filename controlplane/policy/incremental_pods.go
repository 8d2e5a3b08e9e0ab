package policy

import (
	"github.com/weirnet/weir/identity"
)

func (x *Incremental) changePods(t *step, ch *Changes) {
	for name, pod := range ch.Pods {
		k := x.pods[name]
		switch {
		case k == nil && pod == nil:
			continue
		case k == nil:
			k = &known{pod: pod}
			x.pods[name] = k
			x.space(name.Namespace).pods[k] = true
			x.space(name.Namespace).count(pod, 1)
		case pod == nil:
			delete(x.pods, name)
			delete(x.space(name.Namespace).pods, k)
			x.space(name.Namespace).count(k.pod, -1)
			x.unclaim(t, k)
			x.become(t, k, nil)
			k.gone = true
			x.leave(name.Namespace)
			x.localPod(t, name)
			continue
		default:
			x.space(name.Namespace).count(k.pod, -1)
			x.space(name.Namespace).count(pod, 1)
		}
		x.unclaim(t, k)
		k.pod = pod
		t.pods[k] = true
		x.claim(t, k)
		x.localPod(t, name)
	}
}

// identify gives pods the identities that their labels are now.
func (x *Incremental) identify(t *step) {
	found := map[alike]*member{}
	for k := range t.pods {
		if k.gone {
			continue
		}
		if !x.here[k.name()] && (k.pod.HostNetwork || k.pod.Finished) {
			x.become(t, k, nil)
			continue
		}
		like := alikeOf(k.pod)
		m := found[like]
		if m == nil {
			m = x.member(k.pod)
			found[like] = m
		}
		x.become(t, k, m)
	}
	for m := range t.members {
		s := x.space(m.labels.Namespace)
		if m.pods > 0 {
			s.members[m] = true
			continue
		}
		delete(s.members, m)
		x.leave(m.labels.Namespace)
		delete(x.identities, m.number)
		x.ids.releaseIdentity(m.number)
	}
}

func (x *Incremental) member(pod *Pod) *member {
	labels := identity.Labels{
		Namespace: pod.Namespace, NamespaceLabels: x.space(pod.Namespace).labels,
		PodLabels: onlyCounted(pod.Labels, x.mentions.pods), Ports: x.namedPorts(pod),
	}
	n := x.ids.identity(labels)
	m := x.identities[n]
	if m == nil {
		m = &member{number: n, labels: labels, sets: map[*setUse]bool{}}
		x.identities[n] = m
	}
	return m
}

func onlyCounted(labels map[string]string, keys map[string]int) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if keys[k] > 0 {
			out[k] = v
		}
	}
	return out
}

func (x *Incremental) namedPorts(pod *Pod) []identity.NamedPort {
	if len(x.mentions.ports) == 0 {
		return nil
	}
	names := map[string]bool{}
	for _, p := range pod.Ports {
		if x.mentions.ports[p.Name] > 0 {
			names[p.Name] = true
		}
	}
	return namedPorts(pod, names)
}

// become gives a pod another identity.
func (x *Incremental) become(t *step, k *known, m *member) {
	if k.member == m {
		return
	}
	for _, which := range []*member{k.member, m} {
		if which != nil {
			t.members[which] = true
		}
	}
	if k.member != nil {
		k.member.pods--
	}
	if m != nil {
		m.pods++
	}
	k.member = m
	for _, a := range k.elsewhere() {
		t.peers[identity.Single(a)] = true
	}
	x.localPod(t, k.name())
}
