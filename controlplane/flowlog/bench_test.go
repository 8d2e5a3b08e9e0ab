package flowlog

import (
	"testing"

	"google.golang.org/protobuf/proto"
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
	var out []byte
	m := l.Encoder()
	var err error
	b.ReportAllocs()
	for b.Loop() {
		if out, err = m.AppendRecord(out[:0], kept[0]); err != nil {
			b.Fatal(err)
		}
	}
}

// What it costs on its way by gRPC.
func BenchmarkWire(b *testing.B) {
	l := newLog(shop(), 1)
	l.add(refused())
	kept, _ := l.ring.all()
	var out []byte
	m := l.Encoder()
	var err error
	b.ReportAllocs()
	for b.Loop() {
		if out, err = m.AppendMessage(out[:0], kept[0]); err != nil {
			b.Fatal(err)
		}
	}
}

// And as a message, for a reader that wants but some of its fields.
func BenchmarkMessage(b *testing.B) {
	l := newLog(shop(), 1)
	l.add(refused())
	kept, _ := l.ring.all()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := proto.Marshal(l.response(kept[0])); err != nil {
			b.Fatal(err)
		}
	}
}
