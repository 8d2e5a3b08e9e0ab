package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/policy"
)

var _ api.Endpoints = (*Agent)(nil)

// commitWait bounds what a call waits for its commit, undoWait for that of an undo. A pod starts
// also where others were not told of it within announceWait.
const (
	announceWait = 500 * time.Millisecond
	commitWait   = 1500 * time.Millisecond
	undoWait     = 5 * time.Second
)

// AddEndpoint implements api.Endpoints: it waits for the pod's object, gives the
// interface a number, commits, and answers.
func (a *Agent) AddEndpoint(ctx context.Context, req api.AddRequest) (api.Endpoint, error) {
	r, err := endpoint.FromRequest(req)
	if err != nil {
		return api.Endpoint{}, &api.Error{Code: api.CodeInvalid, Message: err.Error()}
	}
	if ok, err := a.Network.Has(r.HostIfindex, r.HostIfName); err != nil || !ok {
		return api.Endpoint{}, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf(
			"hostIfindex: the agent's network namespace has no interface %d with the name %s", r.HostIfindex, r.HostIfName)}
	}
	pod, err := a.awaitPod(ctx, r)
	if err != nil {
		return api.Endpoint{}, err
	}
	r = r.WithPod(pod)
	told := a.tellOthers(ctx, r)
	if err := a.awaitPolicies(ctx, r); err != nil {
		return api.Endpoint{}, err
	}
	added, fresh, err := a.insert(ctx, r)
	if err != nil {
		return api.Endpoint{}, &api.Error{Code: api.CodeInternal, Message: fmt.Sprintf("add pod %s: %v", r.Pod(), err)}
	}
	a.begin.note(added)
	var device sync.WaitGroup
	device.Go(func() { a.detachAsDevice(added) })
	err = a.awaitEndpoint(ctx, added)
	device.Wait()
	if err != nil {
		return api.Endpoint{}, a.refuse(added, fresh, err)
	}
	<-told
	a.Log.Info("endpoint added", "endpoint", added.Number, "pod", added.Pod(), "addresses", added.Addresses(), "container", added.ContainerID)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.describe(added), nil
}

// tellOthers announces a new pod to other nodes; the channel is closed when that is over.
func (a *Agent) tellOthers(ctx context.Context, r *endpoint.Record) <-chan struct{} {
	over := make(chan struct{})
	if a.Announce == nil {
		close(over)
		return over
	}
	go func() {
		defer close(over)
		ctx, cancel := context.WithTimeout(ctx, announceWait)
		defer cancel()
		if err := a.Announce(ctx, r); err != nil {
			a.Log.Warn("other nodes may drop a new pod's packets until its object has its addresses", "pod", r.Pod(), "error", err)
		}
	}()
	return over
}

// awaitPod returns the object of the pod that r is for.
func (a *Agent) awaitPod(ctx context.Context, r *endpoint.Record) (*policy.Pod, error) {
	wait, cancel := context.WithTimeout(ctx, a.AddWait)
	defer cancel()
	var pod *policy.Pod
	var other types.UID
	err := a.await(wait, func() (bool, error) {
		pod, other = nil, ""
		if a.input.update == nil {
			return false, nil
		}
		pod = a.input.cluster.Pods[r.Pod()]
		if pod != nil && pod.UID != "" && r.UID != "" && string(pod.UID) != r.UID {
			pod, other = nil, pod.UID
		}
		return pod != nil, nil
	})
	switch {
	case err == nil:
		return pod, nil
	case ctx.Err() != nil:
		return nil, &api.Error{Code: api.CodeTryLater, Message: fmt.Sprintf("pod %s: the caller went away", r.Pod())}
	case other != "":
		return nil, &api.Error{Code: api.CodeTryLater, Message: fmt.Sprintf(
			"pod %s with uid %s is not in %s after %s: the one there has uid %s", r.Pod(), r.UID, a.SourceName, a.AddWait, other)}
	}
	return nil, &api.Error{Code: api.CodeTryLater, Message: fmt.Sprintf("pod %s is not in %s after %s", r.Pod(), a.SourceName, a.AddWait)}
}

// A source whose policies may come later than its pods can wait for those of a namespace.
type policySyncer interface {
	SyncPolicies(ctx context.Context, namespace string) error
}

// awaitPolicies returns when the policies that there are for the pod now are in the input:
// a new pod is never open for want of news.
func (a *Agent) awaitPolicies(ctx context.Context, r *endpoint.Record) error {
	source, ok := a.Source.(policySyncer)
	if !ok {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, a.AddWait)
	defer cancel()
	if err := source.SyncPolicies(wait, r.Namespace); err != nil {
		return &api.Error{Code: api.CodeTryLater, Message: fmt.Sprintf("pod %s: %v", r.Pod(), err)}
	}
	return nil
}

// insert gives r a number. What another endpoint left behind makes way: a DEL that no
// agent heard of, whose interface is gone.
func (a *Agent) insert(ctx context.Context, r *endpoint.Record) (added *endpoint.Record, fresh bool, err error) {
	for {
		added, fresh, err = a.records.Add(r, a.busy)
		var conflict *endpoint.ConflictError
		if !errors.As(err, &conflict) {
			return added, fresh, err
		}
		alive, failed := a.Network.Has(conflict.With.HostIfindex, conflict.With.HostIfName)
		if failed != nil || alive {
			return nil, false, err
		}
		a.Log.Info("collect endpoint: its interface is gone", "endpoint", conflict.With.Number, "pod", conflict.With.Pod())
		if err := a.remove(ctx, conflict.With); err != nil {
			return nil, false, err
		}
	}
}

// busy reports whether flows may still refer to an endpoint number.
func (a *Agent) busy(number uint32) bool {
	n, err := a.Kernel.FlowsOf(number)
	return err != nil || n > 0
}

// awaitEndpoint commits and returns when r is enforced. A caller that left meanwhile is
// an error too: nobody would ever delete the endpoint.
func (a *Agent) awaitEndpoint(ctx context.Context, r *endpoint.Record) error {
	change := a.change(func(*input) {})
	wait, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	err := a.await(wait, func() (bool, error) {
		switch {
		case a.applied.change >= change && a.enforced(r.Number):
			return true, nil
		case a.applied.change >= change:
			return false, errors.New("it was deleted meanwhile")
		case a.last.change >= change:
			return false, a.last.err
		}
		return false, nil
	})
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// refuse says why r is not enforced, and removes it if this call made it.
func (a *Agent) refuse(r *endpoint.Record, fresh bool, cause error) error {
	message := fmt.Sprintf("pod %s: its policy could not be enforced: %v", r.Pod(), cause)
	if errors.Is(cause, context.DeadlineExceeded) {
		message = fmt.Sprintf("pod %s: its policy was not enforced within %s", r.Pod(), commitWait)
	}
	if fresh {
		ctx, cancel := context.WithTimeout(context.Background(), undoWait)
		defer cancel()
		if err := a.remove(ctx, r); err != nil && !errors.Is(err, cause) {
			message += fmt.Sprintf("; undo: %v", err)
		}
	}
	a.Log.Warn("endpoint not added", "error", message, "container", r.ContainerID)
	return &api.Error{Code: api.CodeTryLater, Message: message}
}

// DeleteEndpoint implements api.Endpoints. Also for an endpoint that is not there it
// waits until the kernel has what the records say: an undo may be on its way.
func (a *Agent) DeleteEndpoint(ctx context.Context, at api.Attachment) error {
	if r := a.records.Find(at); r != nil {
		return a.removeLogged(ctx, r)
	}
	if len(a.records.Held()) == 0 {
		return nil
	}
	return a.remove(ctx)
}

// GC implements api.Endpoints.
func (a *Agent) GC(ctx context.Context, req api.GCRequest) error {
	valid := map[api.Attachment]bool{}
	for _, at := range req.Valid {
		valid[at] = true
	}
	var gone []*endpoint.Record
	for _, r := range a.records.All() {
		if !valid[r.Attachment()] {
			gone = append(gone, r)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return a.removeLogged(ctx, gone...)
}

func (a *Agent) removeLogged(ctx context.Context, records ...*endpoint.Record) error {
	for _, r := range records {
		a.Log.Info("endpoint deleted", "endpoint", r.Number, "pod", r.Pod(), "container", r.ContainerID)
	}
	return a.remove(ctx, records...)
}

// remove takes endpoints out of the records and the kernel; no program knows them any
// more when it returns, so their addresses may be given to others.
func (a *Agent) remove(ctx context.Context, records ...*endpoint.Record) error {
	var errs []error
	for _, r := range records {
		errs = append(errs, a.records.Remove(r))
	}
	change := a.change(func(*input) { a.hosted.lost(records, time.Now()) })
	errs = append(errs, a.await(ctx, func() (bool, error) {
		if a.applied.change >= change {
			return true, nil
		}
		if a.last.change >= change {
			return false, a.last.err
		}
		return false, nil
	}))
	errs = append(errs, a.Kernel.Grace())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	return nil
}

// Endpoints implements api.Endpoints.
func (a *Agent) Endpoints() []api.Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []api.Endpoint{}
	for _, r := range a.records.All() {
		out = append(out, a.describe(r))
	}
	return out
}

// describe is r as it is enforced; a.mu is held.
func (a *Agent) describe(r *endpoint.Record) api.Endpoint {
	e := api.Endpoint{
		Number: r.Number, PodNamespace: r.Namespace, PodName: r.Name, PodUID: r.UID,
		ContainerID: r.ContainerID, IfName: r.IfName, HostIfName: r.HostIfName, HostIfindex: r.HostIfindex, MAC: r.MAC,
		Network: r.Network, Chained: r.Chained, Labels: []string{}, Ready: a.enforced(r.Number),
	}
	for _, addr := range r.Addresses() {
		e.Addresses = append(e.Addresses, addr.String())
	}
	if !e.Ready {
		return e
	}
	v := a.applied.result.Endpoints[r.Number]
	e.Identity, e.Labels = uint32(v.Identity), append(e.Labels, v.Labels...)
	e.Egress, e.Ingress = describeSide(v.Sides[0]), describeSide(v.Sides[1])
	return e
}

func describeSide(s policy.SideView) api.EndpointPolicy {
	p := api.EndpointPolicy{Isolated: len(s.IsolatedBy) > 0, Ruleset: s.Ruleset}
	for _, by := range s.IsolatedBy {
		p.By = append(p.By, nameOf(by).String())
	}
	return p
}

func nameOf(r policy.Ref) types.NamespacedName {
	return types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
}
