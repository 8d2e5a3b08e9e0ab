package scale

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

var watching = flag.String("watchers", "20", "how many agents' worth of watches the API server has at a time, separated by commas")

// watched is what an agent watches.
var watched = []string{"/api/v1/pods", "/api/v1/namespaces", "/api/v1/nodes", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices",
	"/apis/networking.k8s.io/v1/networkpolicies", "/apis/coordination.k8s.io/v1/leases"}

const (
	watchedPods = 20
	eventRate   = 20
)

// TestWatchersCost says what watchers cost the API server: memory for each, time for each and
// each event of a pod. All of them hear of every event.
func TestWatchersCost(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	s := newServer(ctx, t)
	w := &world{T: t, report: newReport(), ctx: ctx, cluster: s}
	w.makeNamespace(namespace(0), nil)
	for i := range watchedPods {
		w.must(s.create(podOf(namespace(0), fmt.Sprintf("pod-%d", i), "nowhere", nil)))
	}
	base := w.eventsCost(s, nil)
	for _, text := range split(*watching) {
		n, err := strconv.Atoi(text)
		w.must(err)
		before := apiMemory(w, s)
		all := w.watch(s, n)
		time.Sleep(3 * time.Second)
		memory := apiMemory(w, s) - before
		cost := w.eventsCost(s, all)
		t.Logf("%d watchers: %.0f KiB of memory each; an event of a pod costs %.2f ms of time, %.2f ms without them: %.1f us a watcher; each is sent %.1f KiB an event",
			n, memory/1024/float64(n), cost.ms, base.ms, 1000*(cost.ms-base.ms)/float64(n), float64(cost.bytes)/1024/float64(n))
		for _, one := range all {
			one.stop()
		}
		time.Sleep(2 * time.Second)
	}
}

// watcher is an agent's connection.
type watcher struct {
	stop  func()
	bytes atomic.Int64 // of pods
}

// watch opens n connections with an agent's watches on each.
func (w *world) watch(s *server, n int) (all []*watcher) {
	list, err := s.admin.CoreV1().Pods("").List(w.ctx, metav1.ListOptions{Limit: 1})
	w.must(err)
	config := s.Config()
	tls, err := rest.TLSConfigFor(config)
	w.must(err)
	for range n {
		one := &watcher{}
		ctx, stop := context.WithCancel(w.ctx)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: tls.Clone(), ForceAttemptHTTP2: true}}
		one.stop = func() { stop(); client.CloseIdleConnections() }
		w.Cleanup(one.stop)
		for i, path := range watched {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.addr()+path+"?watch=1&allowWatchBookmarks=true&resourceVersion="+list.ResourceVersion, nil)
			w.must(err)
			r.Header.Set("Accept", "application/vnd.kubernetes.protobuf;stream=watch")
			answer, err := client.Do(r)
			w.must(err)
			if answer.StatusCode != http.StatusOK {
				w.Fatalf("watch of %s: %s", path, answer.Status)
			}
			go one.read(answer.Body, i == 0)
		}
		all = append(all, one)
	}
	return all
}

func (one *watcher) read(body io.ReadCloser, pods bool) {
	defer body.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := body.Read(b)
		if pods {
			one.bytes.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}

type eventCost struct {
	ms    float64 // of the API server's time, an event
	bytes int64   // to all watchers, an event
}

// eventsCost changes pods for a while; whoever watches has to hear of it.
func (w *world) eventsCost(s *server, all []*watcher) eventCost {
	was, sent := apiTime(w, s), int64(0)
	for _, one := range all {
		sent -= one.bytes.Load()
	}
	each := make([]int64, len(all))
	for i, one := range all {
		each[i] = one.bytes.Load()
	}
	count := int(eventRate * *churning / time.Second)
	tick := time.NewTicker(time.Second / eventRate)
	defer tick.Stop()
	for i := range count {
		<-tick.C
		w.must(s.label(namespace(0), fmt.Sprintf("pod-%d", i%watchedPods), "step", fmt.Sprint(i)))
	}
	const least = 1000 // bytes of a pod's event
	w.until("all watchers have heard of all events", func() bool {
		for i, one := range all {
			if one.bytes.Load()-each[i] < int64(count)*least {
				return false
			}
		}
		return true
	})
	time.Sleep(time.Second)
	for _, one := range all {
		sent += one.bytes.Load()
	}
	return eventCost{ms: 1000 * (apiTime(w, s) - was).Seconds() / float64(count), bytes: sent / int64(count)}
}

// apiTime is what the API server has had of CPUs.
func apiTime(w *world, s *server) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.APIPid()))
	w.must(err)
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	user, err := strconv.Atoi(fields[11])
	w.must(err)
	system, err := strconv.Atoi(fields[12])
	w.must(err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// apiMemory is the API server's resident memory.
func apiMemory(w *world, s *server) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.APIPid()))
	w.must(err)
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	w.must(err)
	return float64(kib) * 1024
}
