package kube

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weirnet/weir/controlplane/source"
)

// Pods of other nodes that come without a pause are handed on together; what is alone, this node's
// and what is no pod are not kept waiting, by clocks that stand still meanwhile.
func TestPodsElsewhereAreHandedOnTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Client: &Client{}, NodeName: "a", Log: slog.New(slog.DiscardHandler)})
		w := &world{T: t, stores: s.stores}
		for _, k := range s.stores.kinds() {
			w.must(k.store.Replace(nil, "1"))
		}
		w.must(w.namespaces.Add(w.namespace("shop", "")))
		w.must(w.nodes.Add(w.node("a", "10.0.1.0/24")))
		ctx, cancel := context.WithCancel(t.Context())
		updates, last := 0, 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.handOn(ctx, func(u source.Update) {
				updates++
				last = len(u.Changes.Pods) + len(u.Changes.NetworkPolicies) + len(u.Changes.Namespaces)
			})
		}()
		pod := func(i int, node string) {
			p := w.pod("shop", fmt.Sprint("pod-", i), "web")
			p.Spec.NodeName = node
			w.must(w.pods.Add(p))
		}
		after := func(pause time.Duration, f func()) (handed int, late time.Duration) {
			time.Sleep(pause)
			synctest.Wait()
			before, began := updates, time.Now()
			f()
			for range 100 {
				synctest.Wait()
				if updates > before {
					return last, time.Since(began)
				}
				time.Sleep(time.Millisecond)
			}
			t.Fatal("nothing is handed on")
			return 0, 0
		}
		if _, late := after(time.Second, func() { pod(0, "b") }); late != 0 {
			t.Errorf("a pod elsewhere after a pause: handed on after %s", late)
		}
		time.Sleep(time.Second)
		begun := updates
		for i := range 100 { // for a second
			pod(i+1, "b")
			time.Sleep(10 * time.Millisecond)
		}
		if n := updates - begun; n < 20 || n > 30 {
			t.Errorf("100 pods in a second: %d updates", n)
		}
		for name, f := range map[string]func(){
			"a pod here":  func() { pod(200, "a") },
			"a namespace": func() { w.must(w.namespaces.Add(w.namespace("new", ""))) },
		} {
			for i := range 10 {
				pod(300+i, "b")
				time.Sleep(10 * time.Millisecond)
			}
			if handed, late := after(0, f); late > joinTime || handed == 0 {
				t.Errorf("%s among pods elsewhere: handed on after %s", name, late)
			}
		}
		cancel()
		<-done
	})
}
