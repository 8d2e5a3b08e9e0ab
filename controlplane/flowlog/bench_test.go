package flowlog

import (
	"bytes"
	"testing"
)

// What an event costs the agent, with its names looked up.
func BenchmarkAdd(b *testing.B) {
	l, e := newLog(shop(), 0), began()
	b.ReportAllocs()
	for b.Loop() {
		l.add(e)
	}
}

// What a record costs when it is asked for.
func BenchmarkLine(b *testing.B) {
	l := newLog(shop(), 1)
	l.add(refused())
	kept, _ := l.ring.all()
	var out bytes.Buffer
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		if err := AppendLine(&out, l.response(kept[0])); err != nil {
			b.Fatal(err)
		}
	}
}
