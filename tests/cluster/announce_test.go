package cluster

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/features"
	featurestesting "k8s.io/client-go/features/testing"

	"github.com/weirnet/weir/controlplane/kube"
	"github.com/weirnet/weir/controlplane/source"
)

// announceRights are what deploy/rbac.yaml has for the leases.
func (s *scene) announceRights() {
	s.Helper()
	f, err := os.Open("../../deploy/rbac.yaml")
	s.must(err)
	defer f.Close()
	made := 0
	for r := yaml.NewYAMLReader(bufio.NewReader(f)); ; {
		doc, err := r.Read()
		if err != nil {
			break
		}
		var head metav1.TypeMeta
		s.must(yaml.Unmarshal(doc, &head))
		made++
		switch head.Kind {
		case "Role":
			o := &rbacv1.Role{}
			s.must(yaml.UnmarshalStrict(doc, o))
			_, err = s.Admin.RbacV1().Roles(o.Namespace).Create(s.Context(), o, create)
		case "RoleBinding":
			o := &rbacv1.RoleBinding{}
			s.must(yaml.UnmarshalStrict(doc, o))
			_, err = s.Admin.RbacV1().RoleBindings(o.Namespace).Create(s.Context(), o, create)
		case "ValidatingAdmissionPolicy":
			o := &admissionv1.ValidatingAdmissionPolicy{}
			s.must(yaml.UnmarshalStrict(doc, o))
			_, err = s.Admin.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(s.Context(), o, create)
		case "ValidatingAdmissionPolicyBinding":
			o := &admissionv1.ValidatingAdmissionPolicyBinding{}
			s.must(yaml.UnmarshalStrict(doc, o))
			_, err = s.Admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(s.Context(), o, create)
		default:
			made--
		}
		s.must(err)
	}
	if made != 4 {
		s.Fatalf("deploy/rbac.yaml has %d objects for leases", made)
	}
}

// agentToken is one that kubelet gives an agent's pod on a node.
func (s *scene) agentToken(r *rights, node string) string {
	s.Helper()
	in := r.account.Namespace
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: "weir-agent-" + node},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: r.account.Name, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	name := p.Name
	p, err := s.Admin.CoreV1().Pods(in).Create(s.Context(), p, create)
	if apierrors.IsAlreadyExists(err) {
		p, err = s.Admin.CoreV1().Pods(in).Get(s.Context(), name, metav1.GetOptions{})
	}
	s.must(err)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}}}
	request, err = s.Admin.CoreV1().ServiceAccounts(in).CreateToken(s.Context(), r.account.Name, request, create)
	s.must(err)
	return request.Status.Token
}

// announcer is the source of a node's agent, which runs.
func (s *scene) announcer(r *rights, node, as string, update func(source.Update)) *kube.Source {
	s.Helper()
	client, err := kube.Connect(s.Kubeconfig(s.Addr(), s.agentToken(r, node)), "weir-test")
	s.must(err)
	made := kube.New(kube.Config{Client: client, NodeName: as, AnnounceIn: "kube-system", Log: testLog(&lines{})})
	ctx, cancel := context.WithCancel(context.Background())
	s.Cleanup(cancel)
	go func() { _ = made.Run(ctx, source.Whole(update)) }()
	return made
}

// TestAnnounce: what an agent announces others know at once, with the rights that the
// manifest gives; for another node it cannot.
func TestAnnounce(t *testing.T) {
	s := newScene(t)
	r := s.rights()
	s.grant(r)
	s.announceRights()
	s.makeNode(nodeName, "10.244.1.0/24")
	s.makeNode("node-b", "10.244.2.0/24")
	s.makeNamespace("shop")
	web := s.makePod("web", "web")
	address := netip.MustParseAddr("10.244.1.7")

	own := s.announcer(r, nodeName, nodeName, func(source.Update) {})
	s.announcer(r, "node-b", "node-b", s.take)
	s.eventually("the pod is known", func(u source.Update) bool { return u.Cluster.Pods[shop("web")] != nil })
	if p := s.last().Cluster.Pods[shop("web")]; len(p.Addresses) > 0 {
		t.Fatalf("the pod has %v already", p.Addresses)
	}
	announced := kube.Announced{Namespace: "shop", Name: "web", UID: web.UID, Addresses: []netip.Addr{address}}
	s.until("the announcement is taken", func() bool { // the API server learns of the policy a little later
		_, err := own.Sync(t.Context())
		return err == nil && own.Announce(t.Context(), announced) == nil
	})
	s.eventually("the other node knows the address", func(u source.Update) bool { return slices.Contains(u.Cluster.Pods[shop("web")].Addresses, address) })

	lease, err := s.Admin.CoordinationV1().Leases("kube-system").Get(t.Context(), "weir-"+nodeName, metav1.GetOptions{})
	s.must(err)
	if o := lease.OwnerReferences; len(o) != 1 || o[0].Kind != "Node" || o[0].Name != nodeName {
		t.Errorf("the lease's owner is %v: it would outlive the node", o)
	}

	if lease.Spec.RenewTime != nil || lease.Spec.AcquireTime != nil {
		t.Errorf("the lease has times, %v and %v: nodes' clocks may differ", lease.Spec.AcquireTime, lease.Spec.RenewTime)
	}

	// kubelet says so, too, and something else.
	web.Status.PodIP, web.Status.PodIPs = "10.244.1.8", []corev1.PodIP{{IP: "10.244.1.8"}}
	_, err = s.Admin.CoreV1().Pods("shop").UpdateStatus(t.Context(), web, metav1.UpdateOptions{})
	s.must(err)
	s.eventually("the pod's object counts", func(u source.Update) bool {
		return slices.Contains(u.Cluster.Pods[shop("web")].Addresses, netip.MustParseAddr("10.244.1.8"))
	})

	// A token of node-b's does not write node-a's lease.
	db := s.makePod("db", "db")
	thief := s.announcer(r, "node-c", nodeName, func(source.Update) {})
	announced = kube.Announced{Namespace: "shop", Name: "db", UID: db.UID, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.9")}}
	s.until("another node's lease is refused", func() bool {
		_, err := thief.Sync(t.Context())
		s.must(err)
		err = thief.Announce(t.Context(), announced)
		return err != nil && strings.Contains(err.Error(), "lease of its own node alone")
	})
}

// TestLeaseRights: without any one of the Role's verbs it does not work, and says which.
func TestLeaseRights(t *testing.T) {
	s := newScene(t)
	r := s.rights()
	s.grant(r)
	s.announceRights()
	s.makeNode(nodeName, "10.244.1.0/24")
	s.makeNamespace("shop")
	web := s.makePod("web", "web")
	roles := s.Admin.RbacV1().Roles("kube-system")
	full, err := roles.Get(t.Context(), "weir-agent", metav1.GetOptions{})
	s.must(err)
	if len(full.Rules) != 1 {
		t.Fatalf("the role is %v", full.Rules)
	}
	grant := func(verbs ...string) {
		t.Helper()
		role := full.DeepCopy()
		role.ResourceVersion, role.Rules[0].Verbs = "", verbs
		_, err := roles.Update(t.Context(), role, metav1.UpdateOptions{})
		s.must(err)
	}
	announced := kube.Announced{Namespace: "shop", Name: "web", UID: web.UID, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.7")}}
	for _, verb := range full.Rules[0].Verbs {
		if verb == "list" { // where the API server has no WatchList
			featurestesting.SetFeatureDuringTest(t, features.WatchListClient, false)
		}
		grant(slices.DeleteFunc(slices.Clone(full.Rules[0].Verbs), func(v string) bool { return v == verb })...)
		own := s.announcer(r, nodeName, nodeName, func(source.Update) {})
		s.until("without "+verb+" it says so", func() bool {
			if _, err := own.Sync(t.Context()); err != nil {
				return false
			}
			said := strings.Join(own.Warnings(), "\n")
			if err := own.Announce(t.Context(), announced); err != nil {
				said += err.Error()
			}
			return strings.Contains(said, "cannot "+verb+` resource "leases"`)
		})
		if err := s.Admin.CoordinationV1().Leases("kube-system").Delete(t.Context(), "weir-"+nodeName, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			s.must(err)
		}
	}
}
