package hubble

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirnet/weir/controlplane/api"
)

// State is what the agent enforces, for agent events; changed is closed once it may be
// another. Policies that did not change are the same list.
type State func() (endpoints []api.Endpoint, policies []api.Policy, changed <-chan struct{})

const (
	eventsKept = 1024
	// settle is how long changes are let gather: what came and went in it was not there.
	settle = time.Second
)

// events are the newest of what happened to the agent. One writer, any number of readers.
type events struct {
	mu   sync.Mutex
	kept []*observerpb.GetAgentEventsResponse
	next uint64 // number of the next one
	wake chan struct{}
}

func newEvents() *events { return &events{wake: make(chan struct{})} }

func (e *events) add(all ...*observerpb.GetAgentEventsResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept = append(e.kept, all...)
	e.kept = slices.Clone(e.kept[max(0, len(e.kept)-eventsKept):]) // readers have the old one
	e.next += uint64(len(all))
	close(e.wake)
	e.wake = make(chan struct{})
}

// from are those kept from a number on, and what to wait for more.
func (e *events) from(number uint64) (out []*observerpb.GetAgentEventsResponse, next uint64, wake <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	oldest := e.next - uint64(len(e.kept))
	if number < e.next {
		out = e.kept[max(number, oldest)-oldest:]
	}
	return out, e.next, e.wake
}

// watchEvents notes what changes, until ctx is over.
func (s *Server) watchEvents(ctx context.Context) error {
	endpoints, policies, changed := s.State()
	s.note(time.Now(), flowpb.AgentEventType_AGENT_STARTED, &flowpb.AgentEvent{
		Notification: &flowpb.AgentEvent_AgentStart{AgentStart: &flowpb.TimeNotification{Time: timestamppb.New(s.Flows.Begun())}},
	})
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		e, p, again := s.State()
		s.compareEndpoints(endpoints, e)
		if !sameList(policies, p) {
			s.comparePolicies(policies, p)
		}
		endpoints, policies, changed = e, p, again
	}
}

// sameList: most changes are of pods, and there may be many policies.
func sameList(a, b []api.Policy) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (s *Server) note(at time.Time, kind flowpb.AgentEventType, e *flowpb.AgentEvent) {
	e.Type = kind
	s.events.add(&observerpb.GetAgentEventsResponse{AgentEvent: e, NodeName: s.Node, Time: timestamppb.New(at)})
}

// compare calls gone and new for what is in one list alone, by key, in the lists' order.
func compare[T any](before, after []T, key func(T) string, gone, fresh func(T)) {
	index := func(all []T) map[string]bool {
		m := map[string]bool{}
		for _, v := range all {
			m[key(v)] = true
		}
		return m
	}
	was, is := index(before), index(after)
	for _, v := range before {
		if !is[key(v)] {
			gone(v)
		}
	}
	for _, v := range after {
		if !was[key(v)] {
			fresh(v)
		}
	}
}

func (s *Server) compareEndpoints(before, after []api.Endpoint) {
	tell := func(kind flowpb.AgentEventType) func(api.Endpoint) {
		return func(e api.Endpoint) {
			var labels []string
			for _, l := range e.Labels {
				if !strings.Contains(l, ":") { // the pod's own
					labels = append(labels, "k8s:"+l)
				}
			}
			s.note(time.Now(), kind, &flowpb.AgentEvent{Notification: &flowpb.AgentEvent_EndpointUpdate{EndpointUpdate: &flowpb.EndpointUpdateNotification{
				Id: uint64(e.Number), Labels: labels, PodName: e.PodName, Namespace: e.PodNamespace,
			}}})
		}
	}
	key := func(e api.Endpoint) string { return fmt.Sprint(e.Number, e.PodNamespace, "/", e.PodName) }
	compare(before, after, key, tell(flowpb.AgentEventType_ENDPOINT_DELETED), tell(flowpb.AgentEventType_ENDPOINT_CREATED))
}

func (s *Server) comparePolicies(before, after []api.Policy) {
	tell := func(kind flowpb.AgentEventType) func(api.Policy) {
		return func(p api.Policy) {
			s.note(time.Now(), kind, &flowpb.AgentEvent{Notification: &flowpb.AgentEvent_PolicyUpdate{PolicyUpdate: &flowpb.PolicyUpdateNotification{
				Labels: []string{
					"k8s:io.cilium.k8s.policy.derived-from=" + p.Kind, "k8s:io.cilium.k8s.policy.name=" + p.Name, "k8s:io.cilium.k8s.policy.namespace=" + p.Namespace,
				},
				Revision: p.Revision, RuleCount: int64(p.Ingress + p.Egress),
			}}})
		}
	}
	name := func(p api.Policy) string { return p.Kind + " " + p.Namespace + "/" + p.Name }
	compare(before, after, name, tell(flowpb.AgentEventType_POLICY_DELETED), func(api.Policy) {})
	content := func(p api.Policy) string { return fmt.Sprint(name(p), p.Revision) }
	compare(before, after, content, func(api.Policy) {}, tell(flowpb.AgentEventType_POLICY_UPDATED))
}

// GetAgentEvents implements observerpb.ObserverServer.
func (o *observer) GetAgentEvents(req *observerpb.GetAgentEventsRequest, stream observerpb.Observer_GetAgentEventsServer) error {
	since, until, err := period(req)
	if err != nil {
		return err
	}
	return o.server.stream(stream.Context(), func(ctx context.Context, w *watch) error {
		wanted := func(all []*observerpb.GetAgentEventsResponse) (out []*observerpb.GetAgentEventsResponse) {
			for _, e := range all {
				if at := e.GetTime().AsTime(); !at.Before(since) && (until.IsZero() || !at.After(until)) {
					out = append(out, e)
				}
			}
			return out
		}
		kept, next, wake := o.server.events.from(0)
		out := wanted(kept)
		if n := req.GetNumber(); req.GetFollow() && n == 0 && since.IsZero() {
			out = nil
		} else if n > 0 && n < uint64(len(out)) {
			if req.GetFirst() {
				out = out[:n]
			} else {
				out = out[uint64(len(out))-n:]
			}
		}
		for {
			for _, e := range out {
				if err := w.during(func() error { return stream.Send(e) }); err != nil {
					return err
				}
			}
			if !req.GetFollow() {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-wake:
			}
			kept, next, wake = o.server.events.from(next)
			out = wanted(kept)
		}
	})
}
