package datapath

import (
	"fmt"
	"maps"
	"reflect"
	"sync"
)

// Fake is a Kernel in memory. Its zero value is in epoch 0 and enforces nothing; it is
// safe for concurrent use.
type Fake struct {
	// CommitErr, when set, is what Commit returns, changing nothing.
	CommitErr error
	// Flows is what FlowsOf answers, by endpoint number.
	Flows map[uint32]uint64
	// Count and Denied are what Counters and Denials answer.
	Count  Counters
	Denied []DenialCount
	// Most is what Limits answers, Room what there turns out to be.
	Most, Room Limits

	mu      sync.Mutex
	epoch   uint64
	state   *State
	commits int
	graces  int
}

var _ Kernel = (*Fake)(nil)

// Commit takes s. As in the kernel, addresses that are merely added need no new epoch.
func (f *Fake) Commit(s *State) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.CommitErr != nil {
		return f.epoch, f.CommitErr
	}
	if err := f.full(s); err != nil {
		return f.epoch, err
	}
	s = s.clone()
	f.commits++
	if f.state == nil || needsEpoch(f.state, s) {
		f.epoch++
	}
	f.state = s
	return f.epoch, nil
}

// CommitDelta takes s, but not a delta that lacks something.
func (f *Fake) CommitDelta(s *State, d *Delta) (uint64, error) {
	f.mu.Lock()
	follow := f.state.clone()
	f.mu.Unlock()
	follow.follow(d, s)
	if diff := follow.differs(s); diff != "" {
		return 0, fmt.Errorf("the delta lacks something of %s", diff)
	}
	return f.Commit(s)
}

// clone has maps of its own: those of a State that is handed over may change with the next.
func (s *State) clone() *State {
	out := *s
	out.Endpoints, out.Peers, out.Facts, out.Rulesets = maps.Clone(s.Endpoints), maps.Clone(s.Peers), maps.Clone(s.Facts), maps.Clone(s.Rulesets)
	out.Frontends, out.Services, out.Origins, out.Ways = maps.Clone(s.Frontends), maps.Clone(s.Services), maps.Clone(s.Origins), maps.Clone(s.Ways)
	return &out
}

// follow makes s what d says it is to be.
func (s *State) follow(d *Delta, is *State) {
	s.Endpoints = is.Endpoints
	if d.Origins {
		s.Origins = is.Origins
	}
	if d.Ways {
		s.Ways = is.Ways
	}
	take(s.Peers, is.Peers, d.Peers)
	take(s.Facts, is.Facts, d.Facts)
	take(s.Rulesets, is.Rulesets, d.Rulesets)
	take(s.Frontends, is.Frontends, d.Frontends)
	take(s.Services, is.Services, d.Services)
}

func take[K comparable, V any](into, from map[K]V, keys []K) {
	for _, k := range keys {
		if v, ok := from[k]; ok {
			into[k] = v
		} else {
			delete(into, k)
		}
	}
}

func (s *State) differs(is *State) string {
	for _, part := range []struct {
		name    string
		was, is any
	}{
		{"peers", s.Peers, is.Peers}, {"facts", s.Facts, is.Facts}, {"rulesets", s.Rulesets, is.Rulesets},
		{"frontends", s.Frontends, is.Frontends}, {"services", s.Services, is.Services}, {"origins", s.Origins, is.Origins},
		{"ways", s.Ways, is.Ways},
	} {
		if was, is := reflect.ValueOf(part.was), reflect.ValueOf(part.is); was.Len()+is.Len() > 0 && !reflect.DeepEqual(part.was, part.is) {
			return part.name
		}
	}
	return ""
}

func (f *Fake) full(s *State) error {
	need := s.Size()
	for i, room := range f.Room.Values() {
		if n := *need.Values()[i]; *room > 0 && n > *room {
			return &FullError{Map: need.Maps()[i], Size: *room, Need: n}
		}
	}
	return nil
}

func needsEpoch(was, is *State) bool {
	if !maps.Equal(was.Endpoints, is.Endpoints) || !maps.Equal(was.Frontends, is.Frontends) {
		return true
	}
	for x, peer := range is.Peers {
		if old, ok := was.Peers[x]; ok && old != peer || !ok && !x.IsSingleIP() {
			return true
		}
	}
	for x := range was.Peers {
		if _, ok := is.Peers[x]; !ok {
			return true
		}
	}
	for id, r := range is.Rulesets {
		if old, ok := was.Rulesets[id]; ok && !reflect.DeepEqual(old, r) {
			return true
		}
	}
	return false
}

// Limits implements Kernel.
func (f *Fake) Limits() Limits { return f.Most }

// State is the last one committed, nil before the first.
func (f *Fake) State() *State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// Text is the last State as text, "" before the first.
func (f *Fake) Text() string {
	if s := f.State(); s != nil {
		return s.Text()
	}
	return ""
}

// Commits is how many States were taken.
func (f *Fake) Commits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commits
}

// Graces is how often Grace was called.
func (f *Fake) Graces() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.graces
}

// SetFlows makes FlowsOf answer n for an endpoint number.
func (f *Fake) SetFlows(endpoint uint32, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Flows == nil {
		f.Flows = map[uint32]uint64{}
	}
	f.Flows[endpoint] = n
}

// SetDenials makes Denials answer d.
func (f *Fake) SetDenials(d []DenialCount) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Denied = d
}

// SetCommitErr makes Commit fail with err, or work again with nil.
func (f *Fake) SetCommitErr(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.CommitErr = err
}

// Epoch implements Kernel.
func (f *Fake) Epoch() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch
}

// Grace implements Kernel: nothing runs here.
func (f *Fake) Grace() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.graces++
	return nil
}

// Counters implements Kernel.
func (f *Fake) Counters() (Counters, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Count, nil
}

// Denials implements Kernel.
func (f *Fake) Denials() ([]DenialCount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]DenialCount(nil), f.Denied...), nil
}

// FlowsOf implements Kernel.
func (f *Fake) FlowsOf(endpoint uint32) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Flows[endpoint], nil
}
