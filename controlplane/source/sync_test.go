package source

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"
)

// Whatever was on disk when Sync was called is in the update it names.
func TestSyncIsExact(t *testing.T) {
	r := newRig(t).start()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 3 { // writers that never rest
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				r.replace(fmt.Sprintf("noise-%d.yaml", w), podYAML(fmt.Sprintf("noise-%d", w), fmt.Sprint(i)))
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for i := range 100 {
		// Alternately by rename and in place, the latter of equal length and, where the
		// clock is coarse, equal stamp.
		write := r.replace
		if i%2 == 1 {
			write = r.edit
		}
		want := fmt.Sprintf("%03d", i)
		write("mine.yaml", podYAML("mine", want))
		revision, err := r.d.Sync(ctx)
		must(t, err)
		i := slices.IndexFunc(r.all(), func(u Update) bool { return u.Revision == revision })
		if i < 0 {
			t.Fatalf("no update of revision %d before sync returned", revision)
		}
		if p := pod(r.all()[i].Cluster, "mine"); p == nil || p.Labels["v"] != want {
			t.Fatalf("revision %d has %s, want mine=%s", revision, text(r.all()[i]), want)
		}
	}
	close(stop)
	wg.Wait()
}

func TestSyncEnds(t *testing.T) {
	r := newRig(t)
	d, err := NewDirectory(r.dir, r.state, slog.New(slog.DiscardHandler))
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := d.Sync(ctx); err == nil {
		t.Error("sync without run came back without an error")
	}
	must(t, d.Run(ctx, func(Update) {}))
	if _, err := d.Sync(context.Background()); err == nil {
		t.Error("sync after run came back without an error")
	}
}
