package maps

// never is the since of a slot that is valid in no epoch.
const never = ^uint64(0)

// slots are two words, each with the epoch it is valid from; the newest with
// since <= epoch counts (bpf/contract.h, struct slots). They begin an element:
// words 0 and 1 are since, 2 and 3 the words.
type slots struct{ e element }

func (s slots) since(i int) uint64 { return s.e.load(uintptr(i)) }
func (s slots) word(i int) uint64  { return s.e.load(uintptr(2 + i)) }

// valid is the slot in force in epoch, -1 = none.
func (s slots) valid(epoch uint64) int {
	a, b := s.since(0), s.since(1)
	switch {
	case a <= epoch && (b > epoch || a >= b):
		return 0
	case b <= epoch:
		return 1
	}
	return -1
}

// read is the word in force in epoch and since when; ok is false when there is none.
func (s slots) read(epoch uint64) (word, since uint64, ok bool) {
	i := s.valid(epoch)
	if i < 0 {
		return 0, never, false
	}
	return s.word(i), s.since(i), true
}

// spare reports whether the slot that is not in force in epoch was in force never, for no reader.
func (s slots) spare(epoch uint64) bool {
	i := s.valid(epoch)
	return i >= 0 && s.since(1-i) == never
}

// stage puts word into the slot that is not in force, valid from since on, and returns
// that slot. The caller has had a grace since the slot was last in force.
func (s slots) stage(epoch, word, since uint64) int {
	i := 0
	if s.valid(epoch) == 0 {
		i = 1
	}
	s.set(i, word, since)
	return i
}

func (s slots) set(i int, word, since uint64) {
	s.e.store(uintptr(i), never)
	s.e.store(uintptr(2+i), word)
	s.e.store(uintptr(i), since)
}

// forget makes slot i valid in no epoch.
func (s slots) forget(i int) { s.e.store(uintptr(i), never) }

// clear makes both so.
func (s slots) clear() {
	for i := range 2 {
		s.forget(i)
		s.e.store(uintptr(2+i), 0)
	}
}

// forgetAfter drops what was staged for an epoch that never came.
func (s slots) forgetAfter(epoch uint64) (changed bool) {
	for i := range 2 {
		if since := s.since(i); since > epoch && since != never {
			s.forget(i)
			changed = true
		}
	}
	return changed
}
