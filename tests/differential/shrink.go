package differential

import (
	"fmt"
	"strings"

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
	if got := c.failure.Error(); got != text {
		text = "Met as: " + text + "\nShrunk: " + got
	}
	if c.before != nil {
		text += "\nThe flow began under\n" + r.manifest(c.before, f) + "\nand the packet came under"
	}
	return text + "\n" + r.manifest(c.after, f)
}

// fails tries a repro; its failure is then the newest.
func (r *rig) fails(c *repro) bool {
	q := *c.failure.question
	kernels := c.failure.who == kernel || c.failure.who == kernelAccount // to others all packets of a flow are one
	if kernels && q.key.Port == [2]uint16{} {
		return false // there is no fresh flow of these two
	}
	q.port = r.freshPort()
	q.key, q.side = keyOf(&q)
	p := packet{question: &q, reply: c.failure.reply && kernels, first: c.before == nil}
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
	if !asFailure(r.try(p), &f) || f.who != c.failure.who {
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
	for _, less := range reductions(c) {
		attempt := &repro{less(c.before), less(c.after), c.failure}
		if r.fails(attempt) {
			*c = *attempt
			return true
		}
	}
	return false
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
	for _, name := range names(c.NetworkPolicies) {
		add("NetworkPolicy", c.NetworkPolicies[name])
	}
	return strings.Join(docs, "---\n") + fmt.Sprintf("# node %v, remote nodes %v, ranges %v, node egress allowed: %v\n",
		r.world.Node.Addresses, r.world.Node.RemoteNodes, r.world.Node.ClusterCIDRs, r.world.Node.NodeEgressAllow)
}
