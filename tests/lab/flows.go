package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/weirnet/weir/controlplane/api"
)

// Flow is what tests read of a flow record: Hubble's JSON, as a script would read it.
type Flow struct {
	Time    time.Time `json:"time"`
	Verdict string    `json:"verdict"`
	IP      struct {
		Source      string `json:"source"`
		Destination string `json:"destination"`
		Version     string `json:"ipVersion"`
	} `json:"IP"`
	L4               map[string]map[string]any `json:"l4"`
	Source           FlowEnd                   `json:"source"`
	Destination      FlowEnd                   `json:"destination"`
	Service          FlowPolicy                `json:"destination_service"`
	TrafficDirection string                    `json:"traffic_direction"`
	EgressAllowedBy  []FlowPolicy              `json:"egress_allowed_by"`
	IngressAllowedBy []FlowPolicy              `json:"ingress_allowed_by"`
	EgressDeniedBy   []FlowPolicy              `json:"egress_denied_by"`
	IngressDeniedBy  []FlowPolicy              `json:"ingress_denied_by"`
	Extensions       struct {
		Value string `json:"value"`
	} `json:"extensions"`
}

// FlowEnd is a record's source or destination; a pod has both names.
type FlowEnd struct {
	Namespace string `json:"namespace"`
	PodName   string `json:"pod_name"`
}

func (e FlowEnd) String() string { return e.Namespace + "/" + e.PodName }

// FlowPolicy is a policy that allowed or denied, or another object.
type FlowPolicy struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// Flows runs `weir flows -o json`, oldest first.
func (n *Node) Flows(ctx context.Context, args ...string) ([]Flow, error) {
	r := n.Weir(ctx, append([]string{"flows", "-o", "json"}, args...)...)
	if r.Status != 0 {
		return nil, fmt.Errorf("weir flows: exit status %d: %s", r.Status, strings.TrimSpace(r.Stderr))
	}
	var flows []Flow
	for lines := bufio.NewScanner(strings.NewReader(r.Stdout)); lines.Scan(); {
		var response struct {
			Flow *Flow `json:"flow"` // nil: some were lost
		}
		if err := json.Unmarshal(lines.Bytes(), &response); err != nil {
			return nil, fmt.Errorf("weir flows: %w: %s", err, lines.Text())
		}
		if response.Flow != nil {
			flows = append(flows, *response.Flow)
		}
	}
	return flows, nil
}

// Extension is what the record says beyond Hubble's fields.
func (f Flow) Extension() (api.FlowExtension, error) {
	var x api.FlowExtension
	err := json.Unmarshal([]byte(f.Extensions.Value), &x)
	return x, err
}

// Port is the destination port and its protocol (tcp, udp, icmpv4, icmpv6, ...).
func (f Flow) Port() (protocol string, port int) {
	for name, fields := range f.L4 {
		n, _ := fields["destination_port"].(float64)
		return strings.ToLower(name), int(n)
	}
	return "", 0
}
