package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/lab"
)

// records holds what the flow log says of denials against what the reference says. The log
// records a pod's first denials of each second; the rest it counts.
type records struct {
	mu       sync.Mutex
	byEpoch  map[uint64]map[string]expectation // denied questions, by what a record shows of them
	checked  int
	problems []string
	stop     func()
	ended    chan error
}

// follow begins to read the log.
func follow(agent *api.Client) *records {
	ctx, cancel := context.WithCancel(context.Background())
	r := &records{byEpoch: map[uint64]map[string]expectation{}, stop: cancel, ended: make(chan error, 1)}
	query := api.FlowQuery{Follow: true, Kinds: []string{api.FlowDenied}}
	go func() { r.ended <- agent.Flows(ctx, query.Values(), r.take) }()
	return r
}

// end stops reading.
func (r *records) end() error {
	r.stop()
	if err := <-r.ended; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("follow the flow log: %w", err)
	}
	return nil
}

// expect says what records of an epoch may show, before its packets are sent.
func (r *records) expect(epoch uint64, expected []expectation) {
	denied := map[string]expectation{}
	for _, e := range expected {
		if !e.allowed() {
			denied[shown(e.fromAddr.String(), e.toAddr.String(), string(e.protocol), e.port)] = e
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byEpoch[epoch] = denied
}

func shown(from, to, protocol string, port int) string {
	return fmt.Sprintf("%s -> %s %d/%s", from, to, port, strings.ToLower(protocol))
}

func (r *records) take(line []byte) error {
	var m struct {
		Flow *lab.Flow      `json:"flow"`
		Lost map[string]any `json:"lost_events"`
	}
	if err := json.Unmarshal(line, &m); err != nil || m.Flow == nil && m.Lost == nil {
		return fmt.Errorf("no flow record: %s", line)
	}
	if m.Lost != nil {
		return nil // the log went on without us
	}
	x, err := m.Flow.Extension()
	if err != nil {
		return fmt.Errorf("extension of %s: %w", line, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if problem := r.check(m.Flow, x); problem != "" {
		r.problems = append(r.problems, fmt.Sprintf("%s\n  %s", problem, line))
	}
	return nil
}

// check says what is wrong with a record. Only policies may deny here.
func (r *records) check(f *lab.Flow, x api.FlowExtension) string {
	if x.Reason == datapath.ReasonKernel.String() { // the pod's own, once policy has let it in
		return ""
	}
	if x.Reason != datapath.ReasonPolicy.String() {
		return "dropped for another reason than policy"
	}
	if x.Suppressed > 0 {
		return ""
	}
	protocol, port := f.Port()
	e, ok := r.byEpoch[x.Epoch][shown(f.IP.Source, f.IP.Destination, protocol, port)]
	if !ok {
		return fmt.Sprintf("epoch %d denies nothing like it", x.Epoch)
	}
	r.checked++
	direction, side := e.denier()
	rule := x.Egress
	if direction == "INGRESS" {
		rule = x.Ingress
	}
	if f.TrafficDirection != direction || rule == nil || rule.Verdict != policy.Dropped {
		return fmt.Sprintf("want it denied by %s", direction)
	}
	if side == nil || !slices.Equal(named(side.IsolatedBy), namedByRecord(rule.IsolatedBy)) {
		return fmt.Sprintf("want it denied by %+v", side)
	}
	return ""
}

func named(refs []policy.Ref) (out []string) {
	for _, r := range refs {
		out = append(out, r.Namespace+"/"+r.Name)
	}
	return out
}

func namedByRecord(refs []api.Ref) (out []string) {
	for _, r := range refs {
		out = append(out, r.Namespace+"/"+r.Name)
	}
	return out
}

// take out what was found until now.
func (r *records) found() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.problems
	r.problems = nil
	return out
}
