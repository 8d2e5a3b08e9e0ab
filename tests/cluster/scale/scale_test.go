// Package scale runs the agent on one node of a large cluster: a real API server, most of whose
// nodes and pods kwok plays, and a node of network namespaces with pods that have interfaces.
//
//	test ---> kube-apiserver --- etcd           on loopback
//	             |       |
//	           kwok    proxy                    counts what the agent is sent
//	                     |
//	pods here --- node: weir-agent --- up0 --- outside: other nodes, and the pods of two of them
//
// It is a test of what the agent does there, at a size that suits a test, and, by `make
// bench-scale`, prints what that costs it at a size that suits a cluster (docs/scale.md).
package scale

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/cluster/control"
	"github.com/weirnet/weir/tests/cluster/latency"
	"github.com/weirnet/weir/tests/lab"
)

var (
	pods     = flag.Int("pods", 300, "pods of other nodes")
	policies = flag.Int("policies", 40, "network policies")
	local    = flag.Int("local", 10, "pods of this node")
	rounds   = flag.Int("rounds", 2, "how often each latency is measured")
	rates    = flag.String("rates", "20", "events of pods per second of the churns, separated by commas")
	churning = flag.Duration("churn", 3*time.Second, "how long each churn is")
	idle     = flag.Duration("idle", 3*time.Second, "how long nothing happens")
	made     = flag.Bool("made-up", false, "no API server: the objects are made up and fed to the agent")
	out      = flag.String("o", "", "file for the figures; profiles are put beside it (default: none)")
)

const patience = 5 * time.Minute // for what takes seconds on an idle machine, even at scale

// world is the cluster and its one real node.
type world struct {
	*testing.T
	cluster
	*report
	ctx    context.Context
	node   *lab.Node
	proxy  *control.Proxy
	client *api.Client
	addADD latency.Figures
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) until(what string, done func() bool) {
	w.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func TestScale(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Minute)
	t.Cleanup(cancel)
	w := &world{T: t, report: newReport(), ctx: ctx}
	if *made {
		w.cluster = newFeed(t)
	} else {
		w.cluster = newServer(ctx, t)
	}
	w.life()
}

func (w *world) life() {
	w.begin()
	w.fill()
	w.start()
	w.attach()
	w.holds()
	w.latencies()
	for _, text := range split(*rates) {
		rate, err := strconv.Atoi(text)
		w.must(err)
		w.churn(rate)
	}
	w.rest()
	w.restart()
	w.maps()
	w.must(w.write(*out))
	w.Logf("%d pods, %d policies, %d pods here\n%s", *pods, *policies, *local, w.table())
}

// begin makes the node; its agent is not started.
func (w *world) begin() {
	programs, err := filepath.Abs("../../../bin")
	w.must(err)
	run := fmt.Sprintf("weirt-%x", time.Now().UnixNano()&0xffffff)
	w.node, err = lab.Up(lab.Options{Prefix: run + "-", Run: "/run/" + run, Bin: programs, Name: nodeName, Pool4: localCIDR, Pool6: "fd77::/112", Agent: agentFlags()})
	w.must(err)
	w.Cleanup(func() {
		if w.Failed() {
			w.Logf("the agent logged\n%s", w.node.LogTail())
		}
		if err := w.node.Down(); err != nil {
			w.Error(err)
		}
	})
	w.must(w.node.Address("up0", nodeAddress+"/16"))
	w.must(w.node.Outside.Address("up0", address(0)+"/16", address(1)+"/16")) // two other nodes
	w.must(w.node.Do(func() error {
		w.proxy = control.NewProxy(w, w.addr())
		return nil
	}))
	w.node.Source("--kubeconfig", w.kubeconfig(w.proxy.Addr()))
	w.client = api.Dial(w.node.StateDir())
}

// agentFlags: the default size is for 57,000 addresses of pods and nodes.
func agentFlags() []string {
	if *pods+nodes() < 57_000 {
		return nil
	}
	return []string{"--map-size", fmt.Sprintf("addresses=%d", 3*(*pods+nodes()))}
}

// start starts the agent and waits until it answers: all there is is enforced then.
func (w *world) start() {
	w.Helper()
	sent, begun := w.proxy.Delivered(), time.Now()
	w.ready()
	took, u := time.Since(begun), w.usage()
	w.say("agent starts from nothing: time until all is enforced", "s", took.Seconds())
	w.say("agent starts from nothing: CPU", "s", u.cpu.Seconds())
	w.say("agent starts from nothing: peak of resident memory", "MiB", u.peak)
	w.say("agent starts from nothing: sent by the API server", "MiB", float64(w.proxy.Delivered()-sent)/(1<<20))
}

func (w *world) ready() {
	w.Helper()
	w.must(w.node.LaunchAgent())
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, err := w.client.Ping(w.ctx); err == nil {
			break
		} else if time.Now().After(end) {
			w.Fatalf("the agent does not answer: %v\n%s", err, w.node.LogTail())
		}
	}
	w.inForce(0)
}

// inForce: everything is enforced, and nothing is wrong.
func (w *world) inForce(wait time.Duration) api.Status {
	w.Helper()
	s, err := w.client.Status(w.ctx, wait)
	w.must(err)
	if len(s.Errors) > 0 || s.Revision.Applied == 0 || s.Revision.Applied != s.Revision.Desired {
		w.Fatalf("status: %+v", s)
	}
	return s
}

// attach adds this node's pods.
func (w *world) attach() {
	w.Helper()
	for i, object := range w.objectsHere() {
		begun := time.Now()
		p, err := w.node.AddPod(w.ctx, object.Namespace, object.Name)
		w.must(err)
		w.addADD = append(w.addADD, time.Since(begun))
		w.progress(i, *local, "pods attached")
		w.here[object.Name] = p
		w.giveAddress(object, p.Addr4, p.Addr6)
	}
	w.times("CNI ADD, with its namespace", w.addADD)
	w.inForce(patience)
	endpoints, err := w.client.Endpoints(w.ctx)
	w.must(err)
	if len(endpoints) != *local || slices.ContainsFunc(endpoints, func(e api.Endpoint) bool { return !e.Ready }) {
		w.Fatalf("%d of %d endpoints: %+v", len(endpoints), *local, endpoints)
	}
	w.memory("with all pods attached")
}

// memory that is in use, after a collection of garbage and some seconds.
func (w *world) memory(when string) {
	w.Helper()
	heap := w.heap()
	time.Sleep(3 * time.Second)
	u := w.usage()
	w.say("resident "+when, "MiB", u.resident)
	w.say("of that private "+when, "MiB", u.anonymous)
	w.say("objects in the heap "+when, "MiB", heap)
	w.say("peak of resident memory until then", "MiB", u.peak)
	w.profile("heap", url.Values{"kind": {"heap"}})
}

// churn: pods of other nodes come and go, so many events a second.
func (w *world) churn(rate int) {
	w.Helper()
	const lifetime = 4 // events of a pod's: made, given an address, about to go, gone
	name := fmt.Sprintf("churn of %d pod events a second", rate)
	epoch := w.inForce(0)
	events, sent, before, begun := w.events(), w.proxy.Delivered(), w.usage(), time.Now()
	if *out != "" {
		go w.profile(fmt.Sprintf("churn%d", rate), url.Values{"kind": {"cpu"}, "seconds": {fmt.Sprint(max(1, int(churning.Seconds())-1))}})
	}
	tick := time.NewTicker(time.Second * lifetime / time.Duration(rate))
	defer tick.Stop()
	var alive []*pod
	for i := 0; time.Since(begun) < *churning; i++ {
		<-tick.C
		p := podElsewhere(fmt.Sprintf("churn-%d-%d", rate, i), i)
		w.must(w.create(p))
		alive = append(alive, p)
		if len(alive) > max(2, rate/2) { // some seconds old
			w.must(w.remove(alive[0], false))
			alive = alive[1:]
		}
	}
	took := time.Since(begun)
	n := w.events() - events
	w.say(name+": events a second", "", float64(n)/took.Seconds())
	w.say(name+": CPU", "% of a core", 100*(w.usage().cpu-before.cpu).Seconds()/took.Seconds())
	w.say(name+": sent by the API server", "KiB an event", float64(w.proxy.Delivered()-sent)/1024/float64(max(n, 1)))
	if n < rate*int(took.Seconds())/4 {
		w.Errorf("%s: %d in %s", name, n, took)
	}
	for _, p := range alive {
		w.must(w.remove(p, false))
	}
	w.until("pods of the churn are gone", func() bool {
		n, _ := w.count("churn-")
		return n == 0
	})
	if now := w.inForce(patience); now.Revision.Applied <= epoch.Revision.Applied {
		w.Errorf("%s: revision %+v, and before %+v", name, now.Revision, epoch.Revision)
	}
}

// rest: nothing happens.
func (w *world) rest() {
	w.Helper()
	time.Sleep(2 * time.Second)
	sent, before, switches, begun := w.proxy.Delivered(), w.usage(), w.switches(), time.Now()
	time.Sleep(*idle)
	took := time.Since(begun).Seconds()
	w.say("idle: CPU", "% of a core", 100*(w.usage().cpu-before.cpu).Seconds()/took)
	w.say("idle: a thread waits", "times a second", float64(w.switches()-switches)/took)
	w.say("idle: sent by the API server", "KiB/s", float64(w.proxy.Delivered()-sent)/1024/took)
	w.say("idle: resident", "MiB", w.usage().resident)
	w.memory("idle, garbage collected")
}

// restart: another agent takes over what is in force.
func (w *world) restart() {
	w.Helper()
	was := w.inForce(0)
	w.must(w.node.StopAgent())
	begun := time.Now()
	w.ready()
	took, u := time.Since(begun), w.usage()
	w.say("agent starts again: time until it answers", "s", took.Seconds())
	w.say("agent starts again: CPU", "s", u.cpu.Seconds())
	w.say("agent starts again: peak of resident memory", "MiB", u.peak)
	if now := w.inForce(0); now.Epoch != was.Epoch || now.Endpoints != was.Endpoints {
		w.Errorf("nothing changed, and the epoch is %d with %d endpoints after %d with %d", now.Epoch, now.Endpoints, was.Epoch, was.Endpoints)
	}
	w.memory("after a start")
}

func hostPort(addr string) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

// giveAddress of a pod whose kubelet the test is.
func (w *world) giveAddress(p *pod, addrs ...string) {
	w.Helper()
	w.must(w.address(p, addrs...))
}
