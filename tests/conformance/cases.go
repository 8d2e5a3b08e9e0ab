package conformance

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/generator"
	networkingv1 "k8s.io/api/networking/v1"
)

// How many test cases cyclonus generates, and their steps: fewer would go unnoticed.
const (
	cyclonusCases = 230
	cyclonusSteps = 256
)

// testCase is one of cyclonus' with a name that is its own.
type testCase struct {
	name  string
	steps []*generator.TestStep
}

// casesAround are the cases whose address blocks lie around an address, in their order.
func casesAround(a netip.Addr) []testCase {
	const allowDNS = true
	var out []testCase
	for i, c := range generator.NewTestCaseGenerator(allowDNS, a.String(), namespaces, nil, nil).GenerateTestCases() {
		out = append(out, testCase{fmt.Sprintf("%03d %s", i+1, c.Description), c.Steps})
	}
	return out
}

// sixFold are those of the cases that name address blocks, with IPv6 blocks in them. cases
// are made around an IPv6 address; what blocks of IPv4 they have are cyclonus' constants.
func sixFold(cases []testCase) []testCase {
	var out []testCase
	for _, c := range cases {
		blocks, six := 0, testCase{name: c.name + ", blocks of IPv6"}
		for _, s := range c.steps {
			step := generator.NewTestStep(s.Probe)
			for _, a := range s.Actions {
				step.Actions = append(step.Actions, sixFoldAction(a, &blocks))
			}
			six.steps = append(six.steps, step)
		}
		if blocks > 0 {
			out = append(out, six)
		}
	}
	return out
}

func sixFoldAction(a *generator.Action, blocks *int) *generator.Action {
	switch {
	case a.CreatePolicy != nil:
		return generator.CreatePolicy(sixFoldPolicy(a.CreatePolicy.Policy, blocks))
	case a.UpdatePolicy != nil:
		return generator.UpdatePolicy(sixFoldPolicy(a.UpdatePolicy.Policy, blocks))
	}
	return a
}

func sixFoldPolicy(np *networkingv1.NetworkPolicy, blocks *int) *networkingv1.NetworkPolicy {
	np = np.DeepCopy() // cases share their blocks
	for _, r := range np.Spec.Ingress {
		sixFoldPeers(r.From, blocks)
	}
	for _, r := range np.Spec.Egress {
		sixFoldPeers(r.To, blocks)
	}
	return np
}

var counterparts = map[string]string{"0.0.0.0/0": "::/0", "0.0.0.0/31": "::/127"}

func sixFoldPeers(peers []networkingv1.NetworkPolicyPeer, blocks *int) {
	for _, p := range peers {
		if p.IPBlock == nil {
			continue
		}
		*blocks++
		if six, ok := counterparts[p.IPBlock.CIDR]; ok {
			p.IPBlock.CIDR = six
		}
		if !strings.Contains(p.IPBlock.CIDR, ":") {
			panic("no IPv6 counterpart of " + p.IPBlock.CIDR)
		}
	}
}
