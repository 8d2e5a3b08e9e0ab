package differential

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/controlplane/policy"
)

// repro is the clusters and packets that lead to a failure: the first packet under before,
// if there is one, and then under after the packet that the two disagree on.
type repro struct {
	before, after *policy.Cluster
	failure       *failure
}

// explain shrinks a failure and says it whole.
func (r *rig) explain(f *failure) string {
	text := f.Error()
	c := &repro{after: r.cluster, failure: f}
	if !r.fails(c) {
		if c.before = f.sent; !r.fails(c) {
			return text + "\nThe question alone does not show it again; it takes what was sent before.\n" + r.manifest(c.after, f)
		}
	}
	for r.smaller(c) {
	}
	r.fails(c)
	text = c.failure.Error()
	if c.before != nil {
		text += "\nThe flow began under\n" + r.manifest(c.before, f) + "\nand the packet came under"
	}
	return text + "\n" + r.manifest(c.after, f)
}

// fails tries a repro; its failure is then the newest.
func (r *rig) fails(c *repro) bool {
	q := *c.failure.question
	q.port = r.freshPort()
	q.key, q.side = keyOf(&q)
	p := packet{question: &q, reply: c.failure.reply, first: c.before == nil}
	if c.before == nil && p.reply {
		return false
	}
	if c.before != nil {
		if r.commit(c.before) != nil || r.try(packet{question: &q, first: true}) != nil {
			return false
		}
	}
	if r.commit(c.after) != nil || r.resync() != nil {
		return false
	}
	f := new(failure)
	if !asFailure(r.try(p), &f) || f.alike != c.failure.alike {
		return false
	}
	c.failure = f
	return true
}

func (r *rig) try(p packet) error {
	return r.node.Do(func() error { _, err := r.send(p); return err })
}

// smaller takes one thing away that the failure does not need.
func (r *rig) smaller(c *repro) bool {
	for _, name := range policyNames(c.before, c.after) {
		if r.keep(c, without(c.before, name), without(c.after, name)) {
			return true
		}
	}
	for name, np := range c.after.NetworkPolicies {
		for _, less := range lesser(np) {
			if r.keep(c, c.before, with(c.after, name, less)) {
				return true
			}
		}
	}
	return false
}

func (r *rig) keep(c *repro, before, after *policy.Cluster) bool {
	attempt := &repro{before, after, c.failure}
	if !r.fails(attempt) {
		return false
	}
	*c = *attempt
	return true
}

func policyNames(clusters ...*policy.Cluster) []types.NamespacedName {
	all := map[types.NamespacedName]bool{}
	for _, c := range clusters {
		if c != nil {
			for name := range c.NetworkPolicies {
				all[name] = true
			}
		}
	}
	return slices.Collect(maps.Keys(all))
}

func without(c *policy.Cluster, name types.NamespacedName) *policy.Cluster {
	if c == nil {
		return nil
	}
	out := *c
	out.NetworkPolicies = maps.Clone(c.NetworkPolicies)
	delete(out.NetworkPolicies, name)
	return &out
}

func with(c *policy.Cluster, name types.NamespacedName, np *networkingv1.NetworkPolicy) *policy.Cluster {
	out := without(c, name)
	out.NetworkPolicies[name] = np
	return out
}

// lesser are the policy without one rule, peer, port, exception or requirement each.
func lesser(np *networkingv1.NetworkPolicy) (out []*networkingv1.NetworkPolicy) {
	cut := func(n int, f func(np *networkingv1.NetworkPolicy, i int)) {
		for i := range n {
			less := np.DeepCopy()
			f(less, i)
			out = append(out, less)
		}
	}
	cut(len(np.Spec.Ingress), func(np *networkingv1.NetworkPolicy, i int) { np.Spec.Ingress = slices.Delete(np.Spec.Ingress, i, i+1) })
	cut(len(np.Spec.Egress), func(np *networkingv1.NetworkPolicy, i int) { np.Spec.Egress = slices.Delete(np.Spec.Egress, i, i+1) })
	for d := range parts(np) {
		cut(len(*parts(np)[d].peers), func(np *networkingv1.NetworkPolicy, i int) {
			p := parts(np)[d].peers
			*p = slices.Delete(*p, i, i+1)
		})
		cut(len(*parts(np)[d].ports), func(np *networkingv1.NetworkPolicy, i int) {
			p := parts(np)[d].ports
			*p = slices.Delete(*p, i, i+1)
		})
	}
	return out
}

type part struct {
	peers *[]networkingv1.NetworkPolicyPeer
	ports *[]networkingv1.NetworkPolicyPort
}

func parts(np *networkingv1.NetworkPolicy) (out []part) {
	for i := range np.Spec.Ingress {
		out = append(out, part{&np.Spec.Ingress[i].From, &np.Spec.Ingress[i].Ports})
	}
	for i := range np.Spec.Egress {
		out = append(out, part{&np.Spec.Egress[i].To, &np.Spec.Egress[i].Ports})
	}
	return out
}

// manifest is a cluster's policies, and the objects that the question is about.
func (r *rig) manifest(c *policy.Cluster, f *failure) string {
	var docs []string
	add := func(kind string, o any) {
		b, err := yaml.Marshal(o)
		if err != nil {
			b = []byte(err.Error())
		}
		docs = append(docs, "kind: "+kind+"\n"+string(b))
	}
	said := map[any]bool{}
	for _, name := range []types.NamespacedName{f.from.Pod, f.to.Pod} {
		pod := c.Pods[name]
		if pod == nil || said[name] {
			continue
		}
		if ns := c.Namespaces[name.Namespace]; ns != nil && !said[ns] {
			said[ns] = true
			add("Namespace", ns)
		}
		said[name] = true
		add("Pod", pod)
	}
	for _, np := range c.NetworkPolicies {
		add("NetworkPolicy", np)
	}
	return strings.Join(docs, "---\n") + fmt.Sprintf("# node %v, remote nodes %v, ranges %v, node egress allowed: %v\n",
		r.world.Node.Addresses, r.world.Node.RemoteNodes, r.world.Node.ClusterCIDRs, r.world.Node.NodeEgressAllow)
}
