package node

import (
	"fmt"
	"strings"
)

// pod is a Pod's manifest; its labels are "k: v" lists.
func pod(namespace, name string, labels ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  namespace: %s
  name: %s
  labels: {%s}
spec:
  containers:
    - name: c
      image: c
      ports:
        - {name: http, containerPort: %d}
        - {name: dns, containerPort: %d, protocol: UDP}
---
`, namespace, name, strings.Join(labels, ", "), portHTTP, portOther)
}

// policy is a NetworkPolicy's manifest: spec is its spec, indented by two.
func policy(namespace, name, spec string) string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  namespace: %s
  name: %s
spec:
%s---
`, namespace, name, spec)
}

func namespace(name string, labels ...string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n  labels: {%s}\n---\n", name, strings.Join(labels, ", "))
}

// Specs that several tests use.
const (
	denyAll = "  podSelector: {}\n  policyTypes: [Ingress, Egress]\n"

	denyIngress = "  podSelector: {}\n  policyTypes: [Ingress]\n"

	// fromA lets pods with app=a of the same namespace in, on the port named http.
	fromA = `  podSelector: {matchLabels: {app: b}}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: a}}
      ports:
        - {port: http}
`
	// allowAtoB lets a to b on every port, in both directions of judgement.
	egressAtoB = `  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress:
    - to:
        - podSelector: {matchLabels: {app: b}}
`
)

// abc are three pods that most tests need.
var abc = pod("ns", "a", "app: a") + pod("ns", "b", "app: b") + pod("ns", "c", "app: c")
