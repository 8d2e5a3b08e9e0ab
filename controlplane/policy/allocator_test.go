package policy

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

func TestNumbersSurviveARestart(t *testing.T) {
	k := semanticsTalk(t, `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}, {podSelector: {}}], ports: [{port: web}]}], egress: [{ports: [{port: web}]}]}`)
	before := Compile(k.cluster, k.node, k.locals, k.ids).State.Text()
	text, err := json.Marshal(k.ids)
	if err != nil {
		t.Fatal(err)
	}
	again := NewAllocator()
	if err := json.Unmarshal(text, again); err != nil {
		t.Fatal(err)
	}
	if after := Compile(k.cluster, k.node, k.locals, again).State.Text(); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
	if again.Changed() != 0 {
		t.Errorf("%d numbers given out again", again.Changed())
	}
	for id := uint32(1); id <= datapath.RuleFirst+2; id++ {
		was, ok := k.ids.Rule(id)
		if is, too := again.Rule(id); ok != too || !reflect.DeepEqual(was, is) {
			t.Errorf("rule %d was %+v, is %+v", id, was, is)
		}
	}
}

func TestBrokenTablesAreRefused(t *testing.T) {
	for _, text := range []string{`{`, `[]`, `{"ruleIDs":{"next":3,"ids":{}}}`} {
		a := NewAllocator()
		a.identity(identity.Labels{Namespace: "x"})
		if err := json.Unmarshal([]byte(text), a); err == nil {
			t.Errorf("%s: read", text)
		}
		if _, ok := a.Identity(identity.Preferred("x,")); !ok {
			t.Errorf("%s: forgot what was there", text)
		}
	}
}

func TestCollidingLabelsGetTheNextNumber(t *testing.T) {
	a := NewAllocator()
	want := identity.Preferred("x,")
	a.identities[want] = identity.Labels{Namespace: "squatter"}
	if n := a.identity(identity.Labels{Namespace: "x"}); n != want+1 {
		t.Errorf("got %d, want %d", n, want+1)
	}
	if l, ok := a.Identity(want + 1); !ok || l.Namespace != "x" {
		t.Errorf("%d is %+v", want+1, l)
	}
}

func TestReservedRulesHaveNames(t *testing.T) {
	for id, kind := range map[uint32]string{
		datapath.RuleNode: KindNode, datapath.RuleSelf: KindSelf,
		datapath.RuleNotIsolated: KindNotIsolated, datapath.RuleNodeEgress: KindNodeEgress,
	} {
		if r, ok := NewAllocator().Rule(id); !ok || r.Kind != kind || r.ID != id {
			t.Errorf("rule %d is %+v", id, r)
		}
	}
	if _, ok := NewAllocator().Rule(datapath.RuleNone); ok {
		t.Error("rule 0 is something")
	}
}

// An edit gives a new id to what it edits: flows of the old rule keep naming it.
func TestEditedRulesGetNewIDs(t *testing.T) {
	spec := `{podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 81}]}]}`
	k := semanticsTalk(t, spec)
	first := rulesIn(Compile(k.cluster, k.node, k.locals, k.ids).State)
	edited := strings.Replace(spec, "81", "82", 1)
	k.answer(t, "apply\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: "+edited)
	second := rulesIn(Compile(k.cluster, k.node, k.locals, k.ids).State)
	fresh := 0
	for _, id := range second {
		if id > first[len(first)-1] {
			fresh++
		}
	}
	if fresh != 1 || len(second) != len(first) {
		t.Errorf("rules were %v, are %v", first, second)
	}
	for _, id := range first {
		if _, ok := k.ids.Rule(id); !ok {
			t.Errorf("rule %d is forgotten", id)
		}
	}
}

func TestAnAddressOfTwoPodsIsTheFirstOnes(t *testing.T) {
	k := semanticsTalk(t, `{podSelector: {}}`)
	k.answer(t, "apply\nkind: Pod\nmetadata: {name: late, namespace: x}\nstatus: {podIP: 10.0.0.2}")
	r := Compile(k.cluster, k.node, k.locals, k.ids)
	if p := r.State.Peers[netip.MustParsePrefix("10.0.0.2/32")]; p.Endpoint != 2 {
		t.Errorf("10.0.0.2 is %+v", p)
	}
	if len(r.Warnings) != 1 || r.Warnings[0].Name != "late" {
		t.Errorf("warnings %v", r.Warnings)
	}
}

func TestAnInterfaceWithoutPodHasNoRulesets(t *testing.T) {
	k := semanticsTalk(t, `{podSelector: {}}`)
	k.attach("x/stranger", []string{"10.0.0.77"})
	r := Compile(k.cluster, k.node, k.locals, k.ids)
	if ep := r.State.Endpoints[4]; ep.Egress != 0 || ep.Ingress != 0 {
		t.Errorf("stranger has rulesets %d, %d", ep.Egress, ep.Ingress)
	}
	if p := r.State.Peers[netip.MustParsePrefix("10.0.0.77/32")]; p.Identity != identity.Unmanaged || p.Endpoint != 4 {
		t.Errorf("its address is %+v", p)
	}
	if len(r.Warnings) != 1 || r.Warnings[0].Name != "stranger" {
		t.Errorf("warnings %v", r.Warnings)
	}
}
