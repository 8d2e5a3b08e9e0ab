package kube

import (
	"fmt"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// object is a pointer to an object of the API.
type object[T any] interface {
	*T
	metav1.Object
}

// shelf is what the stores of all kinds share: one lock, so that what is read of them is
// of one moment, and what counts their changes.
type shelf struct {
	sync.Mutex
	changes uint64        // of what a store hands out
	moved   chan struct{} // closed, and made anew, when a version or an object changes
	wake    chan struct{} // has one element when changes went up
}

func newShelf() *shelf {
	return &shelf{moved: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// touch wakes those who wait; the lock is held.
func (s *shelf) touch(changed bool) {
	close(s.moved)
	s.moved = make(chan struct{})
	if changed {
		s.changes++
		s.rouse()
	}
}

func (s *shelf) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// store holds the objects of one kind as its reflector says, stripped, and remembers which of
// them changed since it was asked last. A relist changes it in one step, so what vanished
// unseen goes together with what came. No object is ever changed.
type store[T any, P object[T]] struct {
	*shelf
	strip    func(P) P
	share    func(stripped P, objects int) // its parts with other objects; nil: none are alike
	objects  map[types.NamespacedName]P
	versions map[types.NamespacedName]uint64 // the resource versions of objects
	version  uint64                          // all up to it was seen
	synced   bool
	coming   map[P]bool                    // stripped, and on their way to Replace
	dirty    map[types.NamespacedName]bool // changed since they were taken
	changed  func(was, is P)               // is told of every change, unless nil

	perNamespace map[string]int // objects
}

var (
	_ cache.TransformingStore      = (*store[metav1.ObjectMeta, *metav1.ObjectMeta])(nil)
	_ cache.ResourceVersionUpdater = (*store[metav1.ObjectMeta, *metav1.ObjectMeta])(nil)
)

func newStore[T any, P object[T]](s *shelf, strip func(P) P) *store[T, P] {
	return &store[T, P]{
		shelf: s, strip: strip, perNamespace: map[string]int{},
		objects: map[types.NamespacedName]P{}, versions: map[types.NamespacedName]uint64{}, dirty: map[types.NamespacedName]bool{},
		coming: map[P]bool{},
	}
}

// Transformer implements cache.TransformingStore: a list that is on its way is held
// stripped, too, and goes into the store as it is.
func (s *store[T, P]) Transformer() cache.TransformFunc {
	return func(value any) (any, error) {
		o, ok := value.(P)
		if !ok {
			return value, nil
		}
		stripped := s.strip(o)
		s.Lock()
		defer s.Unlock()
		s.coming[stripped] = true
		if s.share != nil {
			s.share(stripped, len(s.objects)+len(s.coming))
		}
		return stripped, nil
	}
}

// seen is an object as it came. What is handed out has no version: it changes for less.
type seen[P any] struct {
	key      types.NamespacedName
	version  uint64
	stripped P
}

func (s *store[T, P]) read(value any, came map[P]bool) (seen[P], error) {
	o, ok := value.(P)
	if !ok {
		return seen[P]{}, fmt.Errorf("object of type %T", value)
	}
	version, err := parseVersion(o.GetResourceVersion())
	if err != nil {
		return seen[P]{}, err
	}
	out := seen[P]{types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, version, o}
	if !came[o] {
		out.stripped = s.strip(o)
	}
	out.stripped.SetResourceVersion("")
	return out, nil
}

// parseVersion: resource versions of the API server's own kinds are numbers that grow.
func parseVersion(text string) (uint64, error) {
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resource version %q is no number", text)
	}
	return v, nil
}

// Add implements cache.ReflectorStore.
func (s *store[T, P]) Add(value any) error { return s.Update(value) }

// Update implements cache.ReflectorStore.
func (s *store[T, P]) Update(value any) error {
	is, err := s.read(value, nil)
	if err != nil {
		return err
	}
	s.Lock()
	defer s.Unlock()
	changed := s.put(is)
	s.version = max(s.version, is.version)
	s.touch(changed)
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *store[T, P]) Delete(value any) error {
	is, err := s.read(value, nil)
	if err != nil {
		return err
	}
	s.Lock()
	defer s.Unlock()
	changed := s.remove(is.key)
	s.version = max(s.version, is.version)
	s.touch(changed)
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *store[T, P]) Replace(values []any, resourceVersion string) error {
	version, err := parseVersion(resourceVersion)
	if err != nil {
		return err
	}
	s.Lock()
	came := s.coming
	s.coming = map[P]bool{}
	s.Unlock()
	all := make([]seen[P], 0, len(values))
	there := make(map[types.NamespacedName]bool, len(values))
	for _, value := range values {
		is, err := s.read(value, came)
		if err != nil {
			return err
		}
		all = append(all, is)
		there[is.key] = true
	}
	s.Lock()
	defer s.Unlock()
	changed := !s.synced
	for _, is := range all {
		changed = s.put(is) || changed
	}
	for key := range s.objects {
		if !there[key] {
			changed = s.remove(key) || changed
		}
	}
	s.version, s.synced = version, true
	s.touch(changed)
	return nil
}

// Resync implements cache.ReflectorStore: none is asked for.
func (s *store[T, P]) Resync() error { return nil }

// UpdateResourceVersion implements cache.ResourceVersionUpdater: bookmarks.
func (s *store[T, P]) UpdateResourceVersion(resourceVersion string) {
	version, err := parseVersion(resourceVersion)
	if err != nil {
		return
	}
	s.Lock()
	defer s.Unlock()
	if version > s.version {
		s.version = version
		s.touch(false)
	}
}

// put reports whether that is a change of what is handed out; the lock is held.
func (s *store[T, P]) put(is seen[P]) bool {
	was, ok := s.objects[is.key]
	same := ok && equality.Semantic.DeepEqual(was, is.stripped)
	if !same && s.share != nil {
		s.share(is.stripped, len(s.objects))
		is.key.Namespace = is.stripped.GetNamespace() // the same text, held once
	}
	s.versions[is.key] = is.version
	if same {
		return false
	}
	if !ok {
		s.perNamespace[is.key.Namespace]++
	}
	s.objects[is.key] = is.stripped
	s.note(is.key, was, is.stripped)
	return true
}

func (s *store[T, P]) remove(key types.NamespacedName) bool {
	was, ok := s.objects[key]
	if !ok {
		return false
	}
	delete(s.objects, key)
	delete(s.versions, key)
	s.note(key, was, nil)
	if s.perNamespace[key.Namespace]--; s.perNamespace[key.Namespace] == 0 {
		delete(s.perNamespace, key.Namespace)
	}
	return true
}

func (s *store[T, P]) note(key types.NamespacedName, was, is P) {
	s.dirty[key] = true
	if s.changed != nil {
		s.changed(was, is)
	}
}

// take returns what changed since it was called last; the lock is held.
func (s *store[T, P]) take() map[types.NamespacedName]P {
	out := make(map[types.NamespacedName]P, len(s.dirty))
	for key := range s.dirty {
		out[key] = s.objects[key]
	}
	s.dirty = map[types.NamespacedName]bool{}
	return out
}

// behind reports whether a list of the API at version has what the store has not seen yet;
// the lock is held.
func (s *store[T, P]) behind(version uint64, listed map[types.NamespacedName]uint64) bool {
	if !s.synced {
		return true
	}
	if s.version >= version {
		return false
	}
	for key, v := range listed {
		if s.versions[key] < v {
			return true
		}
	}
	for key, v := range s.versions {
		if _, there := listed[key]; !there && v <= version {
			return true
		}
	}
	return false
}

// has reports whether the store has seen what is listed, or that it has gone; the lock is held.
func (s *store[T, P]) has(listed map[types.NamespacedName]uint64) bool {
	for key, v := range listed {
		if s.versions[key] < v && s.version < v {
			return false
		}
	}
	return s.synced
}

// filled reports whether the API server was heard; the lock is held.
func (s *store[T, P]) filled() bool { return s.synced }

func named(name string) types.NamespacedName { return types.NamespacedName{Name: name} }
