package kube

import (
	"encoding/binary"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// interner hands out one value for all that are equal. Pods of one Deployment differ in their
// names and addresses, and what they have in common is held once. What it hands out is never
// changed by anybody.
type interner struct {
	strings    map[string]string
	labels     map[string]map[string]string
	containers map[string][]corev1.Container
	owners     map[string][]metav1.OwnerReference

	used  int // since it was emptied, at most: what is not in use any more is dropped so
	text  []byte
	names []string
}

func newInterner() *interner {
	i := &interner{}
	i.clear()
	return i
}

func (i *interner) clear() {
	i.strings, i.labels, i.used = map[string]string{}, map[string]map[string]string{}, 0
	i.containers, i.owners = map[string][]corev1.Container{}, map[string][]metav1.OwnerReference{}
}

// spare is how many values more than there are objects are remembered at the least.
const spare = 1024

// limit forgets all values, which stay with their objects, when there are more of them than there
// could be in use.
func (i *interner) limit(objects int) {
	if i.used > 4*objects+spare {
		i.clear()
	}
}

// pod has its parts replaced by those of others like it.
func (i *interner) pod(p *corev1.Pod) {
	p.Namespace, p.Spec.NodeName = i.string(p.Namespace), i.string(p.Spec.NodeName)
	p.Labels, p.OwnerReferences = i.labelsOf(p.Labels), i.ownersOf(p.OwnerReferences)
	p.Spec.Containers, p.Spec.InitContainers = i.containersOf(p.Spec.Containers), i.containersOf(p.Spec.InitContainers)
	if len(p.Status.PodIPs) > 0 && p.Status.PodIPs[0].IP == p.Status.PodIP {
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
}

func (i *interner) string(s string) string {
	if had, ok := i.strings[s]; ok {
		return had
	}
	i.strings[s] = s
	i.used++
	return s
}

func (i *interner) labelsOf(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	i.names = slices.AppendSeq(i.names[:0], maps.Keys(m))
	slices.Sort(i.names)
	i.text = i.text[:0]
	for _, key := range i.names {
		i.write(key)
		i.write(m[key])
	}
	if had, ok := i.labels[string(i.text)]; ok {
		return had
	}
	own := make(map[string]string, len(m))
	for key, value := range m {
		own[i.string(key)] = i.string(value)
	}
	i.labels[string(i.text)] = own
	i.used++
	return own
}

// containersOf are stripped ones: all that is left of them is in the key.
func (i *interner) containersOf(all []corev1.Container) []corev1.Container {
	if len(all) == 0 {
		return nil
	}
	i.text = i.text[:0]
	for _, c := range all {
		i.write(c.Name)
		i.number(len(c.Ports))
		if c.RestartPolicy == nil {
			i.number(0)
		} else {
			i.number(1)
			i.write(string(*c.RestartPolicy))
		}
		for _, p := range c.Ports {
			i.write(p.Name)
			i.write(string(p.Protocol))
			i.write(p.HostIP)
			i.number(int(p.ContainerPort))
			i.number(int(p.HostPort))
		}
	}
	if had, ok := i.containers[string(i.text)]; ok {
		return had
	}
	i.containers[string(i.text)] = all
	i.used++
	return all
}

// ownersOf are stripped ones, too.
func (i *interner) ownersOf(all []metav1.OwnerReference) []metav1.OwnerReference {
	if len(all) == 0 {
		return nil
	}
	i.text = i.text[:0]
	for _, o := range all {
		i.write(o.Kind)
		i.write(o.Name)
		i.number(flag(o.Controller))
	}
	if had, ok := i.owners[string(i.text)]; ok {
		return had
	}
	i.owners[string(i.text)] = all
	i.used++
	return all
}

// flag that may not be there.
func flag(b *bool) int {
	switch {
	case b == nil:
		return 0
	case *b:
		return 1
	}
	return 2
}

// write a text and its length, so that texts side by side are no other ones.
func (i *interner) write(s string) {
	i.number(len(s))
	i.text = append(i.text, s...)
}

func (i *interner) number(n int) { i.text = binary.AppendVarint(i.text, int64(n)) }
