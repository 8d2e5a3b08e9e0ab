package source

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
)

// enforced says which of an object's versions is in force, so that it stays there.
type enforced struct {
	file     string
	hash     [sha256.Size]byte
	document int // not kept across restarts
}

// candidate is a version of an object.
type candidate struct {
	*object
	file string
}

// merged is the directory at a moment.
type merged struct {
	cluster     *policy.Cluster
	errors      []api.ObjectError
	winners     map[key]enforced
	contested   []key // keys with more than one candidate
	fingerprint [sha256.Size]byte
}

// merge the last good contents of files. Of several versions of one object, the one that
// won before wins again: the same document if it is still there, else what its file has
// now, else the same content in another file (a renamed one); else the first by file
// name and document.
func merge(files map[string]*file, winners map[key]enforced, dirError *api.ObjectError) merged {
	m := merged{cluster: newCluster(), errors: []api.ObjectError{}, winners: map[key]enforced{}}
	if dirError != nil {
		m.errors = append(m.errors, *dirError)
	}
	candidates := map[key][]candidate{}
	names := slices.Sorted(maps.Keys(files))
	for _, name := range names {
		f := files[name]
		if f.good == nil {
			continue
		}
		for i := range f.good.objects {
			o := &f.good.objects[i]
			candidates[o.key] = append(candidates[o.key], candidate{o, name})
		}
	}
	duplicates := map[string][]api.ObjectError{}
	for k, all := range candidates {
		w := choose(all, winners[k])
		m.winners[k] = enforced{w.file, w.hash, w.document}
		m.add(w)
		if len(all) > 1 {
			m.contested = append(m.contested, k)
		}
		for _, c := range all {
			if c != w {
				duplicates[c.file] = append(duplicates[c.file], duplicate(c, w))
			}
		}
	}
	for _, name := range names {
		m.errors = append(m.errors, files[name].report(name, duplicates[name])...)
	}
	addNamespaces(m.cluster)
	for i, e := range m.errors {
		m.errors[i] = printable(e)
	}
	m.fingerprintErrors()
	return m
}

func choose(all []candidate, before enforced) candidate {
	for _, same := range []func(candidate) bool{
		func(c candidate) bool { return c.file == before.file && c.hash == before.hash },
		func(c candidate) bool { return c.file == before.file },
		func(c candidate) bool { return c.hash == before.hash },
	} {
		if i := slices.IndexFunc(all, same); i >= 0 {
			return all[i]
		}
	}
	return all[0]
}

func duplicate(c, winner candidate) api.ObjectError {
	return api.ObjectError{Document: c.document, Object: c.key.String(), Field: "metadata.name", Message: fmt.Sprintf(
		"is in %q document %d already, which was enforced first and stays: remove or rename one of the two", winner.file, winner.document)}
}

// report is a file's errors in the order of its documents.
func (f *file) report(name string, duplicates []api.ObjectError) []api.ObjectError {
	stays := "nothing of this file is enforced until it is mended"
	if f.good != nil {
		stays = "the last good content of this file stays until it is mended"
	}
	var out []api.ObjectError
	for _, e := range f.errors {
		e.Message += " (" + stays + ")"
		out = append(out, e)
	}
	out = append(out, duplicates...)
	slices.SortStableFunc(out, func(a, b api.ObjectError) int {
		if a.Document != b.Document {
			return a.Document - b.Document
		}
		return strings.Compare(a.Object, b.Object)
	})
	for i := range out {
		out[i].File = name
	}
	return out
}

func newCluster() *policy.Cluster {
	return &policy.Cluster{
		Namespaces:      map[string]*corev1.Namespace{},
		Pods:            map[types.NamespacedName]*policy.Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
		Services:        map[types.NamespacedName]*corev1.Service{},
		EndpointSlices:  map[types.NamespacedName]*discoveryv1.EndpointSlice{},
	}
}

// add an object; no two have the same key, so the order does not matter to the
// fingerprint.
func (m *merged) add(c candidate) {
	for i, b := range c.hash {
		m.fingerprint[i] ^= b
	}
	switch o := c.value.(type) {
	case *corev1.Namespace:
		m.cluster.Namespaces[c.Name] = o
	case *corev1.Pod:
		m.cluster.Pods[c.NamespacedName] = policy.PodOf(o)
	case *networkingv1.NetworkPolicy:
		m.cluster.NetworkPolicies[c.NamespacedName] = o
	case *corev1.Service:
		m.cluster.Services[c.NamespacedName] = o
	case *discoveryv1.EndpointSlice:
		m.cluster.EndpointSlices[c.NamespacedName] = o
	default:
		panic(fmt.Sprintf("object of type %T", o))
	}
}

// addNamespaces that objects are in and no file declares.
func addNamespaces(c *policy.Cluster) {
	addNamespacesOf(c, c.Pods)
	addNamespacesOf(c, c.NetworkPolicies)
	addNamespacesOf(c, c.Services)
	addNamespacesOf(c, c.EndpointSlices)
}

func addNamespacesOf[V any](c *policy.Cluster, objects map[types.NamespacedName]V) {
	for k := range objects {
		if c.Namespaces[k.Namespace] == nil {
			c.Namespaces[k.Namespace] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
				Name: k.Namespace, Labels: map[string]string{corev1.LabelMetadataName: k.Namespace}}}
		}
	}
}

func (m *merged) addError(e api.ObjectError) {
	m.errors = append(m.errors, printable(e))
	m.fingerprintErrors()
}

// fingerprintErrors mixes the errors into the fingerprint.
func (m *merged) fingerprintErrors() {
	h := sha256.New()
	h.Write(m.fingerprint[:])
	for _, e := range m.errors {
		fmt.Fprintf(h, "%s\n", e)
	}
	h.Sum(m.fingerprint[:0])
}

// printable makes an error one line that no terminal acts on, whatever the file holds.
func printable(e api.ObjectError) api.ObjectError {
	for _, s := range []*string{&e.File, &e.Object, &e.Field, &e.Message} {
		if strings.ContainsFunc(*s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
			q := strconv.Quote(*s)
			*s = strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
		}
	}
	return e
}
