package oracle

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// A near miss says in words what the connection has and what the rule has instead. The words
// are read here as a person would: what they say of the connection must be so, and when that
// is changed to what they say of the rule, the engines must find that the rule allows.

// most misses that a side lists.
const mostMisses = 8

// change is what decides about a near miss, but for the tuple's port.
type change struct {
	ref           policy.RuleRef
	reason        string
	subject, peer types.NamespacedName
	direction     datapath.Direction
}

// nearMisses are about rules that the engines say deny, all of them if there is room.
func (s *side) nearMisses(misses []policy.NearMiss, denying map[policy.RuleRef]*networkingv1.NetworkPolicy) error {
	if len(misses) != min(len(denying), mostMisses) {
		return fmt.Errorf("%d near misses, of %d rules that do not allow", len(misses), len(denying))
	}
	said := map[policy.RuleRef]bool{}
	for _, m := range misses {
		np := denying[m.RuleRef]
		if np == nil || said[m.RuleRef] {
			return fmt.Errorf("near miss %+v is none, or is said twice", m)
		}
		said[m.RuleRef] = true
		key := change{m.RuleRef, m.Reason, s.subject.name(), s.peer.name(), s.direction}
		if s.tested[key] {
			s.counts.add("near misses like those", 1)
			continue
		}
		s.tested[key] = true
		if err := s.nearMiss(m, np); err != nil {
			return fmt.Errorf("near miss %+v: %w", m, err)
		}
	}
	return nil
}

func (p party) name() types.NamespacedName {
	if p.pod == nil {
		return types.NamespacedName{Name: p.addr}
	}
	return types.NamespacedName{Namespace: p.pod.Namespace, Name: p.pod.Name}
}

// nearMiss makes the changes in every way that the words leave open.
func (s *side) nearMiss(m policy.NearMiss, np *networkingv1.NetworkPolicy) error {
	w := &words{side: s, rule: s.rules(np)[m.Index], labels: map[label][]*string{}, ports: []edit{nil}}
	for _, reason := range strings.Split(m.Reason, "; ") {
		if err := w.read(reason); err != nil {
			return fmt.Errorf("%q: %w", reason, err)
		}
	}
	if w.vague != "" {
		s.counts.add("near misses "+w.vague, 1)
		return nil
	}
	if len(w.blocks) > 0 && len(w.peerEdits()) == 0 {
		s.counts.add("near misses of what nothing can be", 1) // exceptions leave nothing of the block
		return nil
	}
	only := alone{np, s.direction, m.Index}.only()
	works, peers := 0, w.peerEdits()
	for _, peer := range peers {
		does, err := s.allowsAfter(only, peer, w.ports)
		if err != nil {
			return err
		}
		if does {
			works++
		}
	}
	// Whichever value is taken must do; of blocks with one CIDR it is one that is meant.
	if works == 0 || works < len(peers) && len(w.blocks) == 0 {
		return fmt.Errorf("what it says was changed in %d ways, and the rule allows after %d", len(peers), works)
	}
	s.counts.add("near misses put right", 1)
	return nil
}

// scene is a connection that changes are made to.
type scene struct {
	cluster       *policy.Cluster
	tuple         policy.Tuple
	subject, peer *policy.End // in tuple
	direction     datapath.Direction
}

// edit is one change; nil is none.
type edit func(*scene)

// allowsAfter: whichever of the ports is taken.
func (s *side) allowsAfter(only *networkingv1.NetworkPolicy, peer edit, ports []edit) (bool, error) {
	for _, port := range ports {
		c := withOnly(s.cluster, only)
		c.Pods, c.Namespaces = maps.Clone(c.Pods), maps.Clone(c.Namespaces)
		sc := &scene{cluster: c, tuple: s.tuple, direction: s.direction}
		sc.subject, sc.peer = &sc.tuple.From, &sc.tuple.To
		if s.direction == datapath.Ingress {
			sc.subject, sc.peer = sc.peer, sc.subject
		}
		for _, e := range []edit{peer, port} {
			if e != nil {
				e(sc)
			}
		}
		if allows, err := take(c, s.node).allow(sc.tuple, s.direction); !allows || err != nil {
			return false, err
		}
	}
	return true, nil
}

// label is one of the peer or its namespace.
type label struct{ of, key string }

// words is a near miss as it was read.
type words struct {
	*side
	rule      rule
	labels    map[label][]*string // values that may do; nil = none at all
	namespace string              // the pod's is to be
	blocks    []*networkingv1.IPBlock
	ports     []edit // each must do
	vague     string // it names nothing to change: why
}

var (
	labelHas      = regexp.MustCompile(`^(pod|namespace) label ([^=\s]+)=(\S*), (.*)$`)
	labelHasNot   = regexp.MustCompile(`^(pod|namespace) has no label (\S+), (.*)$`)
	wantsEqual    = regexp.MustCompile(`^(?:not )?([^=\s]+)=(\S*)$`)
	wantsIn       = regexp.MustCompile(`^(\S+) in \((.*)\)$`)
	wantsNotIn    = regexp.MustCompile(`^(\S+) not in \((.*)\)$`)
	wantsSome     = regexp.MustCompile(`^(\S+) to be there$`)
	wantsNone     = regexp.MustCompile(`^(\S+) not to be there$`)
	otherSpace    = regexp.MustCompile(`^pod's namespace is (\S+), not (\S+)$`)
	notInBlock    = regexp.MustCompile(`^address (\S+) is not in (\S+)$`)
	inException   = regexp.MustCompile(`^address (\S+) is in the exception (\S+) of (\S+)$`)
	noPod         = regexp.MustCompile(`^(\S+) is no pod, rule has pods only$`)
	otherPort     = regexp.MustCompile(`^port (\d+)/(TCP|UDP|SCTP), rule has (.*)$`)
	otherProtocol = regexp.MustCompile(`^protocol (\d+), rule has only (.*)$`)
	onePort       = regexp.MustCompile(`^([^/]+)/(TCP|UDP|SCTP)(?: \(([^)]*)\))?(?:, |$)`)
)

func (w *words) read(reason string) error {
	if m := labelHas.FindStringSubmatch(reason); m != nil {
		if v, has := w.labelsOf(m[1])[m[2]]; !has || v != m[3] {
			return fmt.Errorf("the label is %q, %v", v, has)
		}
		return w.readWants(label{m[1], m[2]}, m[4])
	}
	if m := labelHasNot.FindStringSubmatch(reason); m != nil {
		if v, has := w.labelsOf(m[1])[m[2]]; has {
			return fmt.Errorf("it has, %q", v)
		}
		return w.readWants(label{m[1], m[2]}, m[3])
	}
	if m := otherSpace.FindStringSubmatch(reason); m != nil {
		w.namespace = m[2]
		return so(w.peer.pod != nil && w.peer.pod.Namespace == m[1] && m[1] != m[2])
	}
	if m := notInBlock.FindStringSubmatch(reason); m != nil {
		return w.readBlock(m[1], m[2], !netip.MustParsePrefix(m[2]).Contains(netip.MustParseAddr(m[1])))
	}
	if m := inException.FindStringSubmatch(reason); m != nil {
		return w.readBlock(m[1], m[3], netip.MustParsePrefix(m[2]).Contains(netip.MustParseAddr(m[1])))
	}
	if m := noPod.FindStringSubmatch(reason); m != nil {
		w.vague = "that say that the peer is no pod"
		return so(w.peer.pod == nil && w.peer.addr == m[1] &&
			!slices.ContainsFunc(w.rule.peers, func(p networkingv1.NetworkPolicyPeer) bool { return p.IPBlock != nil }))
	}
	if m := otherPort.FindStringSubmatch(reason); m != nil {
		return w.readPorts(m[3], m[1] == fmt.Sprint(w.tuple.Port) && m[2] == string(protocol(w.tuple)))
	}
	if m := otherProtocol.FindStringSubmatch(reason); m != nil {
		return w.readPorts(m[2], m[1] == fmt.Sprint(w.tuple.Protocol))
	}
	return fmt.Errorf("nobody can read that")
}

func so(is bool) error {
	if !is {
		return fmt.Errorf("it is not so")
	}
	return nil
}

func (w *words) labelsOf(of string) map[string]string {
	switch {
	case w.peer.pod == nil:
		return nil
	case of == "namespace":
		return namespaceLabels(w.cluster, w.peer.pod.Namespace)
	}
	return w.peer.pod.Labels
}

// fresh is a value that no selector has.
const fresh = "fresh"

// readWants finds the values, or none, that meet all that is said of a label.
func (w *words) readWants(l label, said string) error {
	said, nothing := strings.CutSuffix(said, ", and nothing is that")
	var selector metav1.LabelSelector
	values := []string{fresh}
	for _, want := range strings.Split(strings.TrimPrefix(said, "rule wants "), " and ") {
		e, ok := readWant(want)
		if !ok || e.Key != l.key {
			return fmt.Errorf("it wants %q", want)
		}
		selector.MatchExpressions = append(selector.MatchExpressions, e)
		values = append(values, e.Values...)
	}
	s, err := metav1.LabelSelectorAsSelector(&selector)
	if err != nil {
		return err
	}
	w.labels[l] = nil
	for _, v := range values {
		if s.Matches(labels.Set{l.key: v}) {
			w.labels[l] = append(w.labels[l], &v)
		}
	}
	if s.Matches(labels.Set{}) && l != (label{"namespace", policy.NamespaceLabel}) {
		w.labels[l] = append(w.labels[l], nil)
	}
	if nothing {
		w.vague = "of what nothing can be"
		return so(len(w.labels[l]) == 0)
	}
	return nil
}

func readWant(want string) (e metav1.LabelSelectorRequirement, ok bool) {
	for _, w := range []struct {
		words    *regexp.Regexp
		operator metav1.LabelSelectorOperator
	}{
		{wantsEqual, metav1.LabelSelectorOpIn}, {wantsNotIn, metav1.LabelSelectorOpNotIn}, {wantsIn, metav1.LabelSelectorOpIn},
		{wantsNone, metav1.LabelSelectorOpDoesNotExist}, {wantsSome, metav1.LabelSelectorOpExists},
	} {
		m := w.words.FindStringSubmatch(want)
		if m == nil {
			continue
		}
		e = metav1.LabelSelectorRequirement{Key: m[1], Operator: w.operator}
		if len(m) > 2 {
			e.Values = strings.Split(m[2], ", ")
		}
		return e, true
	}
	return e, false
}

func (w *words) readBlock(addr, cidr string, right bool) error {
	for _, p := range w.rule.peers {
		if p.IPBlock != nil && p.IPBlock.CIDR == cidr {
			w.blocks = append(w.blocks, p.IPBlock)
		}
	}
	return so(right && addr == w.peer.addr && len(w.blocks) > 0)
}

var protocolNumbers = map[string]uint8{"TCP": datapath.TCP, "UDP": datapath.UDP, "SCTP": datapath.SCTP}

// readPorts: whichever of the rule's ports is taken, it must do.
func (w *words) readPorts(list string, right bool) error {
	w.ports = nil
	for n := 0; list != ""; n++ {
		m := onePort.FindStringSubmatch(list)
		if m == nil {
			return fmt.Errorf("nobody can read %q", list)
		}
		list = list[len(m[0]):]
		number, err := strconv.Atoi(strings.Split(m[1], "-")[0])
		switch {
		case m[1] == "any":
			number = int(max(w.tuple.Port, 1))
		case err == nil:
		case strings.HasSuffix(m[3], " there"):
			if number, err = strconv.Atoi(strings.Split(strings.TrimSuffix(m[3], " there"), ", ")[0]); err != nil {
				return err
			}
		case m[3] == "the pod has no port of that name":
			number = 12345
			w.ports = append(w.ports, func(s *scene) { s.tuple.Protocol, s.tuple.Port = protocolNumbers[m[2]], 12345; s.addPort(m[1], m[2]) })
			continue
		case m[3] == "the receiver is no pod: it has no named ports":
			continue
		default:
			return fmt.Errorf("nobody can read %q", m[0])
		}
		w.ports = append(w.ports, func(s *scene) { s.tuple.Protocol, s.tuple.Port = protocolNumbers[m[2]], uint16(number) })
	}
	if len(w.ports) == 0 {
		w.vague = "that say that only a pod has named ports"
	}
	return so(right)
}

// addPort gives the receiver one.
func (s *scene) addPort(name, protocol string) {
	pod := s.cluster.Pods[s.tuple.To.Pod].Clone()
	pod.Ports = append(pod.Ports, corev1.ContainerPort{Name: name, ContainerPort: int32(s.tuple.Port), Protocol: corev1.Protocol(protocol)})
	s.cluster.Pods[s.tuple.To.Pod] = pod
}

// peerEdits are the ways to change the peer as it is said.
func (w *words) peerEdits() []edit {
	if len(w.blocks) > 0 {
		var out []edit
		for _, b := range w.blocks {
			if a, ok := inside(b); ok {
				out = append(out, func(s *scene) { s.peer.Addr = a })
			}
		}
		return out
	}
	out := []edit{func(s *scene) {
		if w.namespace != "" {
			s.move(w.namespace)
		}
	}}
	for l, values := range w.labels {
		var next []edit
		for _, o := range out {
			for _, v := range values {
				next = append(next, func(s *scene) { o(s); s.label(l, v) })
			}
		}
		out = next
	}
	return out
}

// move gives the peer another namespace.
func (s *scene) move(namespace string) {
	pod := s.cluster.Pods[s.peer.Pod].Clone()
	delete(s.cluster.Pods, s.peer.Pod)
	pod.Namespace, s.peer.Pod.Namespace = namespace, namespace
	s.cluster.Pods[s.peer.Pod] = pod
}

func (s *scene) label(l label, value *string) {
	set := func(labels map[string]string) map[string]string {
		labels = maps.Clone(labels)
		if labels == nil {
			labels = map[string]string{}
		}
		if delete(labels, l.key); value != nil {
			labels[l.key] = *value
		}
		return labels
	}
	if l.of == "pod" {
		pod := s.cluster.Pods[s.peer.Pod].Clone()
		pod.Labels = set(pod.Labels)
		s.cluster.Pods[s.peer.Pod] = pod
		return
	}
	ns := &corev1.Namespace{}
	if old := s.cluster.Namespaces[s.peer.Pod.Namespace]; old != nil {
		ns = old.DeepCopy()
	}
	ns.Labels = set(ns.Labels)
	s.cluster.Namespaces[s.peer.Pod.Namespace] = ns
}

// inside is an address of the block that is in none of its exceptions: where there is one,
// there is one at an end of the block or beside an exception.
func inside(b *networkingv1.IPBlock) (netip.Addr, bool) {
	cidr := netip.MustParsePrefix(b.CIDR)
	candidates := []netip.Addr{cidr.Masked().Addr()}
	for _, e := range b.Except {
		candidates = append(candidates, last(netip.MustParsePrefix(e)).Next())
	}
	for _, a := range candidates {
		excepted := func(e string) bool { return netip.MustParsePrefix(e).Contains(a) }
		if cidr.Contains(a) && !slices.ContainsFunc(b.Except, excepted) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
