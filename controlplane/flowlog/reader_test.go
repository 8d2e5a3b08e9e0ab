package flowlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
)

// A thousand readers come and go while records come: each gets all that came while it read, or
// is told how many it missed, and the account is the sum.
func TestThousandReaders(t *testing.T) {
	l := newLog(shop(), 256)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for e := began(); ; {
			select {
			case <-stop:
				return
			default:
				l.add(e)
			}
		}
	}()
	var mu sync.Mutex
	var taken, lost uint64
	var readers sync.WaitGroup
	for i := range 1000 {
		readers.Go(func() {
			r := l.Reader("many")
			defer r.Close()
			first, n, missed := r.at.next, uint64(0), uint64(0)
			for range i%7 + 1 {
				records, gaps, err := r.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				gone := uint64(0)
				for _, gap := range gaps {
					gone += gap.lost
				}
				if at := first + n + missed + gone; len(records) > 0 && records[0].seq != at {
					t.Errorf("record %d, want %d", records[0].seq, at)
				}
				n, missed = n+uint64(len(records)), missed+gone
			}
			mu.Lock()
			defer mu.Unlock()
			taken, lost = taken+n, lost+missed
		})
	}
	readers.Wait()
	close(stop)
	<-stopped
	if a := l.Status().Readers; len(a) != 1 || a[0] != (api.FlowReader{Name: "many", Taken: taken, Lost: lost}) || taken < 1000 {
		t.Errorf("account %+v, readers took %d and lost %d", a, taken, lost)
	}
}

func TestReaderEnds(t *testing.T) {
	l := newLog(shop(), 4)
	r := l.Reader("x")
	l.add(began())
	l.ring.setClosed(true)
	if records, missed, err := r.Next(t.Context()); len(records) != 1 || missed != nil || err != nil {
		t.Fatalf("%v, %v, %v", records, missed, err)
	}
	if _, _, err := r.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context: %v", err)
	}
}

// Names of readers do not grow the account without bound.
func TestReadersNamesAreBounded(t *testing.T) {
	l := newLog(shop(), 4)
	for i := range 10 * accountsMost {
		l.Reader(fmt.Sprint(i)).Close()
	}
	if n := len(l.Status().Readers); n != accountsMost+1 {
		t.Errorf("%d names", n)
	}
}

// A client that stops reading is cut off, and counted; the log goes on.
func TestStalledClientIsCutOff(t *testing.T) {
	defer func(d time.Duration) { stall = d }(stall)
	stall = 100 * time.Millisecond
	l := newLog(shop(), 1024)
	s := httptest.NewServer(l)
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	must(t, err)
	defer conn.Close()
	req, err := http.NewRequest(http.MethodGet, s.URL+api.PathFlows+"?follow=1", nil)
	must(t, err)
	must(t, req.Write(conn))
	for deadline := time.Now().Add(20 * time.Second); ; {
		for range 512 { // never read: the connection's buffers fill
			l.add(began())
		}
		if a := l.Status().Readers; len(a) == 1 && a[0].Cut == 1 && a[0].Open == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: %+v", l.Status().Readers)
		}
		time.Sleep(time.Millisecond)
	}
}

// What the kernel had no room for is told where it happened, to followers and afterwards.
func TestKernelLossesAreTold(t *testing.T) {
	var n datapath.Counters
	n.EventsLost = 5 // before this log began
	l := New(shop(), Options{Node: "worker-1", Now: func() time.Time { return noon }, Counters: func() (datapath.Counters, error) { return n, nil }})
	look, err := l.watchLosses()
	must(t, err)
	look()
	l.add(began())
	n.EventsLost, n.DenialsLost = 9, 2
	look()
	look()
	var to collector
	must(t, l.Query(t.Context(), api.FlowQuery{Verdicts: []string{"dropped"}}, &to))
	if len(to.got) != 2 || to.got[0].GetLostEvents().GetNumEventsLost() != 4 || to.got[1].GetLostEvents().GetNumEventsLost() != 2 ||
		to.got[0].GetLostEvents().GetSource().String() != "PERF_EVENT_RING_BUFFER" {
		t.Errorf("%v", to.got)
	}
}

// Who misses records hears what those told, each cause for itself, and how many others they were;
// what was told before, or is told by a record that comes, is not told again.
func TestReaderHearsWhatItMissed(t *testing.T) {
	l := New(shop(), Options{Size: 4, Now: func() time.Time { return noon }})
	l.tellLost(LostFlowEvents, 100, 0) // before
	r := l.Reader("x")
	defer r.Close()
	take := func() (told, n string) {
		t.Helper()
		records, missed, err := r.Next(t.Context())
		must(t, err)
		for _, m := range missed {
			told += fmt.Sprintf("%d %q, ", m.lost, m.cause)
			if !m.event.Time.Equal(noon) {
				t.Errorf("time %s", m.event.Time)
			}
		}
		return told, fmt.Sprint(len(records))
	}
	is := func(want string) {
		t.Helper()
		if told, n := take(); told+n != want {
			t.Errorf("got %s%s\nwant %s", told, n, want)
		}
	}
	l.tellLost(LostFlowEvents, 107, 100)
	l.add(began())
	is("2")
	l.tellLost(LostFlowEvents, 9, 7)
	l.tellLost(LostDenialEvents, 4, 1)
	l.add(began())
	l.tellLost(LostFlowEvents, 10, 9)
	l.ring.add(&record{lost: 8, cause: LostAgent})
	l.tellLost(LostFlowEvents, 50, 10)
	for range 3 {
		l.add(began())
	}
	is(`3 "flow_events", 3 "denial_events", 8 "agent", 1 "", 4`)
	for range 4 {
		l.tellLost(LostFlowEvents, 1, 0)
	}
	l.tellLost(LostFlowEvents, 1, 0)
	is(`1 "flow_events", 4`) // no other records were missed
	if a := l.Status().Readers[0]; a.Taken != 10 || a.Lost != 6 {
		t.Errorf("account %+v", a)
	}
}

func TestCounts(t *testing.T) {
	l := newLog(shop(), 4)
	l.add(began())
	l.add(began())
	l.add(refused())
	want := []Count{{api.FlowNew, "FORWARDED", "egress", "tcp", 2}, {api.FlowDenied, "DROPPED", "ingress", "tcp", 1}}
	if got := l.Counts(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}
