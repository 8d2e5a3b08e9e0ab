package endpoint

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/statedir"
)

const (
	folder      = "endpoints"
	numbersFile = "endpoint-numbers.json"
)

// Store is the records, in memory and in the state directory. Safe for concurrent use.
type Store struct {
	dir *statedir.Dir

	mu      sync.Mutex
	numbers numbers
	records map[uint32]*Record
	sorted  []*Record       // records by number, nil: made when asked for
	held    map[uint32]bool // numbers that Remove took away and Release has not freed
}

// Any reports whether a state directory has records.
func Any(dir *statedir.Dir) (bool, error) {
	files, err := dir.List(folder)
	return len(files) > 0, err
}

// Open reads the records of a state directory. A file that cannot be read is skipped
// and part of the error, next to a Store that works: its endpoint will be removed.
func Open(dir *statedir.Dir) (*Store, error) {
	s := &Store{dir: dir, records: map[uint32]*Record{}, held: map[uint32]bool{}}
	_, err := dir.Load(numbersFile, &s.numbers)
	errs := []error{err}
	files, err := dir.List(folder)
	errs = append(errs, err)
	for _, f := range files {
		r := &Record{}
		if _, err := dir.Load(f, r); err != nil {
			errs = append(errs, err)
			continue
		}
		if fileOf(r.Number) != f || r.Number == 0 || r.Number > MaxNumber || r.LastPod == nil {
			errs = append(errs, fmt.Errorf("load %s: it is no endpoint's record", dir.Path(f)))
			continue
		}
		s.records[r.Number] = r
	}
	return s, errors.Join(errs...)
}

func fileOf(number uint32) string {
	return filepath.Join(folder, strconv.FormatUint(uint64(number), 10)+".json")
}

// All records, by number. Every commit asks: the slice is everybody's, not to be changed.
func (s *Store) All() []*Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sorted == nil {
		s.sorted = slices.Clip(slices.SortedFunc(maps.Values(s.records), func(a, b *Record) int { return cmp.Compare(a.Number, b.Number) }))
	}
	return s.sorted
}

// Find returns the record of an attachment, nil if there is none.
func (s *Store) Find(a api.Attachment) *Record {
	for _, r := range s.All() {
		if r.Attachment() == a {
			return r
		}
	}
	return nil
}

// Add gives a record a number and saves it. busy says of a number whether something
// still refers to it, flows of the pod that had it above all. The same interface again
// is its record of before, not fresh; an interface or address that another has is an error.
func (s *Store) Add(r *Record, busy func(number uint32) bool) (added *Record, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.records {
		if o.Attachment() == r.Attachment() && o.Same(r) {
			return o, false, nil
		}
		if o.Attachment() == r.Attachment() {
			return nil, false, fmt.Errorf("container %s has %s already, for pod %s with %s and another configuration",
				short(r.ContainerID), r.IfName, o.Pod(), o.HostIfName)
		}
		if what := r.Conflict(o); what != "" {
			return nil, false, &ConflictError{What: what, With: o}
		}
	}
	number, err := s.numbers.next(func(n uint32) bool { return s.records[n] == nil && !s.held[n] && !busy(n) })
	if err != nil {
		return nil, false, err
	}
	numbered := *r
	numbered.Number = number
	if err := s.dir.Save(numbersFile, numbers{Last: number}); err != nil {
		return nil, false, err
	}
	if err := s.dir.Save(fileOf(number), &numbered); err != nil {
		return nil, false, err
	}
	s.numbers.Last, s.records[number], s.sorted = number, &numbered, nil
	return &numbered, true, nil
}

// ConflictError says that another endpoint has what a new one asks for.
type ConflictError struct {
	What string
	With *Record
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s belongs to pod %s (container %s)", e.What, e.With.Pod(), short(e.With.ContainerID))
}

// Update saves a record in place of the one of its number and attachment, if that is
// still there.
func (s *Store) Update(r *Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.records[r.Number]; o == nil || o.Attachment() != r.Attachment() {
		return nil
	}
	if err := s.dir.Save(fileOf(r.Number), r); err != nil {
		return err
	}
	s.records[r.Number], s.sorted = r, nil
	return nil
}

// Remove forgets a record, on disk first; one that is gone is no error. Its number is
// given out again only after Release.
func (s *Store) Remove(r *Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.records[r.Number]; o == nil || o.Attachment() != r.Attachment() {
		return nil
	}
	if err := s.dir.Remove(fileOf(r.Number)); err != nil {
		return err
	}
	delete(s.records, r.Number)
	s.sorted = nil
	s.held[r.Number] = true
	return nil
}

// Release frees the number of a removed record: the kernel has forgotten it.
func (s *Store) Release(number uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, number)
}

// Held are the numbers of removed records that are not released.
func (s *Store) Held() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.held))
}

func short(containerID string) string { return containerID[:min(len(containerID), 12)] }
