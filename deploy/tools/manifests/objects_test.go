package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// kinds are all that Weir makes in a cluster.
var kinds = map[string]func() any{
	"ServiceAccount":     func() any { return &corev1.ServiceAccount{} },
	"ConfigMap":          func() any { return &corev1.ConfigMap{} },
	"ClusterRole":        func() any { return &rbacv1.ClusterRole{} },
	"ClusterRoleBinding": func() any { return &rbacv1.ClusterRoleBinding{} },
	"Role":               func() any { return &rbacv1.Role{} },
	"RoleBinding":        func() any { return &rbacv1.RoleBinding{} },
	"DaemonSet":          func() any { return &appsv1.DaemonSet{} },

	"ValidatingAdmissionPolicy":        func() any { return &admissionv1.ValidatingAdmissionPolicy{} },
	"ValidatingAdmissionPolicyBinding": func() any { return &admissionv1.ValidatingAdmissionPolicyBinding{} },
}

// Every object has only fields that the API knows, and every mount a volume.
func TestObjectsAreKubernetes(t *testing.T) {
	for _, values := range []map[string]any{nil, everything, {"uninstall": true}} {
		files, err := render(filepath.Join(deploy, "chart"), values)
		must(t, err)
		seen := 0
		for name, text := range files {
			for _, doc := range strings.Split(text, "\n---\n") {
				var head struct{ Kind string }
				must(t, yaml.Unmarshal([]byte(doc), &head))
				if head.Kind == "" {
					continue
				}
				seen++
				if head.Kind == "PodMonitor" { // the Prometheus operator's: Kubernetes does not know it
					continue
				}
				make, ok := kinds[head.Kind]
				if !ok {
					t.Errorf("%s: a %s", name, head.Kind)
					continue
				}
				object := make()
				if err := yaml.UnmarshalStrict([]byte(doc), object); err != nil {
					t.Errorf("%v: %s: %v", values, name, err)
				}
				if set, ok := object.(*appsv1.DaemonSet); ok {
					mounts(t, set.Spec.Template.Spec)
				}
			}
		}
		if seen < 4 {
			t.Errorf("%v: %d objects", values, seen)
		}
	}
}

func mounts(t *testing.T, spec corev1.PodSpec) {
	t.Helper()
	used := map[string]bool{}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		privileged := c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
			if !slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				t.Errorf("container %s mounts %s, which is no volume", c.Name, m.Name)
			}
			if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional && !privileged {
				t.Errorf("container %s: the API refuses Bidirectional unless privileged", c.Name)
			}
		}
	}
	for _, v := range spec.Volumes {
		if !used[v.Name] {
			t.Errorf("nobody mounts %s", v.Name)
		}
	}
}
