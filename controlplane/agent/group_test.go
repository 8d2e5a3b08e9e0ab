package agent

import (
	"fmt"
	"slices"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
)

// What is said of many fields of a policy, or of many pods, is said once; nothing else is joined.
func TestWarningsAreGrouped(t *testing.T) {
	var in []api.ObjectError
	add := func(file, object, field, message string) {
		in = append(in, api.ObjectError{File: file, Object: object, Field: field, Message: message})
	}
	for i := range 30 {
		add("", "NetworkPolicy shop/db", fmt.Sprintf("spec.ingress[%d].from[0].namespaceSelector", i), "selects nothing")
		add("", fmt.Sprintf("Pod shop/p%d", i), "", "is in no source")
	}
	add("", "NetworkPolicy shop/db", "spec.podSelector", "selects no pod")
	add("", "NetworkPolicy shop/web", "spec.podSelector", "selects no pod")
	add("", "Pod shop/p1", "status.podIPs", "10.0.0.1 is in use")
	add("", "Pod shop/p1", "status.podIPs", "10.0.0.1 is in use")
	add("", "Pod shop/p2", "status.podIPs", "10.0.0.2 is in use")
	add("a.yaml", "Pod shop/p3", "", "is in no source")
	add("", "Pod shop/p4", "", "is alone")
	add("", "NetworkPolicy shop/two", "spec.a", "selects nothing")
	add("", "NetworkPolicy shop/two", "spec.b", "selects nothing")
	want := []string{
		"NetworkPolicy shop/db: spec.ingress[0].from[0].namespaceSelector, spec.ingress[1].from[0].namespaceSelector, spec.ingress[2].from[0].namespaceSelector and 27 more: selects nothing",
		"each of 30 pods (shop/p0, shop/p1, shop/p2 and 27 more): is in no source",
		"NetworkPolicy shop/db: spec.podSelector: selects no pod",
		"NetworkPolicy shop/web: spec.podSelector: selects no pod",
		"Pod shop/p1: status.podIPs: 10.0.0.1 is in use",
		"Pod shop/p2: status.podIPs: 10.0.0.2 is in use",
		"a.yaml: Pod shop/p3: is in no source",
		"Pod shop/p4: is alone",
		"NetworkPolicy shop/two: spec.a, spec.b: selects nothing",
	}
	got := grouped(in)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}
