package installed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/cluster/bare"
	"github.com/weirnet/weir/tests/lab"
)

// pod is a pod's network, to act from.
func (w *world) pod(namespace, name string) *lab.Host {
	w.Helper()
	node := w.nodeOf(namespace, name)
	addrs := w.addresses(namespace, name)
	h := &lab.Host{Name: namespace + "/" + name, Addr4: addrs[0], Addr6: addrs[1]}
	files, err := filepath.Glob(node.Path("/run/netns/*"))
	w.must(err)
	for _, f := range files {
		h.File = f
		found := false
		err := h.Do(func() error {
			all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
			for _, a := range all {
				found = found || a.IP.String() == h.Addr4
			}
			return err
		})
		if err == nil && found {
			return h
		}
	}
	w.Fatalf("no network namespace on %s has the address of %s", node.Name, h.Name)
	return nil
}

func (w *world) nodeOf(namespace, name string) *bare.Node {
	w.Helper()
	at := w.kubectl("-n", namespace, "get", "pod", name, "-o", "jsonpath={.spec.nodeName}")
	for _, n := range w.Nodes {
		if n.Name == at {
			return n
		}
	}
	w.Fatalf("pod %s/%s is on node %q", namespace, name, at)
	return nil
}

// flow is a connection that asks and hears all the time.
type flow struct {
	conn  net.Conn
	stop  context.CancelFunc
	ended chan error
	mu    sync.Mutex
	gap   time.Duration // the longest between two answers
	asked int
}

func (w *world) flow(from, to *lab.Host, family int) *flow {
	w.Helper()
	conn, err := from.Connect(to.Addr(family), 8080)
	w.must(err)
	ctx, stop := context.WithCancel(context.Background())
	f := &flow{conn: conn, stop: stop, ended: make(chan error, 1)}
	go func() { f.ended <- f.run(ctx) }()
	w.Cleanup(func() { stop(); conn.Close() })
	return f
}

func (f *flow) run(ctx context.Context) error {
	r := bufio.NewReader(f.conn)
	for last := time.Now(); ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		_ = f.conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := f.conn.Write([]byte("GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			return err
		}
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if _, err := r.Discard(int(answer.ContentLength)); err != nil {
			return err
		}
		f.mu.Lock()
		f.gap, f.asked, last = max(f.gap, time.Since(last)), f.asked+1, time.Now()
		f.mu.Unlock()
	}
	return nil
}

// end wants that it never stopped for long.
func (w *world) end(what string, f *flow, limit time.Duration) {
	w.Helper()
	f.stop()
	err := <-f.ended
	f.conn.Close()
	if err != nil || f.gap > limit || f.asked == 0 {
		w.Errorf("%s: %d answers, %s without one, at the longest: %v", what, f.asked, f.gap, err)
		return
	}
	w.Logf("%s: %d answers, %s at most between two", what, f.asked, f.gap.Round(time.Millisecond))
}

// intruder tries what policy forbids, all the time.
type intruder struct {
	stop  context.CancelFunc
	ended chan []string
	tries int
}

func (w *world) intruder(from *lab.Host, to ...*lab.Host) *intruder {
	ctx, stop := context.WithCancel(context.Background())
	i := &intruder{stop: stop, ended: make(chan []string, 1)}
	w.Cleanup(stop)
	go func() {
		var reached []string
		for ctx.Err() == nil {
			for _, t := range to {
				for _, family := range []int{4, 6} {
					i.tries++
					conn, err := from.ConnectWithin(t.Addr(family), 8080, 100*time.Millisecond)
					if err == nil {
						reached = append(reached, fmt.Sprintf("%s %s at %s", t.Name, t.Addr(family), time.Now().Format(time.TimeOnly)))
						conn.Close()
					}
				}
			}
		}
		i.ended <- reached
	}()
	return i
}

// foiled wants that it reached nobody; where others may have its addresses, too, none of at.
func (w *world) foiled(i *intruder, at ...*lab.Host) {
	w.Helper()
	i.stop()
	reached := slices.DeleteFunc(<-i.ended, func(what string) bool {
		return len(at) > 0 && !slices.ContainsFunc(at, func(h *lab.Host) bool {
			return slices.Contains(strings.Fields(what), h.Addr4) || slices.Contains(strings.Fields(what), h.Addr6)
		})
	})
	if len(reached) > 0 || i.tries < 10 {
		w.Errorf("of %d forbidden connections, %d were made: %v", i.tries, len(reached), reached[:min(len(reached), 10)])
	}
}

const onlyFriends = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: life, name: friends}
spec:
  podSelector: {matchLabels: {name: server}}
  ingress: [{from: [{podSelector: {matchLabels: {name: friend}}}]}]
`

// scene for an agent's life: friend may talk to server, stranger may not, each on a node.
func (w *world) scene() (friend, stranger, server *lab.Host) {
	w.Helper()
	w.namespace("life", "friend@node1", "stranger@node1", "server@node2")
	w.apply(onlyFriends)
	friend, stranger, server = w.pod("life", "friend"), w.pod("life", "stranger"), w.pod("life", "server")
	w.until("the policy is enforced", func() error {
		if got, err := stranger.Probe("tcp", server.Addr4, 8080); got == lab.Silent || err != nil {
			return err
		}
		return errors.New("a stranger is let in")
	})
	return friend, stranger, server
}

// restart: all agents anew, one after the other, while pods talk and one tries to intrude.
func (w *world) restart() {
	friend, stranger, server := w.scene()
	v4, v6, thief := w.flow(friend, server, 4), w.flow(friend, server, 6), w.intruder(stranger, server)
	w.kubectl("-n", "kube-system", "rollout", "restart", "daemonset/weir-agent")
	w.newcomer(friend, stranger, w.rolledOut)
	w.newcomer(friend, stranger, func() {})
	w.foiled(thief)
	w.end("IPv4 over a rolling restart", v4, time.Second)
	w.end("IPv6 over a rolling restart", v6, time.Second)
}

// newcomer: a pod that is made now is under policy from its first packet, which a stranger
// tries from before it is there, and reaches who may reach it. Meanwhile something happens.
func (w *world) newcomer(friend, stranger *lab.Host, meanwhile func()) {
	w.Helper()
	node := w.nodeOf("life", "server")
	to := w.toCome(node)
	thief := w.intruder(stranger, to...)
	w.apply(strings.NewReplacer("name: friends}", "name: late}", "name: server}", "name: late}").Replace(onlyFriends))
	w.apply(server("life", "late", node.Name))
	meanwhile()
	w.kubectl("-n", "life", "wait", "--for=condition=Ready", "pod", "late", "--timeout="+patience.String())
	late := w.pod("life", "late")
	for _, family := range []int{4, 6} {
		if !slices.ContainsFunc(to, func(h *lab.Host) bool { return h.Addr(family) == late.Addr(family) }) {
			w.Errorf("the stranger did not try %s, which the new pod has", late.Addr(family))
		}
	}
	for _, family := range []int{4, 6} {
		if got, err := friend.Probe("tcp", late.Addr(family), 8080); got != lab.Answered || err != nil {
			w.Errorf("a new pod, IPv%d: %v %v", family, got, err)
		}
	}
	w.foiled(thief)
	w.kubectl("-n", "life", "delete", "pod", "late", "--wait")
}

// toCome are the addresses that a node's next pod may have: an ADD that fails takes some, too.
func (w *world) toCome(node *bare.Node) []*lab.Host {
	w.Helper()
	var next [2]netip.Addr
	for i := range next {
		// Of the network that gave out the last one: behind another plugin it is not named weir.
		last, err := node.Inside(w.ctx, "sh", "-c", fmt.Sprintf("cat $(ls -t /var/lib/cni/networks/*/last_reserved_ip.%d | head -n 1)", i))
		w.must(err)
		next[i], err = netip.ParseAddr(strings.TrimSpace(last))
		w.must(err)
	}
	slices.SortFunc(next[:], func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	var to []*lab.Host
	for range 4 {
		next[0], next[1] = next[0].Next(), next[1].Next()
		to = append(to, &lab.Host{Name: "the next pod", Addr4: next[0].String(), Addr6: next[1].String()})
	}
	return to
}

// kill: agents that are killed, both at once and again.
func (w *world) kill() {
	friend, stranger, server := w.scene()
	v4, thief := w.flow(friend, server, 4), w.intruder(stranger, server)
	for range 2 {
		for _, n := range w.Nodes {
			_, err := n.Inside(w.ctx, "sh", "-c", "kill -KILL $(pidof weir-agent)")
			w.must(err)
		}
		w.newcomer(friend, stranger, func() {
			time.Sleep(time.Second)
			w.agentsReady()
		})
	}
	w.foiled(thief)
	w.end("IPv4 over agents that are killed", v4, time.Second)
}

// agentsReady waits for the agents to run again.
func (w *world) agentsReady() {
	w.Helper()
	for _, n := range w.Nodes {
		w.until("weir status on "+n.Name, func() error {
			_, err := w.Kubectl(w.ctx, "-n", "kube-system", "exec", w.agent(n), "--", "weir", "status")
			return err
		})
	}
}

// agent is the pod of a node's.
func (w *world) agent(n *bare.Node) string {
	w.Helper()
	return strings.TrimSpace(w.kubectl("-n", "kube-system", "get", "pod", "-l", "app.kubernetes.io/name=weir", "--field-selector=spec.nodeName="+n.Name, "-o", "jsonpath={.items[0].metadata.name}"))
}

// reboot: a node that loses power has nothing left but its disk. Its pods come back with
// other addresses, under policy from their first packet; the other node goes on.
func (w *world) reboot() {
	friend, stranger, _ := w.scene()
	node := w.nodeOf("life", "server")
	w.apply(server("life", "same", "node1"))
	w.kubectl("-n", "life", "wait", "--for=condition=Ready", "pod", "same", "--timeout="+patience.String())
	beside := w.flow(friend, w.pod("life", "same"), 4)
	restarts := w.kubectl("-n", "life", "get", "pod", "server", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
	thief := w.intruder(stranger, w.toCome(node)...)
	node.Reboot()
	w.until("the server runs again", func() error {
		now := w.kubectl("-n", "life", "get", "pod", "server", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
		if now == restarts {
			return errors.New("not restarted yet")
		}
		_, err := w.Kubectl(w.ctx, "-n", "life", "wait", "--for=condition=Ready", "pod", "server", "--timeout=5s")
		return err
	})
	back := w.pod("life", "server")
	for _, family := range []int{4, 6} {
		w.until(fmt.Sprintf("a friend is let in after the reboot, IPv%d", family), func() error {
			if got, err := friend.Probe("tcp", back.Addr(family), 8080); got != lab.Answered || err != nil {
				return fmt.Errorf("%v %v", got, err)
			}
			return nil
		})
		if got, err := stranger.Probe("tcp", back.Addr(family), 8080); got != lab.Silent || err != nil {
			w.Errorf("a stranger, IPv%d, after the reboot: %v %v", family, got, err)
		}
	}
	w.foiled(thief, back)
	w.end("between pods of the other node", beside, time.Second)
	w.agentsReady()
	w.leases(node)
}

// leases of a node's addresses: one for each pod that runs, none of before.
func (w *world) leases(node *bare.Node) {
	w.Helper()
	list, err := w.Admin.CoreV1().Pods("").List(w.ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node.Name})
	w.must(err)
	var pods []string
	for _, p := range list.Items {
		if !p.Spec.HostNetwork {
			pods = append(pods, ips(&p)...)
		}
	}
	w.until("leases are those of pods that run", func() error {
		out, err := node.Inside(w.ctx, "ls", "/var/lib/cni/networks/weir")
		if err != nil {
			return err
		}
		have := slices.DeleteFunc(strings.Fields(out), func(name string) bool { return name == "lock" || strings.HasPrefix(name, "last_reserved") })
		slices.Sort(have)
		slices.Sort(pods)
		if !slices.Equal(have, pods) || len(pods) == 0 {
			return fmt.Errorf("leases %v, pods have %v", have, pods)
		}
		return nil
	})
}
