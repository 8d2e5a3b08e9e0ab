package maps

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// Words of an endpoint's element after its slots: what a State says of it but the
// rulesets. The first holds ifindex and flags; without it the element is nobody's.
const (
	endpointFields = unsafe.Offsetof(bpf.WeirEndpoint{}.Ifindex) / 8
	endpointSize   = unsafe.Sizeof(bpf.WeirEndpoint{}) / 8
)

// endpoints are the pods' interfaces: an element by number, and the number by ifindex.
type endpoints struct {
	numbers *tracker[uint32, uint32, uint32]
	memory  *memory
	retired map[uint32]uint64 // out of force since this tick, not cleared yet
}

// endpointDelta is what a State changes.
type endpointDelta struct {
	numbers delta[uint32, uint32]
	fields  map[uint32][]uint64 // fresh elements, or those that say something else
	rewrite []uint32            // of these, the ones programs may be reading
	words   map[uint32]uint64   // slots to stage
	retire  []uint32
	oldest  uint64 // a grace must be younger than this epoch
	busy    bool   // a number is taken again that is not cleared yet: a grace first
}

func (p *endpoints) diff(desired map[uint32]datapath.Endpoint, epoch uint64) (d endpointDelta, err error) {
	d.fields, d.words = map[uint32][]uint64{}, map[uint32]uint64{}
	numbers := map[uint32]uint32{}
	for n, ep := range desired {
		if n == 0 || n >= p.memory.count {
			return d, fmt.Errorf("endpoint number %d: only 1 to %d exist", n, p.memory.count-1)
		}
		if other, taken := numbers[ep.Ifindex]; taken || ep.Ifindex == 0 {
			return d, fmt.Errorf("endpoint %d: interface %d is endpoint %d's", n, ep.Ifindex, other)
		}
		numbers[ep.Ifindex] = n
		p.compare(&d, n, ep, epoch)
	}
	for n := uint32(1); n < p.memory.count; n++ {
		_, wanted := desired[n]
		_, retired := p.retired[n]
		if e := p.memory.at(n); !wanted && !retired && !e.zero() {
			d.retire = append(d.retire, n)
			d.stage(e, n, 0, epoch)
		}
	}
	d.numbers = p.numbers.diff(func(yield func(uint32, uint32) bool) {
		for ifindex, n := range numbers {
			if !yield(ifindex, n) {
				return
			}
		}
	}, func(ifindex uint32) bool { return numbers[ifindex] != 0 })
	return d, nil
}

func (p *endpoints) compare(d *endpointDelta, n uint32, ep datapath.Endpoint, epoch uint64) {
	e := p.memory.at(n)
	if _, retired := p.retired[n]; retired {
		d.busy = true
	}
	encoded := encodeEndpoint(ep)
	fields := wordsOf(&encoded)[endpointFields:]
	if !sameWords(e[endpointFields:], fields) {
		d.fields[n] = fields
		if !e.zero() {
			d.rewrite = append(d.rewrite, n)
		}
	}
	d.stage(e, n, endpointWord(ep), epoch)
}

func (d *endpointDelta) stage(e element, n uint32, word, epoch uint64) {
	was, since, ok := slots{e}.read(epoch)
	if ok && was == word {
		return
	}
	d.words[n] = word
	if ok {
		d.oldest = max(d.oldest, since)
	}
}

// sameWords compares what endpointFields on says; the padding at the end counts, too.
func sameWords(e element, fields []uint64) bool {
	for i, v := range fields {
		if e.load(uintptr(i)) != v {
			return false
		}
	}
	return true
}

// write stores fields. Interfaces whose element programs may be reading are nobody's
// (their packets drop) for the length of a grace.
func (p *endpoints) write(d endpointDelta, grace func() error) error {
	if len(d.rewrite) > 0 {
		for _, n := range d.rewrite {
			p.memory.at(n).store(endpointFields, 0)
		}
		if err := grace(); err != nil {
			return err
		}
	}
	for n, fields := range d.fields {
		e := p.memory.at(n)
		for i, v := range slices.Backward(fields) { // ifindex last
			e.store(endpointFields+uintptr(i), v)
		}
	}
	return nil
}

func (p *endpoints) collect(before, tick uint64) error {
	for n, since := range p.retired {
		if since > before {
			continue
		}
		e := p.memory.at(n)
		for i := endpointSize; i > 0; i-- {
			e.store(i-1, 0)
		}
		delete(p.retired, n)
	}
	return p.numbers.collect(before, tick, nil)
}
