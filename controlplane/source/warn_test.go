package source

import (
	"slices"
	"testing"
)

func TestWarnings(t *testing.T) {
	objects, errs := parse("f.yaml", []byte(`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
---
apiVersion: v1
kind: Namespace
metadata: {name: empty, labels: {team: a}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: fine}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: idle}
spec:
  podSelector: {matchLabels: {app: wbe}}
  ingress: [{}]
  egress: [{to: [{podSelector: {}}, {namespaceSelector: {matchLabels: {team: a}}}]}]
`))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	m := merge(map[string]*file{"f.yaml": {good: &content{objects: objects}}}, nil, nil)
	var got []string
	for _, w := range (Update{}).Warnings(m.cluster) {
		got = append(got, w.String())
	}
	want := []string{
		`NetworkPolicy default/idle: spec.podSelector: selects no pod of namespace "default": the policy does nothing now`,
		`NetworkPolicy default/idle: spec.egress[0].to[1].namespaceSelector: selects no namespace that has pods: the peer allows nothing now`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
