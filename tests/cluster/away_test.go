package cluster

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

// TestRelist: what happened behind the source's back, deletions too, comes in one update;
// until then nothing changes, and what did not change is never missing.
func TestRelist(t *testing.T) {
	s := newScene(t)
	s.begin()
	for i := range 20 {
		s.makePod(fmt.Sprint("stays", i), "x")
	}
	s.makePod("gone", "x")
	s.makePod("relabelled", "x")
	s.makePod("replaced", "x")
	s.sync()
	was, seen := s.last(), s.count()

	s.proxy.Cut()
	s.deletePod("gone")
	s.label("relabelled", "y")
	s.deletePod("replaced")
	again := s.makePod("replaced", "x")
	s.makePod("new", "z")
	s.until("a word about the API server", func() bool { return len(s.source.Warnings()) > 0 })
	s.StopAPI() // its history goes with it: the watches cannot go on where they were
	s.StartAPI()
	if s.count() != seen || s.last().Revision != was.Revision {
		t.Errorf("%d updates while the API server was away", s.count()-seen)
	}
	s.proxy.Mend()
	s.eventually("the new pod", func(u source.Update) bool { return app(u, "new") == "z" })
	s.sync()
	u := s.last()
	if app(u, "gone") != "" || app(u, "relabelled") != "y" || u.Cluster.Pods[shop("replaced")].UID != again.UID {
		t.Errorf("pods %v", pods(u))
	}
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 }) // each kind comes back by itself
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.updates[seen:] {
		_, old := u.Cluster.Pods[shop("gone")]
		_, fresh := u.Cluster.Pods[shop("new")]
		if old == fresh {
			t.Errorf("revision %d is neither before nor after: %v", u.Revision, pods(u))
		}
		for i := range 20 {
			if app(u, fmt.Sprint("stays", i)) != "x" {
				t.Errorf("revision %d lacks a pod that was there all the time", u.Revision)
			}
		}
	}
}

func pods(u source.Update) map[types.NamespacedName]*policy.Pod { return maps.Clone(u.Cluster.Pods) }

// TestWatchesBreak again and again while objects change: nothing is lost, nothing leaks.
func TestWatchesBreak(t *testing.T) {
	s := newScene(t)
	s.begin()
	s.sync()
	before := runtime.NumGoroutine()
	for i := range 40 {
		s.makePod(fmt.Sprint("p", i), "a")
		s.proxy.Break()
		s.label(fmt.Sprint("p", i), "b")
		if i%2 == 0 {
			s.deletePod(fmt.Sprint("p", i))
		}
		if i%10 == 9 { // let it come back, and not by luck
			s.eventually("the last pod", func(u source.Update) bool { return app(u, fmt.Sprint("p", i)) == "b" })
		}
	}
	s.eventually("all pods", func(u source.Update) bool { return len(u.Cluster.Pods) == 20 })
	for i := range 40 {
		want := "b"
		if i%2 == 0 {
			want = ""
		}
		if got := app(s.last(), fmt.Sprint("p", i)); got != want {
			t.Errorf("p%d: %q, want %q", i, got, want)
		}
	}
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 })
	s.until("as many goroutines as before", func() bool { return runtime.NumGoroutine() <= before+10 })
	if s.proxy.Taken() < 20 {
		t.Errorf("only %d connections: nothing was broken", s.proxy.Taken())
	}
	s.checkRevisions()
}

// TestAPIServerAway: everything stays, it is said since when, and it goes on when the
// server is back.
func TestAPIServerAway(t *testing.T) {
	s := newScene(t)
	s.begin()
	s.makePod("p", "a")
	revision := s.sync()
	seen := s.count()
	before := runtime.NumGoroutine()

	s.StopAPI()
	s.until("a word about the API server", func() bool { return len(s.source.Warnings()) > 0 })
	time.Sleep(3 * time.Second) // retries go on: nothing may come of them
	w := s.source.Warnings()
	if len(w) != 1 || !strings.Contains(w[0], "does not answer") || !strings.Contains(w[0], "(since ") || !strings.HasSuffix(w[0], "stays in force") {
		t.Errorf("warnings %q", w)
	}
	if _, err := s.source.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), s.proxy.Addr()) {
		t.Errorf("sync: %v", err)
	}
	if s.count() != seen || s.last().Revision != revision {
		t.Errorf("%d updates while the API server was away", s.count()-seen)
	}
	if n := strings.Count(s.log.String(), "does not answer"); n != 1 {
		t.Errorf("%d lines about one outage", n)
	}

	s.StartAPI()
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 })
	if !strings.Contains(s.log.String(), "mended: API server") {
		t.Error("the end of the outage is not logged")
	}
	s.label("p", "b")
	s.eventually("a change after the outage", func(u source.Update) bool { return app(u, "p") == "b" })
	s.until("as many goroutines as before", func() bool { return runtime.NumGoroutine() <= before+10 })

	s.stop()
	s.until("the end", func() bool { return len(s.ended) == 1 })
	s.must(<-s.ended)
}

// TestAPIServerSilent: connections that stay and carry nothing are noticed, too.
func TestAPIServerSilent(t *testing.T) {
	s := newScene(t)
	s.begin()
	s.makePod("p", "a")
	revision := s.sync()
	goOn := s.proxy.Stall()
	begun := time.Now()
	s.label("p", "b")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := s.source.Sync(ctx); err == nil {
		t.Error("sync over a silent connection")
	}
	for len(s.source.Warnings()) == 0 { // pings: after 30 s without a word, for 15 s
		if time.Since(begun) > 3*time.Minute {
			t.Fatal("an API server that is silent is not missed")
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("missed after %s: %s", time.Since(begun), s.source.Warnings()[0])
	if s.last().Revision != revision {
		t.Error("an update out of nothing")
	}
	goOn()
	s.eventually("the label", func(u source.Update) bool { return app(u, "p") == "b" })
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 })
}

// TestStartWithoutAPIServer: nothing is handed on before everything is there.
func TestStartWithoutAPIServer(t *testing.T) {
	s := newScene(t)
	s.makeNamespace("shop")
	s.makePod("p", "a")
	s.proxy.Cut()
	s.watch(s.Kubeconfig(s.proxy.Addr(), ""))
	s.until("a word about what is waited for", func() bool { return strings.Contains(s.log.String(), "waits for the API server") })
	s.proxy.Mend()
	s.until("a word about the node", func() bool { return strings.Contains(s.log.String(), `a Node \"node-a\"`) })
	if s.count() != 0 {
		t.Fatalf("%d updates without the node", s.count())
	}
	s.makeNode(nodeName) // without a range
	s.eventually("a first update", func(u source.Update) bool { return app(u, "p") == "a" })
	s.sync()
	if w := s.source.Warnings(); len(w) != 1 || !strings.Contains(w[0], "Node node-a: spec.podCIDRs: has none") {
		t.Errorf("warnings %q", w)
	}
	_, err := s.Admin.CoreV1().Nodes().Patch(t.Context(), nodeName, types.MergePatchType, []byte(`{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]}}`), patch)
	s.must(err)
	s.eventually("the range", func(u source.Update) bool { return len(u.Nodes.Own.PodCIDRs) == 1 })
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 })
}

// TestSyncPolicies: whatever the watch is about, who asks for a namespace's policies gets
// those that there are; and with no API server those that were.
func TestSyncPolicies(t *testing.T) {
	s := newScene(t)
	s.begin()
	s.sync()
	for i := range 10 {
		name := fmt.Sprint("p", i)
		s.makePolicy(name, networkingv1.NetworkPolicySpec{})
		if i%3 == 0 {
			s.proxy.Break()
		}
		s.must(s.source.SyncPolicies(t.Context(), "shop"))
		if s.last().Cluster.NetworkPolicies[shop(name)] == nil {
			t.Fatalf("policy %s is not there", name)
		}
	}
	s.proxy.Cut()
	began := time.Now()
	s.must(s.source.SyncPolicies(t.Context(), "shop"))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("an API server that is away was waited for %v", took)
	}
}
