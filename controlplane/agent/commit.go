package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

const (
	coalesce   = 10 * time.Millisecond // changes this soon after a commit join the next
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second

	// What did not fit is tried again this long after a change, or ten times as long as
	// compiling took: meanwhile others' changes do not wait for it.
	refitAfter = time.Second
)

// attempt is one compilation and what became of it.
type attempt struct {
	change   uint64
	revision uint64
	epoch    uint64
	err      error // of the commit: nothing changed
	warnings []string

	sourceErrors []api.ObjectError // logged by the source
	errors       []api.ObjectError // found here

	update    *source.Update  // without its objects
	cluster   *policy.Cluster // as it is enforced
	node      policy.Node
	nodes     *source.Nodes
	locals    []policy.Local
	refreshed []*endpoint.Record // their pods' objects changed
	same      []recorded         // what is found to be so now
	result    *policy.Result

	pending policy.Changes
	pods    map[types.NamespacedName]*policy.Pod // of interfaces here, now or before
	origins bool                                 // nodes are others
	ways    *ways
	inc     *policy.Incremental
	step    *policy.Step // nil: everything was compiled
	locked  bool         // a.live is
}

// outcome is t without what only its making needs.
func (t *attempt) outcome() attempt {
	out := *t
	out.same, out.refreshed, out.pending, out.pods, out.inc, out.step = nil, nil, policy.Changes{}, nil, nil, nil
	return out
}

// allErrors are those of the source first.
func (t *attempt) allErrors() []api.ObjectError {
	return append(append([]api.ObjectError{}, t.sourceErrors...), t.errors...)
}

// commitLoop commits the first change at once and what comes within the next 10 ms
// together. After an error it tries again with the next change, or later and later.
func (a *Agent) commitLoop(ctx context.Context) error {
	var retry, refit <-chan time.Time
	var begun time.Time
	delay := retryFirst
	for {
		how := changes
		select {
		case <-ctx.Done():
			return nil
		case <-a.dirty:
		case <-retry:
		case <-refit:
			how, refit = again, nil
		}
		if rest := time.Until(begun.Add(coalesce)); rest > 0 { // it does not wake up for nothing
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(rest):
			}
		}
		select { // whatever came meanwhile is compiled now
		case <-a.dirty:
		default:
		}
		begun = time.Now()
		t, err := a.commit(how)
		switch {
		case err != nil:
			retry = time.After(delay)
			delay = min(2*delay, retryMost)
		case t != nil:
			retry, delay = nil, retryFirst
			switch { // further changes do not put it off
			case !t.result.Remembered():
				refit = nil
			case refit == nil:
				refit = time.After(max(refitAfter, 10*time.Since(begun)))
			}
		}
	}
}

// commit makes the present input enforced; nil: it is not complete yet.
func (a *Agent) commit(how how) (*attempt, error) {
	begun := time.Now()
	t := a.attempt(how)
	if t == nil {
		return nil, nil
	}
	if t.err != nil {
		t.errors = append(t.errors, api.ObjectError{Message: t.err.Error()})
	}
	a.publish(t)
	if a.Committed != nil {
		a.Committed(time.Since(begun), t.err)
	}
	if a.Report != nil {
		update := *t.update
		update.Cluster = t.cluster
		a.Report(&update, t.result)
	}
	if t.err != nil {
		return t, t.err
	}
	a.ids.Forget()
	if err := a.versions.save(t.result); err != nil {
		a.Log.Error("a policy that is refused after a restart may isolate its pods instead of staying as it was", "error", err)
	}
	a.Log.Debug("committed", "revision", t.revision, "epoch", t.epoch, "took", time.Since(begun))
	return t, a.releaseNumbers(t)
}

// attempt compiles and commits. Where a map turns out to hold less than it ought to, it
// compiles for less.
func (a *Agent) attempt(how how) *attempt {
	limits := a.Kernel.Limits()
	for {
		t := a.compile(how, limits)
		if t == nil {
			return nil
		}
		a.names.show(t, a.records.All())
		t.epoch, t.err = a.enforce(t)
		full := new(datapath.FullError)
		limits = t.node.Limits
		less := errors.As(t.err, &full) && lessen(&limits, full.Map, t.result.State.Size())
		a.settle(t)
		if !less {
			return t
		}
		how = max(how, all)
		a.Log.Warn("compile for less", "error", full)
	}
}

// lessen lowers one limit below what a state needed; false: there is none to lower.
func lessen(limits *datapath.Limits, name string, needed datapath.Limits) bool {
	i := slices.Index(limits.Maps(), name)
	if i < 0 {
		return false
	}
	limit := *needed.Values()[i] * 7 / 8
	*limits.Values()[i] = limit
	return limit > 0
}

func (a *Agent) enforce(t *attempt) (uint64, error) {
	if err := a.saved.save(a.ids); err != nil {
		return 0, err
	}
	for _, r := range t.refreshed {
		if err := a.records.Update(r); err != nil {
			return 0, err
		}
	}
	var epoch uint64
	var err error
	if t.step != nil {
		epoch, err = a.Kernel.CommitDelta(t.result.State, t.step.Delta)
	} else {
		epoch, err = a.Kernel.Commit(t.result.State)
	}
	if err != nil {
		return 0, fmt.Errorf("commit (the last good state stays in force): %w", err)
	}
	return epoch, nil
}

// publish makes the outcome of an attempt known.
func (a *Agent) publish(t *attempt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.logErrors(a.last.errors, t.errors)
	first := a.last.change == 0
	a.last = t.outcome()
	if t.err == nil {
		a.notePolicies(t)
		a.noteBackends(t)
		a.applied = a.last
	}
	a.announce()
	if first {
		close(a.ready)
	}
}

func (a *Agent) logErrors(was, is []api.ObjectError) {
	for _, e := range is {
		if !slices.Contains(was, e) {
			a.Log.Error(e.String())
		}
	}
	for _, e := range was {
		if !slices.Contains(is, e) {
			a.Log.Info("mended: " + e.String())
		}
	}
}

// releaseNumbers lets the numbers of endpoints that are out of the kernel be given out
// again, once no program that knew them runs.
func (a *Agent) releaseNumbers(t *attempt) error {
	held := a.records.Held()
	if len(held) == 0 {
		return nil
	}
	if err := a.Kernel.Grace(); err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	for _, number := range held {
		if _, in := t.result.State.Endpoints[number]; !in {
			a.records.Release(number)
		}
	}
	return nil
}

// policyRevision is when a policy got its present content.
type policyRevision struct {
	policy   *networkingv1.NetworkPolicy
	revision uint64
}

// notePolicies remembers at which revision each policy changed; a.mu is held.
func (a *Agent) notePolicies(t *attempt) {
	if t.step != nil {
		for name := range t.step.Changed.NetworkPolicies {
			a.notePolicy(t, name)
		}
		return
	}
	for name := range t.cluster.NetworkPolicies {
		a.notePolicy(t, name)
	}
	for name := range a.since {
		a.notePolicy(t, name)
	}
}

func (a *Agent) notePolicy(t *attempt, name types.NamespacedName) {
	a.listed = nil
	is, was := t.cluster.NetworkPolicies[name], a.since[name]
	if is == nil {
		delete(a.since, name)
		return
	}
	now := policyRevision{is, t.revision}
	if was.policy == is || was.policy != nil && reflect.DeepEqual(was.policy.Spec, is.Spec) {
		now.revision = was.revision
	}
	a.since[name] = now
}
