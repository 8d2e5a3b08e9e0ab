package policy

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/datapath"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected texts of testdata/*.txt")

// TestConversations plays testdata/*.txt: a command and its input, "----", what is to
// be answered, "====". One file is one Allocator, so numbers are seen to stay.
//
//	node ADDRESS...              the node's own addresses; ranges are cluster CIDRs
//	local NAMESPACE/POD ADDR...  the pod has an interface here
//	apply                        YAML documents follow
//	delete KIND NAMESPACE/NAME
//	compile                      answers with the state and what its numbers mean
//	explain FROM TO PORT/PROTOCOL [FAMILY]
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { converse(t, file) })
	}
}

func converse(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	talk := newTalk()
	var out strings.Builder
	for _, turn := range strings.SplitAfter(string(text), "\n====\n") {
		if strings.TrimSpace(turn) == "" {
			continue
		}
		input, want, ok := strings.Cut(strings.TrimSuffix(turn, "====\n"), "\n----\n")
		if !ok {
			t.Fatalf("%s: no ---- in %q", file, turn)
		}
		got := talk.answer(t, input)
		if got != want && !*rewrite {
			t.Errorf("%s: %s\n--- want\n%s--- got\n%s", file, input, want, got)
		}
		out.WriteString(input + "\n----\n" + got + "====\n")
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type talk struct {
	cluster *Cluster
	node    Node
	locals  []Local
	ids     *Allocator
}

func newTalk() *talk {
	return &talk{ids: NewAllocator(), cluster: &Cluster{
		Namespaces:      map[string]*corev1.Namespace{},
		Pods:            map[types.NamespacedName]*Pod{},
		NetworkPolicies: map[types.NamespacedName]*networkingv1.NetworkPolicy{},
		Services:        map[types.NamespacedName]*corev1.Service{},
	}}
}

func (k *talk) answer(t *testing.T, input string) string {
	t.Helper()
	for strings.HasPrefix(input, "#") || strings.HasPrefix(input, "\n") {
		_, input, _ = strings.Cut(input, "\n")
	}
	line, body, _ := strings.Cut(input, "\n")
	words := strings.Fields(line)
	switch words[0] {
	case "node":
		for _, w := range words[1:] {
			if p, err := netip.ParsePrefix(w); err == nil {
				k.node.ClusterCIDRs = append(k.node.ClusterCIDRs, p)
			} else {
				k.node.Addresses = append(k.node.Addresses, netip.MustParseAddr(w))
			}
		}
	case "local":
		return k.attach(words[1], words[2:])
	case "apply":
		for _, doc := range strings.Split(body, "\n---\n") {
			k.apply(t, []byte(doc))
		}
	case "delete":
		delete(k.cluster.NetworkPolicies, nameOf(words[2]))
		if words[1] == "Pod" {
			delete(k.cluster.Pods, nameOf(words[2]))
		}
	case "compile":
		return k.compile()
	case "explain":
		return k.explain(t, words[1:])
	default:
		t.Fatalf("unknown command %q", line)
	}
	return ""
}

func nameOf(text string) types.NamespacedName {
	namespace, name, _ := strings.Cut(text, "/")
	return types.NamespacedName{Namespace: namespace, Name: name}
}

func (k *talk) attach(pod string, addrs []string) string {
	l := Local{Pod: nameOf(pod), Number: uint32(len(k.locals) + 1)}
	l.Endpoint.Ifindex = 100 + l.Number
	for _, text := range addrs {
		if a := netip.MustParseAddr(text); a.Is4() {
			l.Endpoint.Addr4 = a
		} else {
			l.Endpoint.Addr6 = a
		}
	}
	k.locals = append(k.locals, l)
	return fmt.Sprintf("endpoint %d\n", l.Number)
}

func (k *talk) apply(t *testing.T, doc []byte) {
	t.Helper()
	var meta struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
	}
	read := func(into any) {
		if err := yaml.Unmarshal(doc, into); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
	}
	read(&meta)
	name := types.NamespacedName{Namespace: meta.Namespace, Name: meta.Name}
	switch meta.Kind {
	case "Namespace":
		k.cluster.Namespaces[meta.Name] = new(corev1.Namespace)
		read(k.cluster.Namespaces[meta.Name])
	case "Pod":
		k.cluster.Pods[name] = new(Pod)
		read(k.cluster.Pods[name])
	case "Service":
		k.cluster.Services[name] = new(corev1.Service)
		read(k.cluster.Services[name])
	case "NetworkPolicy":
		k.cluster.NetworkPolicies[name] = new(networkingv1.NetworkPolicy)
		read(k.cluster.NetworkPolicies[name])
	default:
		t.Fatalf("kind %q", meta.Kind)
	}
}

func (k *talk) compile() string {
	before := k.ids.Changed()
	r := Compile(k.cluster, k.node, k.locals, k.ids)
	var b bytes.Buffer
	b.WriteString(r.State.Text())
	for _, v := range r.Identities {
		fmt.Fprintf(&b, "identity %d is %s, %d pods\n", v.Number, v.Labels.String(), v.Pods)
	}
	for _, p := range slices.SortedFunc(maps.Keys(r.Blocks), comparePrefixes) {
		fmt.Fprintf(&b, "block %d is %s\n", r.Blocks[p]&^(1<<31), p)
	}
	for _, id := range rulesIn(r.State) {
		rule, _ := k.ids.Rule(id)
		fmt.Fprintf(&b, "rule %d is %s\n", id, rule)
	}
	for _, p := range r.Errors {
		fmt.Fprintf(&b, "error %s\n", p)
	}
	for _, p := range r.Warnings {
		fmt.Fprintf(&b, "warning %s\n", p)
	}
	if k.ids.Changed() == before {
		b.WriteString("nothing allocated\n")
	}
	return b.String()
}

func rulesIn(s *datapath.State) []uint32 {
	ids := map[uint32]bool{}
	for _, r := range s.Rulesets {
		ids[r.Default] = true
		for _, g := range r.Groups {
			for _, id := range g.Rules {
				ids[id] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

func (k *talk) explain(t *testing.T, words []string) string {
	t.Helper()
	family := 4
	if len(words) > 3 {
		family, _ = strconv.Atoi(words[3])
	}
	for _, end := range words[:2] {
		if _, err := ParseEnd(k.cluster, k.locals, end, family); err != nil {
			return err.Error() + "\n"
		}
	}
	tuple := k.tuple(t, words, family)
	a := Explain(k.cluster, k.node, tuple)
	var b strings.Builder
	fmt.Fprintf(&b, "forwarded: %v\n", a.Forwarded)
	for i, side := range []*Side{a.Egress, a.Ingress} {
		if side == nil {
			fmt.Fprintf(&b, "%s: no pod\n", datapath.Direction(i))
			continue
		}
		fmt.Fprintf(&b, "%s: %s\n", datapath.Direction(i), side.Verdict)
		for _, r := range side.Rules {
			fmt.Fprintf(&b, "  allowed by %s [%d]\n", r.Ref, r.Index)
		}
		for _, r := range side.IsolatedBy {
			fmt.Fprintf(&b, "  isolated by %s\n", r)
		}
		for _, m := range side.NearMisses {
			fmt.Fprintf(&b, "  near miss %s [%d]: %s\n", m.Ref, m.Index, m.Reason)
		}
	}
	return b.String()
}

// tuple of FROM TO PORT/PROTOCOL.
func (k *talk) tuple(t *testing.T, words []string, family int) Tuple {
	t.Helper()
	tuple := Tuple{Family: family}
	var err error
	if tuple.From, err = ParseEnd(k.cluster, k.locals, words[0], family); err != nil {
		t.Fatal(err)
	}
	if tuple.To, err = ParseEnd(k.cluster, k.locals, words[1], family); err != nil {
		t.Fatal(err)
	}
	port, protocol, _ := strings.Cut(words[2], "/")
	n, _ := strconv.Atoi(port)
	tuple.Port = uint16(n)
	tuple.Protocol = map[string]uint8{"tcp": datapath.TCP, "udp": datapath.UDP, "sctp": datapath.SCTP, "icmp": 1}[protocol]
	return tuple
}
