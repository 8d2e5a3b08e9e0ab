package flowlog

import (
	"unsafe"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Encoder makes records' messages without making the messages, for one reader: it remembers what
// the records of a rule have in common. It is for one goroutine.
type Encoder struct {
	log   *Log
	rules map[*policy.Rule]*ruleForms
	size  int // of what is remembered
}

// formsMost bounds what an encoder remembers, in bytes.
const formsMost = 1 << 20

// Encoder returns one that remembers nothing yet.
func (l *Log) Encoder() *Encoder {
	return &Encoder{log: l, rules: map[*policy.Rule]*ruleForms{}}
}

// ruleForms are what a rule is in messages, by what it depends on; denied is 1.
type ruleForms struct {
	wire, json [2][2]form // its policies, by direction and denied
	extension  [2]form    // the rule itself, by denied
}

var noForms ruleForms

// form is made of an epoch, if it is made.
type form struct {
	made  bool
	epoch uint64
	text  []byte
}

// forgetful is for one record alone.
var forgetful = &Encoder{}

func (m *Encoder) forms(rule *policy.Rule) *ruleForms {
	if m.rules == nil {
		return &noForms
	}
	if f := m.rules[rule]; f != nil {
		return f
	}
	if m.size > formsMost {
		clear(m.rules)
		m.size = 0
	}
	f := &ruleForms{}
	m.rules[rule] = f
	m.size += int(unsafe.Sizeof(*f))
	return f
}

// again adds f to to, made anew by of if it is not of that epoch.
func (m *Encoder) again(to []byte, f *form, epoch uint64, of func([]byte) []byte) []byte {
	if m.rules == nil {
		return of(to)
	}
	if !f.made || f.epoch != epoch {
		before := cap(f.text)
		f.text, f.made, f.epoch = of(f.text[:0]), true, epoch
		m.size += cap(f.text) - before
	}
	return append(to, f.text...)
}

// bit is 1 for true.
func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// decides reports whether the policies of d are those that denied, or allowed.
func (r *record) decides(d datapath.Direction, denied bool) bool {
	rule := r.rules[d]
	return rule != nil && r.denied(d) == denied && (rule.Name != "" || len(rule.IsolatedBy) > 0)
}
