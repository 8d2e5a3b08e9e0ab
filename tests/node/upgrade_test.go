package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// TestUpgradeToOtherMaps starts agents whose maps are others than those in force: of other
// sizes, of a build that lays them out in another way, and back. All that goes on goes on,
// not one packet of it lost, and nobody sends meanwhile what he may not.
func TestUpgradeToOtherMaps(t *testing.T) {
	const otherLayout = "weir-agent-other-layout"
	e := newEnv(t, "namespaces.yaml", clientNamespace+serverNamespace, "client.yaml", clientPod, "server.yaml", serverPod,
		"third.yaml", pod("ns", "c", "app: c"), "standing.yaml", standing, "in.yaml", letIn, "out.yaml", letOut)
	if _, err := os.Stat(e.Binary(otherLayout)); err != nil {
		t.Fatalf("run `make build-other-layout` first: %v", err)
	}
	e.add("cl/a", "sv/b", "ns/c")
	a, b, c := e.host("cl/a"), e.host("sv/b"), e.host("ns/c")
	hosts := []*lab.Host{a, b, e.Outside}
	talks, bulks := e.busy(a, b)
	e.flow("at first", clock(), talks...)
	for _, h := range hosts {
		e.patient(h)
	}
	e.flow("once all are patient", clock(), talks...)
	sentAgain := map[*lab.Host]int{}
	for _, h := range hosts {
		sentAgain[h] = e.retransmitted(h)
	}
	arrived := e.intrude(c, b)
	epoch := e.status().Epoch
	for _, step := range []struct {
		what, agent string
		flags       []string
		anew        bool // on other maps
	}{
		{"of other sizes", "weir-agent", []string{"--map-size", "flows=65536,facts=65536,port_groups=4096"}, true},
		{"the same again", "weir-agent", []string{"--map-size", "flows=65536,facts=65536,port_groups=4096"}, false},
		{"of another layout", otherLayout, nil, true},
		{"back", "weir-agent", nil, true},
	} {
		log := len(e.log())
		e.must("kill the agent", e.KillAgent())
		e.flow("agent killed, before "+step.what, clock(), talks...)
		e.Build(step.agent, step.flags...)
		e.must("start the agent: "+step.what, e.StartAgent(e.ctx))
		e.must("wait", e.Wait(e.ctx))
		if anew := strings.Contains(e.log()[log:], "programs are in force on new maps"); anew != step.anew {
			t.Errorf("%s: new maps %v, want %v", step.what, anew, step.anew)
		}
		e.flow(step.what, clock(), talks...)
		t.Logf("%s: arrived %d", step.what, arrived.Load())
		is := e.status()
		if is.Epoch < epoch || is.Epoch == epoch && step.anew {
			t.Errorf("%s: epoch %d after %d", step.what, is.Epoch, epoch)
		}
		if epoch = is.Epoch; is.Flows.Active < uint64(len(talks)+len(bulks)) {
			t.Errorf("%s: %d flows, want at least the %d talks", step.what, is.Flows.Active, len(talks)+len(bulks))
		}
		for k, b := range bulks {
			was := b.received.Load()
			e.eventually(fmt.Sprintf("bulk %d: bytes flow: %s", k, step.what), 30*time.Second, func() bool { return b.received.Load() > was+1<<20 })
		}
	}
	for _, h := range hosts {
		if n := e.retransmitted(h); n != sentAgain[h] {
			t.Errorf("%s: %d segments were lost", h.Name, n-sentAgain[h])
		}
	}
	if n := arrived.Load(); n > 0 {
		t.Errorf("%d packets arrived that no policy allows", n)
	}
	for _, talk := range talks {
		for i := range talk.ways {
			w := &talk.ways[i]
			said := w.words.Load()
			e.eventually(fmt.Sprintf("%v: all of %d words of end %d arrive", talk, said, i), 10*time.Second, func() bool { return w.arrived.Load() >= said })
		}
	}
	e.apply("in.yaml", policy("sv", "in", "  podSelector: {}\n  policyTypes: [Ingress]\n")) // what was taken over is revoked, too
	var revoked []*talk
	for _, talk := range talks {
		if talk.to == b {
			revoked = append(revoked, talk)
		}
	}
	e.silence("what was taken over is revoked, too", clock(), revoked...)
}

// intrude has a pod send to another all the time, and counts what arrives.
func (e *env) intrude(from, to *lab.Host) *atomic.Int64 {
	e.t.Helper()
	arrived := new(atomic.Int64)
	for _, family := range families {
		e.ports++
		at := &net.UDPAddr{IP: net.ParseIP(to.Addr(family)), Port: portTalk + e.ports}
		var client, server *net.UDPConn
		e.must("listen", to.Do(func() (err error) { server, err = net.ListenUDP("udp", at); return err }))
		e.must("dial", from.Do(func() (err error) { client, err = net.DialUDP("udp", nil, at); return err }))
		e.t.Cleanup(func() { client.Close(); server.Close() })
		go func() {
			for {
				if _, err := server.Read(make([]byte, 16)); err != nil {
					return
				}
				arrived.Add(1)
			}
		}()
		go func() {
			for {
				if _, err := client.Write([]byte("x")); errors.Is(err, net.ErrClosed) {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
	return arrived
}

func (e *env) log() string {
	e.t.Helper()
	text, err := os.ReadFile(e.Log())
	e.must("read the agent's log", err)
	return string(text)
}

// TestFlowTableIsLost under running pods, with all else that is pinned, and the links: what
// policy allows goes on, on the connections that there are.
func TestFlowTableIsLost(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "deny.yaml", policy("ns", "deny", "  podSelector: {}\n  policyTypes: [Ingress]\n"),
		"allow.yaml", policy("ns", "allow", fromAnyPort))
	e.add("ns/a", "ns/b")
	s := e.openStream(e.host("ns/a"), e.host("ns/b"), 4, portStream)
	e.alive("at first", s)
	e.must("kill the agent", e.KillAgent())
	e.must("remove what is pinned", os.RemoveAll(e.BPFFSDir()))
	e.must("start the agent", e.StartAgent(e.ctx))
	e.must("wait", e.Wait(e.ctx))
	e.alive("afterwards", s)
	e.check(probe{"ns/b", "ns/a", "tcp", portHTTP, lab.Silent})
}
