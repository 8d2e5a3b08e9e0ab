package cluster

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weirnet/weir/controlplane/kube"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

var patch = metav1.PatchOptions{}

// rights are the objects of deploy/rbac.yaml, but for those that announceRights makes.
type rights struct {
	account corev1.ServiceAccount
	role    rbacv1.ClusterRole
	binding rbacv1.ClusterRoleBinding
}

func (s *scene) rights() *rights {
	s.Helper()
	text, err := os.ReadFile("../../deploy/rbac.yaml")
	s.must(err)
	r := &rights{}
	for _, document := range strings.Split(string(text), "\n---\n") {
		var head metav1.TypeMeta
		s.must(yaml.Unmarshal([]byte(document), &head))
		var into any
		switch head.Kind {
		case "ServiceAccount":
			into = &r.account
		case "ClusterRole":
			into = &r.role
		case "ClusterRoleBinding":
			into = &r.binding
		case "", "Role", "RoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding":
			continue // comments; leases
		default:
			s.Fatalf("deploy/rbac.yaml has a %s", head.Kind)
		}
		s.must(yaml.Unmarshal([]byte(document), into))
	}
	return r
}

// grant makes the account and what it may do, and returns a kubeconfig with its token.
func (s *scene) grant(r *rights) string {
	s.Helper()
	_, err := s.Admin.CoreV1().ServiceAccounts(r.account.Namespace).Create(s.Context(), &r.account, create)
	s.must(err)
	_, err = s.Admin.RbacV1().ClusterRoles().Create(s.Context(), &r.role, create)
	s.must(err)
	_, err = s.Admin.RbacV1().ClusterRoleBindings().Create(s.Context(), &r.binding, create)
	s.must(err)
	return s.Kubeconfig(s.proxy.Addr(), s.Token(r.account.Namespace, r.account.Name))
}

func (s *scene) setRole(role *rbacv1.ClusterRole) {
	s.Helper()
	role.ResourceVersion = ""
	_, err := s.Admin.RbacV1().ClusterRoles().Update(s.Context(), role, metav1.UpdateOptions{})
	s.must(err)
}

// without is a role that lacks a resource.
func without(role rbacv1.ClusterRole, resource string) *rbacv1.ClusterRole {
	out := role.DeepCopy()
	for i := range out.Rules {
		out.Rules[i].Resources = slices.DeleteFunc(out.Rules[i].Resources, func(r string) bool { return r == resource })
	}
	out.Rules = slices.DeleteFunc(out.Rules, func(r rbacv1.PolicyRule) bool { return len(r.Resources) == 0 })
	return out
}

// TestRights: with deploy/rbac.yaml it works, with less it says what is missing, and takes
// nothing for an answer that is none. Whatever it says, no token is in it.
func TestRights(t *testing.T) {
	s := newScene(t)
	s.makeNode(nodeName, "10.244.1.0/24")
	s.makeNamespace("shop")
	s.makePod("p", "a")
	full := s.rights()
	kubeconfig := s.grant(&rights{full.account, *without(full.role, "networkpolicies"), full.binding})
	s.watch(kubeconfig)
	denied := func() bool {
		return slices.ContainsFunc(s.source.Warnings(), func(w string) bool {
			return strings.Contains(w, "does not let this agent ") && strings.Contains(w, `"networkpolicies" in API group "networking.k8s.io"`) && strings.Contains(w, "apply deploy/rbac.yaml")
		})
	}
	s.until("a word about policies", denied)
	s.until("it waits", func() bool { return strings.Contains(s.log.String(), "waits for the API server") })
	if s.count() != 0 {
		t.Fatalf("%d updates without policies", s.count())
	}
	if n := strings.Count(s.log.String(), `level=WARN msg="API server https://`+s.proxy.Addr()+" does not let this agent"); n > 2 {
		t.Errorf("%d lines about one missing right", n)
	}
	s.setRole(&full.role)
	s.eventually("a first update", func(u source.Update) bool { return app(u, "p") == "a" })
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 })
	s.sync()

	// A right that is taken away later is missed with the next watch.
	s.setRole(without(full.role, "pods"))
	revision := s.last().Revision
	s.until("a word about pods", func() bool {
		s.proxy.Break()
		return strings.Contains(strings.Join(s.source.Warnings(), "\n"), `resource "pods" in API group ""`)
	})
	if u := s.last(); u.Revision != revision || app(u, "p") != "a" {
		t.Errorf("revision %d after %d, pod %q", u.Revision, revision, app(u, "p"))
	}
	if _, err := s.source.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), `cannot list resource "pods"`) {
		t.Errorf("sync: %v", err)
	}
	s.setRole(&full.role)
	s.label("p", "b")
	s.eventually("pods again", func(u source.Update) bool { return app(u, "p") == "b" })

	// A token that is none.
	s.stop()
	s.must(<-s.ended)
	s.watch(s.Kubeconfig(s.proxy.Addr(), "nonsense"))
	s.until("a word about credentials", func() bool {
		return strings.Contains(strings.Join(s.source.Warnings(), "\n"), "does not accept this agent's credentials")
	})

	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	s.must(err)
	said := s.log.String() + strings.Join(s.source.Warnings(), "\n")
	for _, token := range []string{config.BearerToken, "nonsense"} {
		if token == "" || strings.Contains(said, token) {
			t.Errorf("the token %q is missing, or it is said in\n%s", token, said)
		}
	}
}

// TestRightsAreExact: what deploy/weir.yaml lets the agent do is this and nothing else: what a
// stolen token can do. That all of it is needed TestRights, TestLeaseRights and TestEvents show.
func TestRightsAreExact(t *testing.T) {
	s := newScene(t)
	r := s.rights()
	kubeconfig := s.grant(r)
	s.announceRights()
	nobody := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: r.account.Namespace, Name: "nobody"}}
	_, err := s.Admin.CoreV1().ServiceAccounts(nobody.Namespace).Create(t.Context(), nobody, create)
	s.must(err)
	everywhere := []string{
		"list namespaces", "watch namespaces", "list nodes", "watch nodes", "list pods", "watch pods", "list services", "watch services",
		"list endpointslices.discovery.k8s.io", "watch endpointslices.discovery.k8s.io",
		"list networkpolicies.networking.k8s.io", "watch networkpolicies.networking.k8s.io",
		"create events", "patch events",
	}
	leases := []string{"list", "watch", "create", "patch"}
	for i := range leases {
		leases[i] += " leases.coordination.k8s.io"
	}
	for namespace, want := range map[string][]string{"default": everywhere, "kube-system": slices.Concat(everywhere, leases)} {
		anybody := s.mayDo(s.Kubeconfig(s.proxy.Addr(), s.Token(nobody.Namespace, nobody.Name)), namespace)
		got := slices.DeleteFunc(s.mayDo(kubeconfig, namespace), func(right string) bool { return slices.Contains(anybody, right) })
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("in %s an agent may\n%q, want\n%q", namespace, got, want)
		}
	}
}

// mayDo are an account's rights in a namespace, as "VERB RESOURCE.GROUP".
func (s *scene) mayDo(kubeconfig, namespace string) (rights []string) {
	s.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	s.must(err)
	client, err := kubernetes.NewForConfig(config)
	s.must(err)
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
	review, err = client.AuthorizationV1().SelfSubjectRulesReviews().Create(s.Context(), review, create)
	s.must(err)
	if review.Status.Incomplete {
		s.Fatalf("the API server does not know all rights: %s", review.Status.EvaluationError)
	}
	for _, r := range review.Status.ResourceRules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					right := strings.TrimSuffix(verb+" "+resource+"."+group, ".")
					if len(r.ResourceNames) > 0 {
						right += fmt.Sprint(" ", r.ResourceNames)
					}
					rights = append(rights, right)
				}
			}
		}
	}
	for _, r := range review.Status.NonResourceRules {
		rights = append(rights, fmt.Sprint(r.Verbs, " ", r.NonResourceURLs))
	}
	slices.Sort(rights)
	return rights
}

// TestEvents: what is not enforced is said on the object, once, and when it is mended.
func TestEvents(t *testing.T) {
	s := newScene(t)
	s.makeNode(nodeName, "10.244.1.0/24")
	s.makeNamespace("shop")
	p := s.makePod("p", "a")
	kubeconfig := s.grant(s.rights())
	s.watch(kubeconfig)
	s.eventually("the pod", func(u source.Update) bool { return app(u, "p") == "a" })
	client, err := kube.Connect(kubeconfig, "weir-test")
	s.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	recorder := kube.NewRecorder(ctx, kube.Config{Client: client, NodeName: nodeName, Log: testLog(s.log)})
	u := s.last()
	wrong := &policy.Result{Errors: []policy.Problem{{Ref: policy.Ref{Kind: "Pod", Namespace: "shop", Name: "p"}, Field: "status.podIPs", Message: "does not fit"}}}
	for range 3 {
		recorder.Report(&u, wrong)
	}
	events := func() (out []corev1.Event) {
		list, err := s.Admin.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(p.UID)})
		s.must(err)
		return list.Items
	}
	s.until("a warning", func() bool { return len(events()) == 1 })
	if e := events()[0]; e.Type != "Warning" || e.Reason != kube.ReasonNotEnforced || e.Source.Component != "weir-agent" || e.Source.Host != nodeName || e.Count != 1 ||
		e.Message != "node node-a: not enforced as it is written: status.podIPs: does not fit" || e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.APIVersion != "v1" {
		t.Errorf("%+v", e)
	}
	recorder.Report(&u, &policy.Result{})
	s.until("a normal event", func() bool { return len(events()) == 2 })
	recorder.Report(&u, wrong) // the same again: one object, counted
	s.until("a count", func() bool { return slices.ContainsFunc(events(), func(e corev1.Event) bool { return e.Count == 2 }) })
	if all := events(); len(all) != 2 || all[0].Reason == all[1].Reason {
		t.Errorf("%+v", all)
	}
}
