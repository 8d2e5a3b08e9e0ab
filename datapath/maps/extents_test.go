package maps

import (
	"errors"
	"github.com/weirnet/weir/datapath"
	"math/rand/v2"
	"testing"
)

func TestExtentsNeverOverlap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	x := &extents{name: "m", size: 200}
	owner := make([]int, x.size)
	held := map[int]extent{}
	full := 0
	for id := 1; id < 5000; id++ {
		e, err := x.alloc(uint32(1 + r.IntN(20)))
		if err != nil {
			full++
			for other, e := range held {
				for i := range e.length {
					owner[e.start+i] = 0
				}
				x.free(e)
				delete(held, other)
				break
			}
			continue
		}
		for i := range e.length {
			if owner[e.start+i] != 0 {
				t.Fatalf("element %d given to %d while %d has it", e.start+i, id, owner[e.start+i])
			}
			owner[e.start+i] = id
		}
		held[id] = e
	}
	if full == 0 {
		t.Error("never full: this tests too little")
	}
	again := &extents{name: "m", size: x.size}
	for _, e := range held {
		if !again.claim(e) {
			t.Errorf("extent %v cannot be claimed", e)
		}
	}
	if again.sum() != x.sum() {
		t.Errorf("claimed %d elements, want %d", again.sum(), x.sum())
	}
}

func TestExtentsFirstFitAndFull(t *testing.T) {
	x := &extents{name: "rule_ids", size: 10}
	a, _ := x.alloc(4)
	b, _ := x.alloc(4)
	x.free(a)
	c, err := x.alloc(3)
	if err != nil || c.start != 0 || b.start != 4 {
		t.Errorf("got %v after %v, %v: want the freed place", c, b, err)
	}
	_, err = x.alloc(4)
	if full := new(datapath.FullError); !errors.As(err, &full) || full.Map != "rule_ids" || full.Size != 10 || full.Need != 11 {
		t.Errorf("error %v, want rule_ids full with 10, needing 11", err)
	}
	for _, e := range []extent{{9, 2}, {5, 1}, {2, 4}} {
		if x.claim(e) {
			t.Errorf("claimed %v, which is taken or outside", e)
		}
	}
}
