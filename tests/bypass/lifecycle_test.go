package bypass

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/lab"
)

// Lifecycle: pods, their addresses and the agent come and go.
var lifecycle = []bypass{{
	id: "B21", name: "address_reuse",
	title:  "address reuse: a completed pod and a new pod share an address",
	public: "antrea #6507",
	try: func(a *attempt) {
		// Two addresses for pods: who comes next has the last one's that went.
		x := &attempt{T: a.T, scene: newNode(a.T, lab.Options{RangeLast: 3})}
		x.write(a.T, "pods.yaml", pods)
		x.write(a.T, "policy.yaml", policies)
		x.start(a.T)
		alicePod, err := x.AddPod(x.ctx, "ns", "alice")
		must(a.T, err)
		b := x.add(a.T, "ns", "bob")
		x.bob, x.outside = b, openEnd(a.T, x.Outside, "up0", false, x.macOf(a.T, "up0"))
		al := openEnd(a.T, &alicePod.Host, "eth0", true, hostMAC)
		x.alice, x.mallory, x.eve = al, al, al
		flow := [][]byte{tcp(al.Addr4, 1, b.Addr4, closedTCP, "S"), udp(al.Addr4, 1, b.Addr4, closedUDP), tcp(al.Addr6, 1, b.Addr6, closedTCP, "S"), udp(al.Addr6, 1, b.Addr6, closedUDP)}
		x.pass("alice's flows", al, b, flow...)
		must(a.T, x.DelPod(x.ctx, alicePod))
		// Her object stays, as one that is completed or that the watch has not caught up with.
		for i, phase := range []string{"Succeeded", "Running"} {
			must(a.T, x.Apply(x.ctx, "pods.yaml", podYAML("ns", "mallory", "app: mallory")+podYAML("ns", "bob", "app: bob")+
				strings.TrimSuffix(podYAML("ns", "alice", "app: alice"), "---\n")+
				fmt.Sprintf("status: {phase: %s, podIP: %s, podIPs: [{ip: %s}, {ip: '%s'}]}\n", phase, al.Addr4, al.Addr4, al.Addr6)))
			pod, err := x.AddPod(x.ctx, "ns", "mallory")
			must(a.T, err)
			m := openEnd(a.T, &pod.Host, "eth0", true, hostMAC)
			if x.mallory, x.alice = m, m; m.Addr4 != al.Addr4 || m.Addr6 != al.Addr6 {
				a.Fatalf("mallory has %s %s, not what alice had", m.Addr4, m.Addr6)
			}
			x.drop("on alice's flows", m, policy, flow...)
			x.drop("on alice's flows, TCP", m, tcpStray, tcp(al.Addr4, 1, b.Addr4, closedTCP, "FA"), tcp(al.Addr6, 1, b.Addr6, closedTCP, "R"))
			x.drop("alice's rights", m, policy, tcp(m.Addr4, uint16(2+i), b.Addr4, closedTCP, "S"), udp(m.Addr6, uint16(2+i), b.Addr6, closedUDP))
			x.pass("mallory's own", m, b, tcp(m.Addr4, uint16(2+i), b.Addr4, openTCP, "S"))
			must(a.T, x.DelPod(x.ctx, pod))
		}
		a.outcomes = x.outcomes
	},
	tests: []string{"tests/node TestDelAndAddressReuse", "tests/packet TestAddressReuse", "controlplane/policy TestAnAddressOfTwoPodsIsTheFirstOnes"},
}, {
	id: "B22", name: "first_packets",
	title: "first packets of a new pod",
	try: func(a *attempt) {
		x := &attempt{T: a.T, scene: newScene(a.T)}
		must(a.T, x.Apply(x.ctx, "new.yaml", podYAML("ns", "new", "app: mallory")))
		for range 3 {
			x.newPod("new", func() (*lab.Pod, error) { return x.AddPod(x.ctx, "ns", "new") })
		}
		a.shown("dropped: no endpoint, no ruleset, spoofed source or policy, every frame that a pod sends from its first moment on")
	},
	tests: []string{"tests/node TestNewPodIsNeverOpen", "tests/node TestNewPodCanSendAtOnce", "cni TestAttachComesFirst"},
}, {
	id: "B23", name: "agent_comes_and_goes",
	title:  "agent restart, upgrade, crash, graceful stop",
	public: "CVE-2023-27595",
	try: func(a *attempt) {
		x := &attempt{T: a.T, scene: newScene(a.T)}
		m, al, b := x.mallory, x.alice, x.bob
		x.pass("alice's flow", al, b, udp(al.Addr4, 1, b.Addr4, closedUDP))
		x.quiet(x)
		before := x.drops(a.T)
		forbidden := spray(a.T, m, tcp(m.Addr4, 1, b.Addr4, closedTCP, "S"), udp(m.Addr6, 1, b.Addr6, closedUDP), echo(m.Addr4, b.Addr4, 1, false))
		allowed := spray(a.T, al, udp(al.Addr4, 1, b.Addr4, closedUDP))
		for range 2 {
			must(a.T, x.KillAgent())
			must(a.T, x.StartAgent(x.ctx))
			must(a.T, x.StopAgent())
			must(a.T, x.StartAgent(x.ctx))
			must(a.T, x.Wait(x.ctx))
		}
		denied, passed := forbidden(), allowed()
		x.settled("all that mallory sent", before, func(d map[datapath.Reason]uint64) bool { return d[policy] >= denied })
		if d := x.since(a.T, before); d[policy] != denied || denied == 0 {
			a.Errorf("dropped for %v, want %d for %q", d, denied, policy)
		}
		eventually(a.T, fmt.Sprintf("bob receives all %d of alice's", passed), func() bool { return uint64(len(b.received())) >= passed })
		for _, f := range b.received() {
			if string(packetOf(f)) != string(packetOf(udp(al.Addr4, 1, b.Addr4, closedUDP))) {
				a.Fatalf("bob received %x", f)
			}
		}
		a.shown("dropped: policy, every frame of a flood while the agent is killed, stopped and started; not one lost of an allowed flow beside it")
	},
	tests: []string{"tests/node TestAgentKilled", "tests/packet TestReloadKeepsFlows", "datapath/loader TestLoadAfterDeath", "tests/atomic TestNoRealPacketSeesAMixture"},
}, {
	id: "B24", name: "add_and_del_reordered",
	title: "CNI ADD and DEL reordered for a pod of the same name",
	try: func(a *attempt) {
		a.apply("new.yaml", podYAML("ns", "new", "app: eve"))
		old, err := a.AddPod(a.ctx, "ns", "new")
		must(a.T, err)
		n, b := a.addAs(a.T, "ns", "new", "-2"), a.bob
		check := func(when string, port uint16) {
			a.drop(when, n, policy, tcp(n.Addr4, port, b.Addr4, closedTCP, "S"), tcp(n.Addr6, port, beyond6, 80, "S"))
			a.pass(when, n, b, tcp(n.Addr4, port, b.Addr4, openTCP, "S"), tcp(n.Addr6, port, b.Addr6, openTCP, "S"))
			a.drop(when+", from outside", a.outside, policy, tcp(beyond4, port, b.Addr4, openTCP, "S"))
		}
		check("before the old sandbox's DEL", 1)
		must(a.T, a.DelPod(a.ctx, old))
		check("after it", 2)
		must(a.T, a.DetachPod(a.ctx, old))
		check("after its repetition", 3)
	},
	tests: []string{"cni TestDelTwice", "cni TestSecondAdd", "cni TestGC", "controlplane/endpoint TestUpdateOfARemovedRecordDoesNotReviveIt"},
}, {
	id: "B36", name: "race_at_start",
	title:  "race at start-up",
	public: "CVE-2024-42488",
	try: func(a *attempt) {
		x := &attempt{T: a.T, scene: newScene(a.T)}
		must(a.T, x.Apply(x.ctx, "new.yaml", podYAML("ns", "new", "app: mallory")))
		for range 2 {
			must(a.T, x.KillAgent())
			started := make(chan error, 1)
			go func() { started <- x.StartAgent(x.ctx) }()
			x.newPod("new, while the agent starts", func() (*lab.Pod, error) { return x.addUntil() })
			must(a.T, <-started)
		}
		a.shown("dropped: no endpoint, no ruleset, spoofed source or policy, every frame of a pod that is added while the agent starts")
	},
	tests: []string{"controlplane/agent TestFirstCommitHasEverything", "datapath/maps TestStagedButNeverCommitted", "tests/node TestEditWhileAgentIsDead"},
}}

var hostMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// addUntil adds the new pod as soon as an agent does it, as a runtime does.
func (s *scene) addUntil() (*lab.Pod, error) {
	for end := time.Now().Add(30 * time.Second); ; {
		p, err := s.AddPod(s.ctx, "ns", "new")
		if lab.CNICode(err) == 0 || time.Now().After(end) {
			return p, err
		}
	}
}

// newPod sends forbidden frames from a pod while it is added, from the moment it has an
// interface, and takes it away again.
func (a *attempt) newPod(what string, add func() (*lab.Pod, error)) {
	a.Helper()
	a.quiet(a)
	before := a.drops(a.T)
	ctx, stop := context.WithCancel(a.ctx)
	sent := make(chan sprayed, 1)
	h := &lab.Host{Name: "ns/new", Netns: strings.TrimPrefix(a.RunDir(), "/run/") + "-ns-new"}
	go func() { sent <- sprayFirst(ctx, h, a.bob) }()
	p, err := add()
	must(a.T, err)
	time.Sleep(20 * time.Millisecond) // that some go by the finished pod as well
	stop()
	s := <-sent
	if s.err != nil || s.frames == 0 {
		a.Fatalf("%s: sent %d frames: %v", what, s.frames, s.err)
	}
	for r := range a.since(a.T, before) {
		if r != policy && r != noEndpoint && r != noRuleset && r != spoofed && !isQuiet(r) {
			a.Errorf("%s: dropped for %v", what, a.since(a.T, before))
		}
	}
	// One that may is behind all that were sent: nothing else came before it.
	n, last := openEnd(a.T, &p.Host, "eth0", true, hostMAC), tcp(p.Addr4, 1, a.bob.Addr4, openTCP, "S")
	a.send(what, n, [][]byte{last})
	if !a.bob.await(last) || len(a.bob.received()) != 1 {
		a.Errorf("%s: arrived, beside %x:%s", what, last, a.arrivals())
	}
	must(a.T, a.DelPod(a.ctx, p))
}

type sprayed struct {
	frames int
	err    error
}

// sprayFirst sends to a forbidden port of the receiver by whatever interface the pod has,
// under every address that it may be given.
func sprayFirst(ctx context.Context, h *lab.Host, to *end) (s sprayed) {
	var frames [][]byte
	for i := range 20 {
		frames = append(frames, tcp(fmt.Sprintf("10.77.0.%d", 2+i), 1, to.Addr4, closedTCP, "S"), tcp(fmt.Sprintf("fd77::%x", 2+i), 1, to.Addr6, closedTCP, "S"))
	}
	var socket *os.File
	for ctx.Err() == nil {
		if socket == nil {
			if err := h.Do(func() (err error) { socket, err = packetSocket("eth0"); return err }); err != nil {
				socket = nil
				continue // not there yet
			}
			defer func() { socket.Close() }()
		}
		for _, f := range frames {
			copy(f, hostMAC)
			switch _, err := socket.Write(f); {
			case err == nil:
				s.frames++
			case errors.Is(err, errNoDevice):
				socket.Close()
				socket = nil
			}
			if socket == nil {
				break
			}
		}
	}
	return s
}

// spray sends the frames in turn until it is told to end; it tells how many went out.
func spray(t *testing.T, from *end, frames ...[]byte) (stop func() uint64) {
	var ended atomic.Bool
	sent := make(chan uint64, 1)
	go func() {
		n := uint64(0)
		for !ended.Load() {
			if err := from.send(frames[n%uint64(len(frames))]); err != nil {
				t.Errorf("send from %s: %v", from.Name, err)
				break
			}
			n++
			time.Sleep(200 * time.Microsecond)
		}
		sent <- n
	}()
	return func() uint64 {
		ended.Store(true)
		return <-sent
	}
}
