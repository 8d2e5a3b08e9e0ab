package format

import (
	"fmt"
	"strings"
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/weirnet/weir/controlplane/api"
)

// A namespace of many policies does not bury the line; the block names all, and says how to
// find the one that is wrong.
func TestManyPolicies(t *testing.T) {
	f := &flowpb.Flow{
		Verdict: flowpb.Verdict_DROPPED, IP: &flowpb.IP{Source: "192.0.2.9", Destination: "10.0.0.2"}, Summary: "TCP Flags: SYN",
		L4:          &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: 40001, DestinationPort: 80}}},
		Destination: &flowpb.Endpoint{Namespace: "shop", PodName: "web"},
	}
	for n, want := range map[int]string{
		6:  "denied by default deny of shop/p0, shop/p1, shop/p2, shop/p3, shop/p4, shop/p5 (ingress)",
		33: "denied by default deny of shop/p0, shop/p1, shop/p2, shop/p3 and 29 more (ingress)",
	} {
		r := &api.FlowRule{Verdict: "DROPPED", Kind: "default-deny"}
		for i := range n {
			r.IsolatedBy = append(r.IsolatedBy, api.Ref{Namespace: "shop", Name: fmt.Sprintf("p%d", i)})
		}
		x := api.FlowExtension{Kind: api.FlowDenied, Reason: "policy", Ingress: r}
		if got := why(f, x); got != want {
			t.Errorf("%d: %s", n, got)
		}
		if got := sideText(r); !strings.HasSuffix(got, fmt.Sprintf(", shop/p%d", n-1)) {
			t.Errorf("%d: not all: %s", n, got)
		}
		if got, want := explain(f, x), "weir policy explain --from 192.0.2.9 --to shop/web --port 80/tcp"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// What is to be typed is from the network: no command where a name could be more than one.
func TestExplainIsSafeToType(t *testing.T) {
	f := &flowpb.Flow{
		IP: &flowpb.IP{Source: "192.0.2.9", Destination: "10.0.0.2"}, Summary: "ICMPv4 EchoRequest",
		Destination: &flowpb.Endpoint{Namespace: "shop", PodName: "web"},
	}
	x := api.FlowExtension{Kind: api.FlowDenied, Reason: "policy"}
	if got := explain(f, x); !strings.HasSuffix(got, "--port icmp") {
		t.Errorf("%q", got)
	}
	for _, name := range []string{"web; reboot", "$(reboot)", "web\n", ""} {
		g := &flowpb.Flow{IP: &flowpb.IP{Source: "192.0.2.9"}, Summary: "ICMPv4 EchoRequest", Destination: &flowpb.Endpoint{Namespace: "shop", PodName: name}}
		if got := explain(g, x); got != "" {
			t.Errorf("%q: %q", name, got)
		}
	}
	if got := explain(f, api.FlowExtension{Kind: api.FlowDenied, Reason: "spoofed source"}); got != "" {
		t.Errorf("not policy's: %q", got)
	}
}

func TestLasted(t *testing.T) {
	for s, want := range map[float64]string{0: "less than 100ms", 0.0951: "less than 100ms", 0.98382: "1s", 1.23456: "1.2s", 59.97: "1m0s", 75.4: "1m15s"} {
		if got := lasted(s); got != want {
			t.Errorf("lasted(%v) = %s, want %s", s, got, want)
		}
	}
}
