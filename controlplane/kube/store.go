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

// shelf is what the stores of all kinds share: one lock, so that what is read of them is
// of one moment, and what counts their changes.
type shelf struct {
	sync.Mutex
	changes uint64        // of what a store hands out
	moved   chan struct{} // closed, and made anew, when a version or an object changes
	wake    chan struct{} // has one element when changes went up
	pressed chan struct{} // has one element when that is not to wait for others of its kind
}

func newShelf() *shelf {
	return &shelf{moved: make(chan struct{}), wake: make(chan struct{}, 1), pressed: make(chan struct{}, 1)}
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

// press has a publication that waits made now.
func (s *shelf) press() {
	select {
	case s.pressed <- struct{}{}:
	default:
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
// unseen goes together with what came. No object is ever changed. A is what comes from the API,
// P a pointer to what is held of it.
type store[A metav1.Object, P comparable] struct {
	*shelf
	strip    func(A) P
	equal    func(a, b P) bool
	share    func(stripped P, objects int) (namespace string) // its parts with other objects; nil: none are alike
	objects  map[types.NamespacedName]kept[P]
	version  uint64 // all up to it was seen
	synced   bool
	replaced uint64                        // counts what came by Replace
	coming   int                           // objects that are on their way to Replace
	dirty    map[types.NamespacedName]bool // changed since they were taken
	changed  func(was, is P)               // is told of every change, unless nil
	patient  func(P) bool                  // its changes may wait for others, unless nil

	perNamespace map[string]int // objects
}

// kept is an object and its resource version.
type kept[P any] struct {
	object  P
	version uint64
}

var (
	_ cache.TransformingStore      = (*store[*metav1.ObjectMeta, *metav1.ObjectMeta])(nil)
	_ cache.ResourceVersionUpdater = (*store[*metav1.ObjectMeta, *metav1.ObjectMeta])(nil)
)

// newStore holds objects of the API with less in them.
func newStore[A interface {
	metav1.Object
	comparable
}](s *shelf, strip func(A) A) *store[A, A] {
	return newStoreOf(s, strip, func(a, b A) bool { return equality.Semantic.DeepEqual(a, b) })
}

func newStoreOf[A metav1.Object, P comparable](s *shelf, strip func(A) P, equal func(a, b P) bool) *store[A, P] {
	return &store[A, P]{
		shelf: s, strip: strip, equal: equal, perNamespace: map[string]int{},
		objects: map[types.NamespacedName]kept[P]{}, dirty: map[types.NamespacedName]bool{},
	}
}

// get an object, nil if it is not there.
func (s *store[A, P]) get(key types.NamespacedName) P { return s.objects[key].object }

// Transformer implements cache.TransformingStore: a list that is on its way is held
// stripped, too, and goes into the store as it is.
func (s *store[A, P]) Transformer() cache.TransformFunc {
	return func(value any) (any, error) {
		is, err := s.read(value)
		if err != nil {
			return value, nil // Replace refuses it, and all that came with it
		}
		s.Lock()
		defer s.Unlock()
		s.coming++
		s.shared(&is, len(s.objects)+s.coming)
		return &is, nil
	}
}

// seen is an object as it came. What is handed out has no version: it changes for less.
type seen[P any] struct {
	key      types.NamespacedName
	version  uint64
	stripped P
}

func (s *store[A, P]) read(value any) (seen[P], error) {
	if is, ok := value.(*seen[P]); ok {
		return *is, nil
	}
	o, ok := value.(A)
	if !ok {
		return seen[P]{}, fmt.Errorf("object of type %T", value)
	}
	version, err := parseVersion(o.GetResourceVersion())
	if err != nil {
		return seen[P]{}, err
	}
	return seen[P]{types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, version, s.strip(o)}, nil
}

// shared has the parts of an object, its key's too, replaced by those of others; the lock is held.
func (s *store[A, P]) shared(is *seen[P], objects int) {
	if s.share != nil {
		is.key.Namespace = s.share(is.stripped, objects)
	}
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
func (s *store[A, P]) Add(value any) error { return s.Update(value) }

// Update implements cache.ReflectorStore.
func (s *store[A, P]) Update(value any) error {
	is, err := s.read(value)
	if err != nil {
		return err
	}
	s.Lock()
	defer s.Unlock()
	s.learn(is, false)
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *store[A, P]) Delete(value any) error {
	is, err := s.read(value)
	if err != nil {
		return err
	}
	s.Lock()
	defer s.Unlock()
	s.learn(is, true)
	return nil
}

// learn what became of an object; the lock is held.
func (s *store[A, P]) learn(is seen[P], deleted bool) {
	changed := false
	if deleted {
		changed = s.remove(is.key)
	} else {
		changed = s.put(is)
	}
	s.version = max(s.version, is.version)
	s.touch(changed)
	if changed && (s.patient == nil || !s.patient(is.stripped)) {
		s.press()
	}
}

// Replace implements cache.ReflectorStore.
func (s *store[A, P]) Replace(values []any, resourceVersion string) error {
	version, err := parseVersion(resourceVersion)
	if err != nil {
		return err
	}
	all := make([]seen[P], 0, len(values))
	there := make(map[types.NamespacedName]bool, len(values))
	for _, value := range values {
		is, err := s.read(value)
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
	s.version, s.synced, s.coming = version, true, 0
	s.replaced++
	s.touch(changed)
	s.press()
	return nil
}

// Resync implements cache.ReflectorStore: none is asked for.
func (s *store[A, P]) Resync() error { return nil }

// UpdateResourceVersion implements cache.ResourceVersionUpdater: bookmarks.
func (s *store[A, P]) UpdateResourceVersion(resourceVersion string) {
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
func (s *store[A, P]) put(is seen[P]) bool {
	was, ok := s.objects[is.key]
	if ok && s.equal(was.object, is.stripped) {
		s.objects[is.key] = kept[P]{was.object, is.version}
		return false
	}
	s.shared(&is, len(s.objects))
	if !ok {
		s.perNamespace[is.key.Namespace]++
	}
	s.objects[is.key] = kept[P]{is.stripped, is.version}
	s.note(is.key, was.object, is.stripped)
	return true
}

func (s *store[A, P]) remove(key types.NamespacedName) bool {
	was, ok := s.objects[key]
	if !ok {
		return false
	}
	delete(s.objects, key)
	var none P
	s.note(key, was.object, none)
	if s.perNamespace[key.Namespace]--; s.perNamespace[key.Namespace] == 0 {
		delete(s.perNamespace, key.Namespace)
	}
	return true
}

func (s *store[A, P]) note(key types.NamespacedName, was, is P) {
	s.dirty[key] = true
	if s.changed != nil {
		s.changed(was, is)
	}
}

// take returns what changed since it was called last; the lock is held.
func (s *store[A, P]) take() map[types.NamespacedName]P {
	out := make(map[types.NamespacedName]P, len(s.dirty))
	for key := range s.dirty {
		out[key] = s.get(key)
	}
	s.dirty = map[types.NamespacedName]bool{}
	return out
}

// behind reports whether a list of the API at version has what the store has not seen yet;
// the lock is held.
func (s *store[A, P]) behind(version uint64, listed map[types.NamespacedName]uint64) bool {
	if !s.synced {
		return true
	}
	if s.version >= version {
		return false
	}
	for key, v := range listed {
		if s.objects[key].version < v {
			return true
		}
	}
	for key, is := range s.objects {
		if _, there := listed[key]; !there && is.version <= version {
			return true
		}
	}
	return false
}

// has reports whether the store has seen what is listed, or that it has gone; the lock is held.
func (s *store[A, P]) has(listed map[types.NamespacedName]uint64) bool {
	for key, v := range listed {
		if s.objects[key].version < v && s.version < v {
			return false
		}
	}
	return s.synced
}

// filled reports whether the API server was heard; the lock is held.
func (s *store[A, P]) filled() bool { return s.synced }

func named(name string) types.NamespacedName { return types.NamespacedName{Name: name} }
