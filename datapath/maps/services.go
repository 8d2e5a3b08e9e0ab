package maps

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// services writes what sockets that name a Service get. Its address and port lead to an
// element of lists, whose word names an extent of backends: a head and then the backends,
// immutable while any word names it. Storing the word is the change.
type services struct {
	keys   *tracker[datapath.Frontend, bpf.WeirFrontendKey, uint32]
	netns  *tracker[uint64, uint64, uint32]
	lists  *memory
	memory *memory // of backends
	space  extents

	free     []uint32          // elements of lists
	placed   map[string]extent // lists by content
	contents map[uint32]string // the other way round, by where they begin
	names    map[uint32]int    // words that name a list, by where it begins
	limbo    []limbo[uint32]   // elements, free a grace later
	old      []limbo[extent]   // lists that no word names
}

// Words of an element of backends.
const (
	listID     = 0
	listCounts = 1 // count | affinity << 32
	listNumber = 2
	backendLow = 0 // address, in wire order
	backendTop = 1
	backendEnd = 2 // port
)

// serviceDelta is what a State changes.
type serviceDelta struct {
	netns    delta[uint64, uint32]
	words    map[datapath.Frontend]string // what a key's word is to name; "" = nothing
	added    []datapath.Frontend          // keys to put
	unwanted []datapath.Frontend
	lists    map[string]*datapath.Service // to place
	fresh    []string                     // placed by write, not named yet
}

// content is what makes two lists one.
func content(s *datapath.Service) string {
	b := make([]byte, 0, 16+18*len(s.Backends))
	b = binary.LittleEndian.AppendUint64(b, s.ID)
	b = binary.LittleEndian.AppendUint16(b, s.Number)
	b = binary.LittleEndian.AppendUint32(b, s.Affinity)
	for _, x := range s.Backends {
		a := address16(x.Addr())
		b = binary.LittleEndian.AppendUint16(append(b, a[:]...), x.Port())
	}
	return string(b)
}

func (p *services) diff(desired map[datapath.Frontend]*datapath.Service, endpoints map[uint32]datapath.Endpoint) (d serviceDelta) {
	d.words, d.lists = map[datapath.Frontend]string{}, map[string]*datapath.Service{}
	for f, s := range desired {
		d.want(p, f, s)
	}
	for f := range p.keys.applied {
		if _, wanted := desired[f]; !wanted {
			d.leave(p, f)
		}
	}
	d.netns = p.diffNetns(endpoints)
	return d
}

// diffKeys compares only keys, and no endpoints.
func (p *services) diffKeys(keys []datapath.Frontend, desired map[datapath.Frontend]*datapath.Service) (d serviceDelta) {
	d.words, d.lists = map[datapath.Frontend]string{}, map[string]*datapath.Service{}
	for _, f := range keys {
		if s, wanted := desired[f]; wanted {
			d.want(p, f, s)
		} else {
			d.leave(p, f)
		}
	}
	return d
}

func (d *serviceDelta) empty() bool {
	return len(d.words)+len(d.added)+len(d.unwanted)+len(d.lists) == 0 && d.netns.empty()
}

func (d *serviceDelta) want(p *services, f datapath.Frontend, s *datapath.Service) {
	want := content(s)
	if _, placed := p.placed[want]; !placed {
		d.lists[want] = s
	}
	i, there := p.keys.applied[f]
	if !there {
		d.added = append(d.added, f)
	}
	if !there || p.named(i) != p.placed[want] || p.placed[want] == (extent{}) {
		d.words[f] = want
	}
	delete(p.keys.stale, f)
}

func (d *serviceDelta) leave(p *services, f datapath.Frontend) {
	i, there := p.keys.applied[f]
	if !there {
		return
	}
	if p.lists.at(i).load(0) != 0 {
		d.words[f] = ""
	}
	if _, stale := p.keys.stale[f]; !stale {
		d.unwanted = append(d.unwanted, f)
	}
}

func (p *services) diffNetns(endpoints map[uint32]datapath.Endpoint) delta[uint64, uint32] {
	cookies := map[uint64]uint32{}
	for n, e := range endpoints {
		if was, taken := cookies[e.NetnsCookie]; e.NetnsCookie != 0 && (!taken || n < was) {
			cookies[e.NetnsCookie] = n
		}
	}
	return p.netns.diff(maps.All(cookies), has(cookies))
}

// named is the list that an element's word names.
func (p *services) named(i uint32) extent {
	start := uint32(p.lists.at(i).load(0))
	if start == 0 || start >= p.memory.count {
		return extent{}
	}
	return extent{start, 1 + uint32(p.memory.at(start).load(listCounts))}
}

func (p *services) fits(d serviceDelta) error {
	if err := p.netns.fits(len(d.netns.keys)); err != nil {
		return err
	}
	if err := p.keys.fits(len(d.added)); err != nil {
		return err
	}
	if n := len(d.added); n > len(p.free) {
		return &datapath.FullError{Map: bpf.SockMapServices, Size: p.keys.size(), Need: len(p.keys.applied) + n}
	}
	return nil
}

// write puts what no socket can meet yet: lists, and keys whose word names none.
func (p *services) write(d *serviceDelta, tick uint64) error {
	for c, s := range d.lists {
		at, err := p.place(s)
		if err != nil {
			return err
		}
		p.placed[c], p.contents[at.start] = at, c
		d.fresh = append(d.fresh, c)
	}
	indices := slices.Clone(p.free[len(p.free)-len(d.added):])
	for _, i := range indices {
		p.lists.at(i).store(0, 0)
	}
	if err := p.netns.put(d.netns.keys, d.netns.values, tick); err != nil {
		return err
	}
	err := p.keys.put(d.added, indices, tick)
	p.free = p.free[:len(p.free)-len(indices)]
	for n, f := range d.added {
		if _, ok := p.keys.applied[f]; !ok {
			p.free = append(p.free, indices[n])
		}
	}
	return err
}

func (p *services) place(s *datapath.Service) (extent, error) {
	at, err := p.space.alloc(1 + uint32(len(s.Backends)))
	if err != nil {
		return extent{}, err
	}
	head := p.memory.at(at.start)
	head.store(listID, s.ID)
	head.store(listCounts, uint64(len(s.Backends))|uint64(s.Affinity)<<32)
	head.store(listNumber, uint64(s.Number))
	for i, b := range s.Backends {
		e, a := p.memory.at(at.start+1+uint32(i)), address16(b.Addr())
		e.store(backendLow, binary.NativeEndian.Uint64(a[:8]))
		e.store(backendTop, binary.NativeEndian.Uint64(a[8:]))
		e.store(backendEnd, uint64(b.Port()))
	}
	return at, nil
}

// rollback frees the lists that write placed: nothing names them.
func (p *services) rollback(d *serviceDelta) {
	for _, c := range d.fresh {
		p.space.free(p.placed[c])
		delete(p.contents, p.placed[c].start)
		delete(p.placed, c)
	}
}

// reveal stores the words; it cannot fail. Lists that none names any more are free a
// grace later.
func (p *services) reveal(d *serviceDelta, tick uint64) {
	if len(d.words) == 0 {
		return
	}
	left := map[uint32]bool{}
	for f, c := range d.words {
		word := p.lists.at(p.keys.applied[f])
		if was := uint32(word.load(0)); p.names[was] > 0 {
			p.names[was]--
			left[was] = true
		}
		start := p.placed[c].start
		if word.store(0, uint64(start)); start != 0 {
			p.names[start]++
		}
	}
	for start := range left {
		if p.names[start] > 0 {
			continue
		}
		c := p.contents[start]
		p.old = append(p.old, limbo[extent]{p.placed[c], tick})
		delete(p.names, start)
		delete(p.contents, start)
		delete(p.placed, c)
	}
}

func (p *services) mark(d *serviceDelta, tick uint64) {
	p.keys.mark(d.unwanted, tick)
	p.netns.mark(d.netns.unwanted, tick)
}

func (p *services) waiting() int {
	return len(p.keys.stale) + len(p.netns.stale) + len(p.limbo) + len(p.old)
}

func (p *services) removed() uint64 { return max(p.keys.removed, p.netns.removed) }

func (p *services) collect(before, tick uint64) error {
	p.limbo = slices.DeleteFunc(p.limbo, func(l limbo[uint32]) bool {
		if l.tick <= before {
			p.free = append(p.free, l.what)
		}
		return l.tick <= before
	})
	p.old = slices.DeleteFunc(p.old, func(l limbo[extent]) bool {
		if l.tick <= before {
			p.space.free(l.what)
		}
		return l.tick <= before
	})
	gone := func(_ datapath.Frontend, i uint32) { p.limbo = append(p.limbo, limbo[uint32]{i, tick}) }
	if err := p.keys.collect(before, tick, gone); err != nil {
		return err
	}
	return p.netns.collect(before, tick, nil)
}

// load takes what the kernel has. A key that leads nowhere, or where another leads, is
// removed; a word that names no list, or one that overlaps another, names none from now on.
func (p *services) load(tick uint64) error {
	if err := p.netns.load(); err != nil {
		return err
	}
	if err := p.keys.load(); err != nil {
		return err
	}
	p.free, p.limbo, p.old, p.placed, p.space.used = nil, nil, nil, map[string]extent{}, nil
	p.contents, p.names = map[uint32]string{}, map[uint32]int{}
	p.space.claim(extent{0, 1})
	used := make([]bool, p.lists.count)
	used[0] = true
	for f, i := range maps.Clone(p.keys.applied) {
		if i >= p.lists.count || used[i] {
			if err := p.keys.remove(f, tick); err != nil {
				return err
			}
			continue
		}
		used[i] = true
		if !p.adopt(f, i) {
			p.lists.at(i).store(0, 0)
		}
	}
	for i := p.lists.count - 1; i > 0; i-- {
		if !used[i] {
			p.free = append(p.free, i)
		}
	}
	return nil
}

func (p *services) adopt(f datapath.Frontend, i uint32) bool {
	at := p.named(i)
	s, ok := p.read(at, family(f.Addr))
	if !ok {
		return false
	}
	c := content(s)
	if p.placed[c] != at {
		if _, twice := p.placed[c]; twice || !p.space.claim(at) {
			return false
		}
		p.placed[c], p.contents[at.start] = at, c
	}
	p.names[at.start]++
	return true
}

// read is the list at an extent.
func (p *services) read(at extent, family uint8) (*datapath.Service, bool) {
	if at.start == 0 || uint64(at.start)+uint64(at.length) > uint64(p.memory.count) {
		return nil, false
	}
	head := p.memory.at(at.start)
	s := &datapath.Service{ID: head.load(listID), Number: uint16(head.load(listNumber)), Affinity: uint32(head.load(listCounts) >> 32)}
	for i := uint32(1); i < at.length; i++ {
		e := p.memory.at(at.start + i)
		var a [16]byte
		binary.NativeEndian.PutUint64(a[:8], e.load(backendLow))
		binary.NativeEndian.PutUint64(a[8:], e.load(backendTop))
		s.Backends = append(s.Backends, netip.AddrPortFrom(address(a, family), uint16(e.load(backendEnd))))
	}
	return s, true
}

// same reports whether the lists say what was written; the keys are known to be as written.
func (p *services) same() bool {
	for c, at := range p.placed {
		s, ok := p.read(at, 6)
		if !ok || content(s) != c {
			return false
		}
	}
	return true
}
