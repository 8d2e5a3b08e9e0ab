package installed

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// otherLayout is the tag of an image whose agent lays its maps out in another way.
const otherLayout = "other-layout"

// upgrade to a build with another layout of maps and back, as a user does it, while pods of two
// nodes talk, others begin to and one tries to intrude; the second time agents die as they start.
// Not a segment is lost.
func (w *world) upgrade() {
	w.importOther()
	friend, stranger, served := w.scene()
	for _, h := range []*lab.Host{friend, served} {
		w.patient(h)
	}
	v4, v6 := w.flow(friend, served, 4), w.flow(friend, served, 6)
	visits, thief := w.visitor(friend, served), w.intruder(stranger, served)
	lost := w.retransmitted(friend) + w.retransmitted(served)
	steps := []upgradeStep{
		{what: "another layout", values: []string{"image.tag=" + otherLayout}},
		{what: "back, and agents die as they start", die: true},
		{what: "another layout at once", values: []string{"image.tag=" + otherLayout, "maxUnavailable=100%"}},
		{what: "back"},
	}
	if *shard != "" {
		steps = steps[2:]
	}
	for _, step := range steps {
		died := func() {}
		if step.die {
			died = w.dieAtStart()
		}
		w.apply(w.manifest(step.values...))
		w.newcomer(friend, stranger, w.rolledOut)
		died()
		w.agentsReady()
		for _, n := range w.Nodes {
			log := "/var/log/pods/kube-system_" + w.agent(n) + "_*"
			if out, err := n.Inside(w.ctx, "sh", "-c", "grep -rh 'programs are in force on new maps' "+log); err != nil {
				w.Errorf("%s: %s's agent made no new maps: %v\n%s", step.what, n.Name, err, out)
			}
		}
		now := w.retransmitted(friend) + w.retransmitted(served)
		if now != lost {
			w.Errorf("%s: %d segments were lost", step.what, now-lost)
		}
		lost = now
	}
	w.foiled(thief)
	w.visited(visits)
	w.end("IPv4 over upgrades", v4, time.Second)
	w.end("IPv6 over upgrades", v6, time.Second)
}

type upgradeStep struct {
	what   string
	values []string
	die    bool
}

// importOther gives the nodes the image, which others can do without.
func (w *world) importOther() {
	w.Helper()
	archive, err := filepath.Abs(root + "/bin/image-" + otherLayout + "/weir-" + runtime.GOARCH + ".tar")
	w.must(err)
	if _, err := os.Stat(archive); err != nil {
		w.Fatalf("%v: run `make image-other-layout`", err)
	}
	for _, n := range w.Nodes {
		_, err := n.Inside(w.ctx, filepath.Join(os.Getenv("WEIR_CLUSTER_BIN"), "ctr"), "-n", "k8s.io", "images", "import", archive)
		w.must(err)
	}
}

// dieAtStart has the agents that a rollout brings end as soon as they run, and again a moment
// later. What it returns wants that.
func (w *world) dieAtStart() (died func()) {
	w.Helper()
	ended := make(chan error, len(w.Nodes))
	for _, n := range w.Nodes {
		old, err := n.Inside(w.ctx, "pgrep", "-f", agents)
		w.must(err)
		go func() {
			_, err := n.Inside(w.ctx, "timeout", fmt.Sprint(patience.Seconds()), "sh", "-ec", fmt.Sprintf(`
next() { until p=$(pgrep -f '%s') && [ "$p" != "$1" ]; do sleep 0.01; done; }
next %s; kill -KILL $p
next $p; sleep 0.3; kill -KILL $p`, agents, strings.TrimSpace(old)))
			ended <- err
		}()
	}
	return func() {
		w.Helper()
		for range w.Nodes {
			if err := <-ended; err != nil {
				w.Errorf("an agent did not die as it started: %v", err)
			}
		}
	}
}

// agents by their command lines; pgrep's own is another.
const agents = "[w]eir-agent --config"

// patient makes a pod's TCP send again only what was lost, not what a busy machine is late with.
func (w *world) patient(h *lab.Host) {
	w.Helper()
	out, err := h.Run(w.ctx, "sh", "-ec", `
cd /proc/sys/net/ipv4; echo 0 >tcp_early_retrans; echo 0 >tcp_recovery
for f in -4 -6; do ip $f route show | grep -v '^fe80' | while read -r r; do ip $f route change $r rto_min 20s; done; done`)
	if err != nil {
		w.Fatalf("%s: %v: %s", h.Name, err, out)
	}
}

// retransmitted is what the kernel counted for all TCP of a pod.
func (w *world) retransmitted(h *lab.Host) int {
	w.Helper()
	out, err := h.Run(w.ctx, "awk", `/^Tcp:/ { if (n) print $n; else for (i = 1; i <= NF; i++) if ($i == "RetransSegs") n = i }`, "/proc/net/snmp")
	w.must(err)
	count, err := strconv.Atoi(strings.TrimSpace(out))
	w.must(err)
	return count
}

// visitor connects anew all the time.
type visitor struct {
	stop  context.CancelFunc
	ended chan []string
	made  int
}

func (w *world) visitor(from, to *lab.Host) *visitor {
	ctx, stop := context.WithCancel(context.Background())
	v := &visitor{stop: stop, ended: make(chan []string, 1)}
	w.Cleanup(stop)
	go func() {
		var failed []string
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			for _, family := range []int{4, 6} {
				v.made++
				conn, err := from.ConnectWithin(to.Addr(family), 8080, 3*time.Second) // TCP sends a lost SYN again after one
				if err != nil {
					failed = append(failed, fmt.Sprintf("%v at %s", err, time.Now().Format(time.TimeOnly)))
					continue
				}
				conn.Close()
			}
		}
		v.ended <- failed
	}()
	return v
}

// visited wants all its connections made.
func (w *world) visited(v *visitor) {
	w.Helper()
	v.stop()
	failed := <-v.ended
	if len(failed) > 0 || v.made < 10 {
		w.Errorf("of %d new connections %d failed: %v", v.made, len(failed), failed[:min(len(failed), 10)])
		return
	}
	w.Logf("%d new connections", v.made)
}
