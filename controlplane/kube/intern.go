package kube

import (
	"encoding/binary"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weirnet/weir/controlplane/policy"
)

// interner hands out one value for all that are equal. Pods of one Deployment differ in their
// names and addresses, and what they have in common is held once. What it hands out is never
// changed by anybody.
type interner struct {
	strings map[string]string
	labels  map[string]map[string]string
	ports   map[string][]corev1.ContainerPort
	owners  map[policy.Owner]*policy.Owner

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
	i.ports, i.owners = map[string][]corev1.ContainerPort{}, map[policy.Owner]*policy.Owner{}
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
func (i *interner) pod(p *policy.Pod) {
	p.Namespace, p.NodeName = i.string(p.Namespace), i.string(p.NodeName)
	p.Labels, p.Owner, p.Ports = i.labelsOf(p.Labels), i.ownerOf(p.Owner), i.portsOf(p.Ports)
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

func (i *interner) portsOf(all []corev1.ContainerPort) []corev1.ContainerPort {
	if len(all) == 0 {
		return nil
	}
	i.text = i.text[:0]
	for _, p := range all {
		i.write(p.Name)
		i.write(string(p.Protocol))
		i.write(p.HostIP)
		i.number(int(p.ContainerPort))
		i.number(int(p.HostPort))
	}
	if had, ok := i.ports[string(i.text)]; ok {
		return had
	}
	own := slices.Clip(all)
	for n := range own {
		own[n].Name, own[n].Protocol, own[n].HostIP = i.string(own[n].Name), corev1.Protocol(i.string(string(own[n].Protocol))), i.string(own[n].HostIP)
	}
	i.ports[string(i.text)] = own
	i.used++
	return own
}

func (i *interner) ownerOf(o *policy.Owner) *policy.Owner {
	if o == nil {
		return nil
	}
	if had, ok := i.owners[*o]; ok {
		return had
	}
	i.owners[*o] = o
	i.used++
	return o
}

// write a text and its length, so that texts side by side are no other ones.
func (i *interner) write(s string) {
	i.number(len(s))
	i.text = append(i.text, s...)
}

func (i *interner) number(n int) { i.text = binary.AppendVarint(i.text, int64(n)) }
