package differential

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Judge is an engine that others wrote. Take has it read a cluster and returns what answers
// for that cluster's tuples.
type Judge struct {
	Name string
	Take func(*policy.Cluster, policy.Node) func(policy.Tuple) Opinion
}

// Opinion is what a judge says, by direction; of an end that is no pod it may say anything.
type Opinion [2]Word

// Word is about one direction.
type Word struct {
	Allows bool
	Silent string // it has no rule for such: why
}

func (o Opinion) String() string {
	say := func(w Word) string {
		switch {
		case w.Silent != "":
			return "silent, it is " + w.Silent
		case w.Allows:
			return "allows"
		}
		return "denies"
	}
	return "egress " + say(o[datapath.Egress]) + ", ingress " + say(o[datapath.Ingress])
}

// Review holds an explanation to more than its verdict. Like Judge's Take, it is made for a
// cluster.
type Review func(*policy.Cluster, policy.Node) func(policy.Tuple, policy.Answer) error

// ruling is all that is said of a tuple without a packet; it is kept while the cluster is in
// force. What is compared with the kernel is the explanation.
type ruling struct {
	policy.Answer
	judges []Judge
	words  []Opinion // by judge
	fault  error     // of the explanation
}

func (r *rig) ruling(t policy.Tuple) *ruling {
	if v := r.rulings[t]; v != nil {
		return v
	}
	v := &ruling{judges: r.options.Judges}
	asked, err := r.asked(t)
	v.Answer = policy.Explain(r.cluster, r.world.Node, asked)
	v.fault = cmp.Or(err, r.checkExplanation(t, v.Answer))
	for _, say := range r.judges {
		v.words = append(v.words, say(t))
	}
	r.rulings[t] = v
	r.tally.questions++
	return v
}

// asked is the tuple as `weir policy explain` is asked for it: by names of pods where there
// are some.
func (r *rig) asked(t policy.Tuple) (policy.Tuple, error) {
	asked := t
	for _, end := range []*policy.End{&asked.From, &asked.To} {
		text := end.Addr.String()
		if r.cluster.Pods[end.Pod] != nil {
			text = end.Pod.String()
		}
		parsed, err := policy.ParseEnd(r.cluster, r.world.Locals, text, t.Family)
		if err != nil {
			return t, err
		}
		if parsed.Addr != end.Addr || parsed.Pod != end.Pod && r.cluster.Pods[end.Pod] != nil {
			return t, fmt.Errorf("%s is taken for %+v", text, parsed)
		}
		*end = parsed
	}
	return asked, nil
}

// disagrees names who does not say what the explanation says, if anybody.
func (r *rig) disagrees(v *ruling) string {
	for i, words := range v.words {
		for d, side := range [...]*policy.Side{v.Egress, v.Ingress} {
			if side != nil && words[d].Silent == "" && words[d].Allows != (side.Verdict == policy.Forwarded) {
				return v.judges[i].Name
			}
		}
	}
	if v.fault != nil {
		return explanation
	}
	return ""
}

// checkExplanation holds it to the bare verdict, which has no near misses, and to the review.
func (r *rig) checkExplanation(t policy.Tuple, explained policy.Answer) error {
	bare := policy.Verdict(r.cluster, r.world.Node, t)
	if bare.Forwarded != explained.Forwarded {
		return fmt.Errorf("forwarded %v, the verdict is %v", explained.Forwarded, bare.Forwarded)
	}
	sides := [...]*policy.Side{explained.Egress, explained.Ingress}
	for d, want := range [...]*policy.Side{bare.Egress, bare.Ingress} {
		if err := r.checkSide(sides[d], want, datapath.Direction(d)); err != nil {
			return fmt.Errorf("%s: %w", datapath.Direction(d), err)
		}
	}
	if r.review == nil {
		return nil
	}
	return r.review(t, explained)
}

func (r *rig) checkSide(side, want *policy.Side, d datapath.Direction) error {
	if side == nil || want == nil {
		if side != want {
			return fmt.Errorf("explained as %+v, is %+v", side, want)
		}
		return nil
	}
	if side.Verdict != want.Verdict || !reflect.DeepEqual(side.Rules, want.Rules) || !reflect.DeepEqual(side.IsolatedBy, want.IsolatedBy) {
		return fmt.Errorf("explained as %+v, is %+v", side, want)
	}
	if want.Verdict == policy.Dropped && len(side.NearMisses) == 0 && r.hasRules(want.IsolatedBy, d) {
		return errors.New("dropped by policies with rules, and none is a near miss")
	}
	return nil
}

func (r *rig) hasRules(refs []policy.Ref, d datapath.Direction) bool {
	return slices.ContainsFunc(refs, func(ref policy.Ref) bool {
		np := r.cluster.NetworkPolicies[types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}]
		return d == datapath.Egress && len(np.Spec.Egress) > 0 || d == datapath.Ingress && len(np.Spec.Ingress) > 0
	})
}
