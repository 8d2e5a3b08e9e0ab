package installed

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/tests/lab"
)

var (
	rounds   = flag.Int("rounds", 10, "how often each latency is measured")
	policies = flag.Int("policies", 120, "how many policies there are beside those that change")
)

const (
	beat    = 2 * time.Millisecond
	late    = 60 * time.Millisecond  // no answer until then: there is none
	settled = 200 * time.Millisecond // of probes that all say the same
)

// prober asks over UDP all the time, and knows which of its questions were answered.
type prober struct {
	conn net.Conn
	mu   sync.Mutex
	sent []time.Time
	got  []bool
}

func (w *world) prober(from *lab.Host, addr string) *prober {
	w.Helper()
	p := &prober{}
	w.must(from.Do(func() (err error) {
		p.conn, err = net.Dial("udp", net.JoinHostPort(addr, "8081"))
		return err
	}))
	ctx, stop := context.WithCancel(context.Background())
	w.Cleanup(func() { stop(); p.conn.Close() })
	go p.ask(ctx)
	go p.hear()
	return p
}

func (p *prober) ask(ctx context.Context) {
	for tick := time.NewTicker(beat); ctx.Err() == nil; <-tick.C {
		p.mu.Lock()
		p.sent, p.got = append(p.sent, time.Now()), append(p.got, false)
		question := fmt.Sprint("echo ", len(p.sent)-1)
		p.mu.Unlock()
		_, _ = p.conn.Write([]byte(question))
	}
}

func (p *prober) hear() {
	b := make([]byte, 64)
	for {
		n, err := p.conn.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if i, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil {
			p.mu.Lock()
			p.got[i] = true
			p.mu.Unlock()
		}
	}
}

// since an event: how long until a question was the first of those that all are answered, or
// all are not.
func (p *prober) since(event time.Time, answered bool) (time.Duration, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		last := len(p.sent) - 1
		for last >= 0 && time.Since(p.sent[last]) < late {
			last--
		}
		first := last + 1
		for first > 0 && p.got[first-1] == answered && p.sent[first-1].After(event) {
			first--
		}
		var from, to time.Time
		if first <= last {
			from, to = p.sent[first], p.sent[last]
		}
		p.mu.Unlock()
		if first <= last && to.Sub(from) >= settled {
			return from.Sub(event), nil
		}
	}
	return 0, fmt.Errorf("not within %s", patience)
}

// figures of one kind of latency.
type figures []time.Duration

func (f figures) at(share float64) time.Duration {
	slices.Sort(f)
	return f[min(int(share*float64(len(f))), len(f)-1)]
}

func (w *world) report(what string, f figures) {
	w.Helper()
	if len(f) == 0 {
		w.Errorf("%s: not measured", what)
		return
	}
	w.Logf("%-46s p50 %7.1f ms   p99 %7.1f ms   (%d)", what, ms(f.at(.5)), ms(f.at(.99)), len(f))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func byName(name string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"name": name}}
}

// ingress of the server from who has a label; from nobody, if it is empty.
func ingress(name, key, value string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "latency", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: byName("server"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}
	if key != "" {
		from := metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &from}}}}
	}
	return p
}

// latency from an API call's return to its effect on packets between two nodes.
func (w *world) latency() {
	w.namespace("latency", "server@node2", "client@node1")
	server, client := w.pod("latency", "server"), w.pod("latency", "client")
	p := w.prober(client, server.Addr4)
	api := w.Admin.NetworkingV1().NetworkPolicies("latency")
	measure := func(f *figures, answered bool, call func() error) {
		w.Helper()
		w.must(call())
		d, err := p.since(time.Now(), answered)
		w.must(err)
		*f = append(*f, d)
	}
	create := func(n *networkingv1.NetworkPolicy) func() error {
		return func() error { _, err := api.Create(w.ctx, n, metav1.CreateOptions{}); return err }
	}
	remove := func(name string) func() error {
		return func() error { return api.Delete(w.ctx, name, metav1.DeleteOptions{}) }
	}
	label := func(patch string) func() error {
		return func() error {
			_, err := w.Admin.CoreV1().Pods("latency").Patch(w.ctx, "client", types.MergePatchType, []byte(`{"metadata":{"labels":{"team":`+patch+`}}}`), metav1.PatchOptions{})
			return err
		}
	}
	var first, last, more, less, gained, lost figures
	for range *rounds {
		measure(&first, false, create(ingress("deny", "", "")))
		measure(&last, true, remove("deny"))
	}
	w.must(create(ingress("deny", "", ""))())
	for i := range *policies {
		w.must(create(ingress(fmt.Sprint("other", i), "other", fmt.Sprint(i)))())
	}
	for range *rounds {
		measure(&more, true, create(ingress("client", "name", "client")))
		measure(&less, false, remove("client"))
	}
	w.must(create(ingress("team", "team", "blue"))())
	for range *rounds {
		measure(&gained, true, label(`"blue"`))
		measure(&lost, false, label("null"))
	}
	among := fmt.Sprintf(" (among %d policies)", *policies)
	w.report("a pod's first policy", first)
	w.report("its last policy deleted", last)
	w.report("one more allow"+among, more)
	w.report("one less allow"+among, less)
	w.report("a peer's label gained"+among, gained)
	w.report("a peer's label lost"+among, lost)
}
