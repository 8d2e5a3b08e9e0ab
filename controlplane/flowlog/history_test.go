package flowlog

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/spill"
	"github.com/weirnet/weir/datapath"
)

// life is a log that spills, from its start to its end.
type life struct {
	*Log
	in   *reader
	stop func()
}

func live(t *testing.T, dir string, size int) *life {
	t.Helper()
	store, err := spill.Open(spill.Options{Dir: dir, Size: spill.SizeLeast, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	l := New(shop(), Options{Node: "worker-1", Size: size, Spill: store, Now: func() time.Time { return noon.Add(time.Hour) }})
	ctx, cancel := context.WithCancel(t.Context())
	in := newReader()
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx, in) }()
	return &life{l, in, func() { cancel(); must(t, <-ran) }}
}

// sends records with these source ports, a second apart.
func (l *life) sends(from, to int) {
	for n := from; n <= to; n++ {
		before := l.taken()
		l.in.events <- numberedAt(n)
		for l.taken() == before { // the ring is small
			time.Sleep(100 * time.Microsecond)
		}
	}
}

func (l *life) taken() (n uint64) {
	for _, r := range l.Status().Readers {
		if r.Name == spillName {
			n = r.Taken
		}
	}
	return n
}

func numberedAt(n int) datapath.Event {
	e := began()
	e.Source = netip.AddrPortFrom(e.Source.Addr(), uint16(n))
	e.Time = noon.Add(time.Duration(n) * time.Second)
	return e
}

func (l *life) asked(t *testing.T, q api.FlowQuery) string {
	t.Helper()
	var to collector
	must(t, l.Query(t.Context(), q, &to))
	return sourcePorts(&to)
}

func numbersUpTo(from, to int) string {
	var out []string
	for n := from; n <= to; n++ {
		out = append(out, fmt.Sprint(n))
	}
	return strings.Join(out, " ")
}

// waitFor the spill to have written so many.
func (l *life) waitFor(t *testing.T, records uint64) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); l.Status().Spill.Written < records; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not spilled: %+v", l.Status())
		}
	}
}

// What the ring has no more, and what earlier agents saw, comes before what it has: in order,
// each record once.
func TestPastOutlivesTheLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flows")
	first := live(t, dir, 8)
	first.sends(1, 30)
	first.stop()
	second := live(t, dir, 8)
	second.sends(31, 50)
	second.waitFor(t, 20)
	second.sends(51, 52)
	defer second.stop()
	for !strings.HasSuffix(second.asked(t, api.FlowQuery{Last: 1}), "52") {
		time.Sleep(time.Millisecond)
	}
	second.waitFor(t, 22)
	for _, c := range []struct {
		q    api.FlowQuery
		want string
	}{
		{api.FlowQuery{}, numbersUpTo(1, 52)},
		{api.FlowQuery{Last: 5}, numbersUpTo(48, 52)},
		{api.FlowQuery{Last: 30}, numbersUpTo(23, 52)},
		{api.FlowQuery{Last: 1000}, numbersUpTo(1, 52)},
		{api.FlowQuery{Since: time.Hour - 25*time.Second}, numbersUpTo(25, 52)},
		{api.FlowQuery{Since: time.Hour - 50*time.Second}, "50 51 52"},
		{api.FlowQuery{Since: time.Hour - 25*time.Second, Last: 3}, "50 51 52"},
		{api.FlowQuery{FlowEnd: api.FlowEnd{Pods: []string{"shop/web-1"}}, Last: 40}, numbersUpTo(13, 52)},
		{api.FlowQuery{FlowEnd: api.FlowEnd{Pods: []string{"shop/nobody"}}}, ""},
	} {
		if got := second.asked(t, c.q); got != c.want {
			t.Errorf("%+v: %s\nwant %s", c.q, got, c.want)
		}
	}
	var to collector
	must(t, second.Select(t.Context(), Selection{First: true, Number: 3}, &to))
	if got := sourcePorts(&to); got != "1 2 3" {
		t.Errorf("the first three: %s", got)
	}
	a := second.Status()
	if a.Spill.Lost != 0 || a.Spill.Corrupt != 0 || a.Spill.Oldest == nil || !a.Spill.Oldest.Equal(noon.Add(time.Second)) {
		t.Errorf("%+v", a.Spill)
	}
}

// An agent that is killed leaves what it had spilled; the next one goes on after it.
func TestPastOfAKilledLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flows")
	first := live(t, dir, 8)
	first.sends(1, 20)
	first.waitFor(t, 20)
	files, err := filepath.Glob(dir + "/*.flows")
	must(t, err)
	b, err := os.ReadFile(files[0]) // as it is on disk while it runs
	must(t, err)
	first.stop()
	dir = t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, filepath.Base(files[0])), append(b, b[:100]...), 0o600)) // killed amid a write
	second := live(t, dir, 8)
	defer second.stop()
	second.sends(21, 22)
	second.waitFor(t, 2)
	if got := second.asked(t, api.FlowQuery{}); got != numbersUpTo(1, 22) {
		t.Errorf("%s", got)
	}
	if s := second.Status().Spill; s.Corrupt != 1 {
		t.Errorf("%+v", s)
	}
}

// A disk that cannot be written to costs the past and nothing else.
func TestSpillThatFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flows")
	l := live(t, dir, 64)
	defer l.stop()
	must(t, os.RemoveAll(dir))
	must(t, os.WriteFile(dir, nil, 0o600)) // nothing can be made in it
	l.sends(1, 30)
	for end := time.Now().Add(20 * time.Second); l.Status().Spill.Lost != 30; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", l.Status().Spill)
		}
	}
	if s := l.Status().Spill; s.Error == "" || s.Written != 0 {
		t.Errorf("%+v", s)
	}
	if got := l.asked(t, api.FlowQuery{}); got != numbersUpTo(1, 30) {
		t.Errorf("%s", got)
	}
	must(t, os.Remove(dir))
	must(t, os.Mkdir(dir, 0o700))
	l.sends(31, 32)
	l.waitFor(t, 2)
	if s := l.Status().Spill; s.Error != "" || s.Lost != 30 {
		t.Errorf("%+v", s)
	}
}

// A gap in what was spilled is told where it is.
func TestPastTellsItsGaps(t *testing.T) {
	store, err := spill.Open(spill.Options{Dir: t.TempDir(), Size: spill.SizeLeast, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	l := New(shop(), Options{Node: "worker-1", Size: 4, Spill: store})
	r := l.Reader(spillName)
	for n := range 10 {
		l.add(numberedAt(n + 1))
	}
	l.ring.setClosed(true)
	l.history.keep(r)
	for n := range 4 {
		l.add(numberedAt(n + 11))
	}
	var to collector
	must(t, l.Query(t.Context(), api.FlowQuery{}, &to))
	if got := sourcePorts(&to); got != "(6 lost) 7 8 9 10 11 12 13 14" {
		t.Errorf("%s", got)
	}
}

// rings are kernel rings that outlive their readers: they know how much was ever read.
type rings struct {
	*reader
	bytes, denials *uint64
}

func (r rings) Read() (datapath.Event, error) {
	e, err := r.reader.Read()
	if err == nil {
		*r.bytes += 100
		if e.Kind == datapath.EventDenied {
			*r.denials += 100
		}
	}
	return e, err
}

func (r rings) Consumed() (bytes, denials, each uint64, err error) {
	return *r.bytes, *r.denials, 100, nil
}

// What an agent had read and not spilled when it was killed, the next one tells, exactly.
func TestWhatAKilledAgentHadIsTold(t *testing.T) {
	dir := t.TempDir()
	consumed := uint64(700) // by agents before
	start := func(dir string) *life {
		store, err := spill.Open(spill.Options{Dir: dir, Size: spill.SizeLeast, Log: slog.New(slog.DiscardHandler)})
		must(t, err)
		l := New(shop(), Options{Node: "worker-1", Size: 64, Spill: store})
		ctx, cancel := context.WithCancel(t.Context())
		in := newReader()
		ran := make(chan error, 1)
		go func() { ran <- l.Run(ctx, rings{in, &consumed, new(uint64)}) }()
		return &life{l, in, func() { cancel(); must(t, <-ran) }}
	}
	first := start(dir)
	first.sends(1, 20)
	first.waitFor(t, 20)
	first.stop()
	consumed += 5 * 100 // read by it, and gone with it
	second := start(dir)
	second.sends(21, 22)
	second.waitFor(t, 3)
	if got := second.asked(t, api.FlowQuery{}); got != numbersUpTo(1, 20)+" (5 lost) 21 22" || second.Status().Spill.Missing != 5 {
		t.Errorf("%s, %+v", got, second.Status().Spill)
	}
	second.stop()
	third := start(dir) // the second one ended well
	third.sends(23, 23)
	third.waitFor(t, 1)
	if got := third.asked(t, api.FlowQuery{Last: 2}); got != "22 23" || third.Status().Spill.Missing != 0 {
		t.Errorf("%s, %+v", got, third.Status().Spill)
	}
	third.stop()
	consumed = 0 // other rings
	fourth := start(dir)
	fourth.sends(24, 24)
	if got := fourth.asked(t, api.FlowQuery{Last: 2}); got != "23 24" || fourth.Status().Spill.Missing != 0 {
		t.Errorf("%s, %+v", got, fourth.Status().Spill)
	}
	fourth.stop()
}
