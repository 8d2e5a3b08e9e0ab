package flowlog

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
	"github.com/weirnet/weir/datapath"
)

func get(t *testing.T, url string) *http.Response {
	t.Helper()
	resp, err := http.Get(url)
	must(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestServeLines(t *testing.T) {
	l := newLog(shop(), 0)
	fill(l)
	s := httptest.NewServer(l)
	t.Cleanup(s.Close) // after the bodies
	resp := get(t, s.URL+"?verdict=dropped")
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if len(lines) != 2 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d lines of %s", len(lines), resp.Header.Get("Content-Type"))
	}
	for _, line := range lines {
		if m, err := format.Parse([]byte(line)); err != nil || m.GetFlow() == nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// What follows comes without waiting for more.
func TestServeFollow(t *testing.T) {
	l := newLog(shop(), 0)
	l.add(numbered(1))
	s := httptest.NewServer(l)
	t.Cleanup(s.Close) // after the bodies
	resp := get(t, s.URL+"?follow=1&kind=new")
	lines := bufio.NewReader(resp.Body)
	for port := uint16(1); port < 4; port++ {
		line, err := lines.ReadBytes('\n')
		must(t, err)
		m, err := format.Parse(line)
		must(t, err)
		if got := m.GetFlow().GetL4().GetTCP().GetSourcePort(); got != uint32(port) {
			t.Fatalf("record %d, want %d", got, port)
		}
		l.add(refused())
		l.add(with(began(), func(e *datapath.Event) { e.Source = netip.AddrPortFrom(e.Source.Addr(), port+1) }))
	}
}

// A follower of a node that is quiet for longer than a client may stall takes the next record:
// it had nothing to take.
func TestServeFollowAfterQuiet(t *testing.T) {
	defer func(d time.Duration) { stall = d }(stall)
	stall = 200 * time.Millisecond
	l := newLog(shop(), 0)
	l.add(numbered(1))
	s := httptest.NewServer(l)
	t.Cleanup(s.Close) // after the bodies
	resp := get(t, s.URL+"?follow=1")
	lines := bufio.NewReader(resp.Body)
	const burst = 32 // more than the server's buffers hold: it is written before it is flushed
	for n := range 3 * burst {
		if n%burst == 1 {
			time.Sleep(3 * stall)
			for range burst {
				l.add(began())
			}
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatalf("record %d: %v", n, err)
		}
		if _, err := format.Parse(line); err != nil {
			t.Fatal(err)
		}
	}
}

// Clients cannot make the agent hold more than a number of streams, and one that leaves makes room.
func TestServeBoundsStreams(t *testing.T) {
	l := newLog(shop(), 0)
	s := httptest.NewServer(l)
	t.Cleanup(s.Close) // after the bodies
	var open []*http.Response
	for range streamsMost {
		resp := get(t, s.URL+"?follow=1")
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("stream %d: %s", len(open), resp.Status)
		}
		open = append(open, resp)
	}
	resp := get(t, s.URL)
	var e api.Error
	must(t, json.NewDecoder(resp.Body).Decode(&e))
	if resp.StatusCode != http.StatusServiceUnavailable || e.Code != api.CodeTryLater || e.Message != "64 streams are open already: try again later" {
		t.Errorf("%s: %+v", resp.Status, e)
	}
	open[0].Body.Close()
	for until := time.Now().Add(10 * time.Second); get(t, s.URL).StatusCode != http.StatusOK; {
		if time.Now().After(until) {
			t.Fatal("a stream that ended made no room")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestServeRefuses(t *testing.T) {
	s := httptest.NewServer(newLog(shop(), 0))
	t.Cleanup(s.Close) // after the bodies
	resp := get(t, s.URL+"?last=all")
	var e api.Error
	must(t, json.NewDecoder(resp.Body).Decode(&e))
	if resp.StatusCode != http.StatusBadRequest || e.Message != `last: "all" is not a number above 0` {
		t.Errorf("%s: %+v", resp.Status, e)
	}
	post, err := http.Post(s.URL, "", nil)
	must(t, err)
	post.Body.Close()
	if post.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", post.Status)
	}
}

// Where nothing is recorded, an empty answer would say that nothing happened.
func TestServeSaysThatRecordsAreOff(t *testing.T) {
	s := httptest.NewServer(New(shop(), Options{Node: "worker-1", Off: true}))
	t.Cleanup(s.Close) // after the bodies
	for _, query := range []string{"", "?follow=1", "?last=5"} {
		resp := get(t, s.URL+query)
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		if resp.StatusCode != http.StatusConflict || !strings.Contains(string(body), ErrOff.Error()) {
			t.Errorf("%q: %s: %s", query, resp.Status, body)
		}
	}
}
