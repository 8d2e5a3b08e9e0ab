package differential

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

// failure is a packet that two disagree on.
type failure struct {
	packet
	epoch uint64
	who   string // disagrees with the reference: kernel, kernelAccount, a judge, or explanation
	want  answer
	got   string // of the kernel, and what is wrong
}

const (
	kernel        = "kernel"
	kernelAccount = "kernel's account" // the verdict is right: it is the rule, the entry or the count that differs
	explanation   = "explanation"
)

func (f *failure) Error() string {
	what := "packet of " + f.question.String()
	if f.first {
		what = "first " + what
	} else if f.reply {
		what = "reply " + what
	}
	text := fmt.Sprintf("%s, epoch %d: %s differs:\n  reference: %v\n  kernel: %s", what, f.epoch, f.who, f.want, f.got)
	for i, j := range f.want.judges {
		text += fmt.Sprintf("\n  %s: %v", j.Name, f.want.words[i])
	}
	if f.want.fault != nil {
		text += fmt.Sprintf("\n  explanation: %v", f.want.fault)
	}
	return text
}

func asFailure(err error, f **failure) bool { return errors.As(err, f) }

// answer is what the reference says, of the sides that this node judges.
type answer struct {
	*ruling
	sides     [2]*policy.Side // by direction; nil = not judged here
	forwarded bool
	direction datapath.Direction // that denies
}

func (a answer) String() string {
	text := spoken(a.forwarded)
	for d, s := range a.sides {
		if s != nil {
			text += fmt.Sprintf("; %s %s by %v, isolated by %v", datapath.Direction(d), s.Verdict, s.Rules, s.IsolatedBy)
		}
	}
	return text
}

func spoken(forwarded bool) string {
	if forwarded {
		return policy.Forwarded
	}
	return policy.Dropped
}

func (r *rig) reference(q *question) answer {
	v := r.ruling(q.tuple)
	a := answer{ruling: v, forwarded: true, direction: datapath.None}
	if q.from.Local != 0 {
		a.sides[datapath.Egress] = v.Egress
	}
	if q.to.Local != 0 {
		a.sides[datapath.Ingress] = v.Ingress
	}
	for d, s := range a.sides {
		if s != nil && s.Verdict == policy.Dropped && a.forwarded {
			a.forwarded, a.direction = false, datapath.Direction(d)
		}
	}
	return a
}

// send hands over a packet and compares everything that can be seen of it. A packet that is
// no flow's first is left out when the sweep has taken its entry.
func (r *rig) send(p packet) (forwarded bool, err error) {
	var flow bpf.WeirFlow
	if !p.first {
		if live, err := r.isLive(p.question, &flow); !live || err != nil {
			return false, err
		}
	}
	frame, err := r.frame(p)
	if err != nil {
		return false, err
	}
	at, want := r.arrival(p, &flow), r.reference(p.question)
	verdict, err := r.hooks[at.hook].Run(frame, at.ifindex, at.ingress, at.mark)
	if err != nil {
		return false, err
	}
	fail := func(format string, args ...any) (bool, error) {
		who := kernel
		if want.forwarded == (verdict != testnode.Drop) {
			who = kernelAccount
		}
		return false, &failure{p, r.epoch, who, want, fmt.Sprintf(format, args...)}
	}
	if who := r.disagrees(want.ruling); who != "" {
		return false, &failure{p, r.epoch, who, want, fmt.Sprintf("%s, verdict %d at %s", spoken(verdict != testnode.Drop), verdict, at.hook)}
	}
	r.tally.count(p, want)
	r.events.expect(r.epoch, p, want)
	if verdict == testnode.Drop {
		return false, r.checkDenial(p, at, want, fail)
	}
	if !want.forwarded {
		return fail("%s, verdict %d at %s", policy.Forwarded, verdict, at.hook)
	}
	return true, r.checkFlow(p, at, verdict, want, fail)
}

type failer func(format string, args ...any) (bool, error)

// isLive reports whether a flow's entry is there, whatever it says.
func (r *rig) isLive(q *question, flow *bpf.WeirFlow) (bool, error) {
	ok, err := r.tables.Flow(&q.key, flow)
	const over = uint32(bpf.WeirFlowStateFLOW_CLOSED | bpf.WeirFlowStateFLOW_CLAIMED)
	return ok && flow.State&over == 0, err
}

// begunByOther: protocols without ports have one entry for both directions, and a packet is
// judged as the answer it may be, even if the flow is forbidden now and a new one is not.
func (r *rig) begunByOther(q *question) (bool, error) {
	if q.key.Port != [2]uint16{} {
		return false, nil
	}
	var flow bpf.WeirFlow
	live, err := r.isLive(q, &flow)
	return live && int(flow.State&uint32(bpf.WeirFlowStateFLOW_INITIATOR)) != q.side, err
}

// checkFlow compares a forwarded packet's entry.
func (r *rig) checkFlow(p packet, at arrival, verdict int, want answer, fail failer) error {
	var flow bpf.WeirFlow
	live, err := r.isLive(p.question, &flow)
	if err != nil {
		return err
	}
	if live && p.stray() {
		_, err = fail("verdict %d at %s, and a flow entry", verdict, at.hook)
		return err
	}
	if !live {
		if p.first && !p.stray() {
			_, err = fail("verdict %d at %s, and no flow entry", verdict, at.hook)
		}
		return err
	}
	if how := r.differs(p, &flow, want); how != "" {
		_, err = fail("verdict %d at %s, %s", verdict, at.hook, how)
		return err
	}
	if how := r.misdelivered(p, at, verdict, &flow); how != "" {
		_, err = fail("%s", how)
	}
	return err
}

// differs says how an entry is not what the reference says.
func (r *rig) differs(p packet, flow *bpf.WeirFlow, want answer) string {
	if epoch := flow.Stamp >> bpf.WeirStampBitsSTAMP_SHIFT; epoch != r.epoch {
		return fmt.Sprintf("stamped with epoch %d in %d", epoch, r.epoch)
	}
	if int(flow.State&uint32(bpf.WeirFlowStateFLOW_INITIATOR)) != p.side {
		return "begun by the other side"
	}
	bits := [2]bpf.WeirStampBits{bpf.WeirStampBitsSTAMP_EGRESS, bpf.WeirStampBitsSTAMP_INGRESS}
	for d, side := range want.sides {
		judged := flow.Stamp&uint64(bits[d]) != 0
		if (p.way == toNetwork && d == int(datapath.Ingress)) || side == nil {
			if judged || flow.Rule[d] != 0 {
				return fmt.Sprintf("%s judged by rule %d, which is another node's business", datapath.Direction(d), flow.Rule[d])
			}
			continue
		}
		rule, ok := r.ids.Rule(flow.Rule[d])
		if !judged || !ok || !sameRule(rule, side) {
			return fmt.Sprintf("%s judged %v, by rule %d %s", datapath.Direction(d), judged, flow.Rule[d], rule)
		}
	}
	return ""
}

// misdelivered says how a forwarded packet does not go the flow's way.
func (r *rig) misdelivered(p packet, at arrival, verdict int, flow *bpf.WeirFlow) string {
	sender := p.from
	if p.reply {
		sender = p.to
	}
	pastStack := flow.State&uint32(bpf.WeirFlowStateFLOW_PATH_NODES) != 0
	if p.first && !p.reply && pastStack != (at.hook != "to_pod" && r.mayPassStack(p)) {
		return fmt.Sprintf("past the stack %v at %s", pastStack, at.hook)
	}
	if pastStack {
		r.tally.pastStack++
	}
	redirected := at.hook == "from_pod" && flow.State&uint32(bpf.WeirFlowStateFLOW_PATH_BPF) != 0 || at.hook != "to_pod" && pastStack
	if redirected != (verdict == testnode.Redirect) || verdict != testnode.Redirect && verdict != testnode.Next {
		return fmt.Sprintf("verdict %d at %s, redirect %v", verdict, at.hook, redirected)
	}
	mark := r.hooks[at.hook].Mark
	if at.hook == "from_pod" && !redirected && mark&^(testnode.MarkEgress|testnode.MarkIngress) != uint16(sender.Local) {
		return fmt.Sprintf("mark %#x at %s, of another sender than %d", mark, at.hook, sender.Local)
	}
	if at.hook == "from_pod" && !redirected && mark&testnode.MarkEgress == 0 {
		return fmt.Sprintf("mark %#x at %s, undecided", mark, at.hook)
	}
	return ""
}

// checkDenial compares a dropped packet's count, which names the rule.
func (r *rig) checkDenial(p packet, at arrival, want answer, fail failer) error {
	if want.forwarded {
		_, err := fail("dropped at %s; %s", at.hook, r.denials())
		return err
	}
	key, ok := r.denialKey(p, want)
	if !ok {
		_, err := fail("dropped at %s; the default rule %d is not the reference's", at.hook, key.Rule)
		return err
	}
	n, err := r.tables.Denied(&key)
	if err != nil {
		return err
	}
	// The count of a rule that was out of force for long begins anew.
	if n != r.denied[key]+1 && n != 1 {
		_, err := fail("dropped at %s; %+v counts %d, was %d; %s", at.hook, key, n, r.denied[key], r.denials())
		return err
	}
	r.denied[key] = n
	return nil
}

// denialKey is where a denied packet has to be counted: for its local sender, else its
// receiver, by the default of the ruleset that denies. ok: that rule is the reference's.
func (r *rig) denialKey(p packet, want answer) (key bpf.WeirDenialCountKey, ok bool) {
	source, destination := p.from, p.to
	if p.reply {
		source, destination = destination, source
	}
	key.Endpoint = source.Local
	if source.Local == 0 {
		key.Endpoint = destination.Local
	}
	key.Direction, key.Reason = uint8(want.direction), uint8(bpf.WeirDropReasonDROP_POLICY)
	peer, addr, ruleset := p.to, p.tuple.To.Addr, r.state.Endpoints[p.from.Local].Egress
	if want.direction == datapath.Ingress {
		peer, addr, ruleset = p.from, p.tuple.From.Addr, r.state.Endpoints[p.to.Local].Ingress
	}
	if p.stray() {
		key.Reason = uint8(bpf.WeirDropReasonDROP_TCP_STRAY)
	}
	if r.unmanaged(peer, addr) {
		key.Reason = uint8(bpf.WeirDropReasonDROP_UNMANAGED_PEER)
	}
	key.Rule = r.state.Rulesets[ruleset].Default
	rule, found := r.ids.Rule(key.Rule)
	return key, found && sameRule(rule, want.sides[want.direction])
}

// denials are the counts that moved since we last knew.
func (r *rig) denials() string {
	all, err := r.node.Kernel.Denials()
	if err != nil {
		return err.Error()
	}
	text := "counted:"
	for _, d := range all {
		key := bpf.WeirDenialCountKey{Endpoint: d.Endpoint, Rule: d.Rule, Direction: uint8(d.Direction), Reason: uint8(d.Reason)}
		if n := d.Packets - r.denied[key]; n != 0 {
			rule, _ := r.ids.Rule(d.Rule)
			text += fmt.Sprintf(" %d of endpoint %d, %s, reason %s, rule %d %s;", n, d.Endpoint, d.Direction, d.Reason, d.Rule, rule)
		}
	}
	return text
}

// resync takes the counts as they are for what we know.
func (r *rig) resync() error {
	all, err := r.node.Kernel.Denials()
	for _, d := range all {
		r.denied[bpf.WeirDenialCountKey{Endpoint: d.Endpoint, Rule: d.Rule, Direction: uint8(d.Direction), Reason: uint8(d.Reason)}] = d.Packets
	}
	return err
}

// sameRule reports whether the id's rule is the one that the reference names.
func sameRule(r policy.Rule, s *policy.Side) bool {
	if s.Verdict == policy.Dropped {
		return r.Kind == policy.KindDefaultDeny && reflect.DeepEqual(r.IsolatedBy, s.IsolatedBy)
	}
	want := s.Rules[0]
	return r.Kind == want.Kind && r.Name == want.Name && r.Index == want.Index &&
		(r.Kind != policy.KindNetworkPolicy || r.Namespace == want.Namespace)
}
