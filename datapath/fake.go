package datapath

import (
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
	f.commits++
	if f.state == nil || needsEpoch(f.state, s) {
		f.epoch++
	}
	f.state = s
	return f.epoch, nil
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
