package cluster

import (
	"bufio"
	"os"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// A real API server takes what `kubectl apply` would send it, and takes the uninstalling
// DaemonSet in place of the agent's.
func TestManifestsAreAccepted(t *testing.T) {
	s := newScene(t)
	install, config := workload(t, "weir.yaml")
	remove, _ := workload(t, "uninstall.yaml")
	sets := s.Admin.AppsV1().DaemonSets(install.Namespace)
	strict := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	_, err := s.Admin.CoreV1().ConfigMaps(config.Namespace).Create(t.Context(), config, strict)
	s.must(err)
	made, err := sets.Create(t.Context(), install, strict)
	s.must(err)
	if got := made.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add; len(got) != 3 {
		t.Errorf("capabilities %v", got)
	}
	remove.ResourceVersion = made.ResourceVersion
	if _, err = sets.Update(t.Context(), remove, metav1.UpdateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
		t.Errorf("in its place: %v", err)
	}
}

// workload is a manifest's DaemonSet and ConfigMap; TestRights has the rest.
func workload(t *testing.T, name string) (set *appsv1.DaemonSet, config *corev1.ConfigMap) {
	t.Helper()
	f, err := os.Open("../../deploy/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	set, config = &appsv1.DaemonSet{}, &corev1.ConfigMap{}
	for r := yaml.NewYAMLReader(bufio.NewReader(f)); ; {
		doc, err := r.Read()
		if err != nil {
			break
		}
		var head metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &head); err != nil {
			t.Fatal(err)
		}
		var into any
		switch head.Kind {
		case "DaemonSet":
			into = set
		case "ConfigMap":
			into = config
		default:
			continue
		}
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if set.Name == "" {
		t.Fatalf("%s has no DaemonSet", name)
	}
	return set, config
}
