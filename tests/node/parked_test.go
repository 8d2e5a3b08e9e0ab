package node

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// farPod is a pod of another node; farPodIn and farPodOut are what it is talked to by.
const (
	farPod4, farPod6 = "10.77.0.200", "fd77::c8"
	farPodYAML       = "apiVersion: v1\nkind: Pod\nmetadata: {namespace: ns, name: far, labels: {app: far}}\n" +
		"spec: {nodeName: other, containers: [{name: c, image: c}]}\n" +
		"status: {phase: Running, podIP: 10.77.0.200, podIPs: [{ip: 10.77.0.200}, {ip: 'fd77::c8'}]}\n"
)

// TestFirstPacketOfAnUnknownPod: what a pod of another node says before this node knows it is
// dropped, and sent on when the cluster shows the pod, if policy allows it then. The same for
// what is said to such a pod.
func TestFirstPacketOfAnUnknownPod(t *testing.T) {
	e := newEnv(t, "pods.yaml", pod("ns", "a", "app: a"), "policy.yaml",
		policy("ns", "in", "  podSelector: {matchLabels: {app: a}}\n  ingress: [{from: [{podSelector: {matchLabels: {app: far}}}], ports: [{protocol: UDP, port: 7001}]}]\n")+
			policy("ns", "out", "  podSelector: {matchLabels: {app: a}}\n  policyTypes: [Egress]\n  egress: [{to: [{podSelector: {matchLabels: {app: far}}}], ports: [{protocol: UDP, port: 7001}]}]\n"))
	e.add("ns/a")
	a := e.host("ns/a")
	far := map[int]string{4: farPod4, 6: farPod6}
	for family, addr := range far {
		flag, via := "-4", e.Outside.Addr4
		if family == 6 {
			flag, via = "-6", e.Outside.Addr6
		}
		out, err := e.Outside.Run(e.ctx, "ip", flag, "addr", "add", addr, "dev", "lo")
		e.must(out, err)
		out, err = e.Run(e.ctx, "ip", flag, "route", "add", addr, "via", via)
		e.must(out, err)
	}
	listen := func(h *lab.Host, addr string, port int) *net.UDPConn {
		t.Helper()
		var c *net.UDPConn
		e.must("listen", h.Do(func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr), Port: port})
			return err
		}))
		t.Cleanup(func() { c.Close() })
		return c
	}
	type way struct {
		what     string
		from, to *net.UDPConn
		arrives  bool
	}
	var ways []way
	for family, addr := range far {
		for port, arrives := range map[int]bool{7001: true, 7002: false} {
			here, there := listen(a, a.Addr(family), port), listen(e.Outside, addr, port)
			ways = append(ways,
				way{fmt.Sprintf("IPv%d port %d, to the pod", family, port), listen(e.Outside, addr, 8000+port), here, arrives},
				way{fmt.Sprintf("IPv%d port %d, from the pod", family, port), listen(a, a.Addr(family), 8000+port), there, arrives})
		}
	}
	for _, h := range []*lab.Host{&e.Host, e.Outside} { // neighbours take a second to be found
		for _, addr := range []string{e.Addr6, e.Outside.Addr6, farPod6} {
			_, _ = h.Run(e.ctx, "ping", "-c1", "-W5", addr)
		}
	}
	for _, w := range ways {
		_, err := w.from.WriteTo([]byte(w.what), w.to.LocalAddr())
		e.must("send", err)
	}
	e.eventually("all are dropped and parked", 2*time.Second, func() bool { return e.status().Flows.Parked == uint64(len(ways)) })
	silent := func(w way) {
		t.Helper()
		if n, _, err := w.to.ReadFrom(make([]byte, 100)); err == nil {
			t.Errorf("%s: %d bytes arrived", w.what, n)
		}
	}
	for _, w := range ways {
		e.must("deadline", w.to.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		silent(w)
	}
	e.apply("far.yaml", farPodYAML)
	for _, w := range ways {
		limit := 5 * time.Second
		if !w.arrives {
			limit = 200 * time.Millisecond
		}
		e.must("deadline", w.to.SetReadDeadline(time.Now().Add(limit)))
		if !w.arrives {
			silent(w)
			continue
		}
		text := make([]byte, 100)
		n, from, err := w.to.ReadFrom(text)
		if err != nil || string(text[:n]) != w.what {
			t.Errorf("%s: %q, %v", w.what, text[:n], err)
			continue
		}
		_, err = w.to.WriteTo([]byte("answer"), from) // of the flow, both ways
		e.must("answer", err)
		e.must("deadline", w.from.SetReadDeadline(time.Now().Add(limit)))
		if _, _, err := w.from.ReadFrom(text); err != nil {
			t.Errorf("%s: no answer: %v", w.what, err)
		}
	}
	if s := e.status().Flows; s.Resent < uint64(len(ways)/2) { // those that are dropped may count
		t.Errorf("%d sent again, want at least %d", s.Resent, len(ways)/2)
	}
}
