package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// TestRefusalsComeBack: a reset and an ICMP error belong to the flow that provoked them.
func TestRefusalsComeBack(t *testing.T) {
	const closed = 1234
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "closed", `  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 1234}, {port: 1234, protocol: UDP}]}]
  egress: [{ports: [{port: 1234}, {port: 1234, protocol: UDP}]}]
`))
	e.add("ns/a", "ns/b")
	e.check(
		probe{"ns/a", "ns/b", "tcp", closed, lab.Refused},
		probe{"ns/a", "ns/b", "udp", closed, lab.Refused},
		probe{"outside", "ns/b", "tcp", closed, lab.Refused},
		probe{"outside", "ns/b", "udp", closed, lab.Refused},
		probe{"ns/a", "outside", "tcp", closed, lab.Refused},
		probe{"ns/a", "outside", "udp", closed, lab.Refused},
		probe{"ns/a", "ns/b", "tcp", portHTTP, no},
	)
}

// TestLargePackets: fragments and segments of many packets, by redirect and by the stack.
func TestLargePackets(t *testing.T) {
	e := newEnv(t, "pods.yaml", abc, "policy.yaml", policy("ns", "allow", fromA)+policy("ns", "open", `  podSelector: {matchLabels: {app: b}}
  ingress: [{ports: [{port: 8080}, {port: 9000, protocol: UDP}]}]
`))
	e.add("ns/a", "ns/b")
	for _, from := range []string{"ns/a", "outside"} {
		for _, family := range families {
			t.Run(fmt.Sprintf("%s IPv%d", from, family), func(t *testing.T) {
				to := e.host("ns/b").Addr(family)
				if err := e.host(from).Do(func() error { return echoUDP(to, 3000) }); err != nil {
					t.Errorf("a datagram of 3000 bytes: %v", err)
				}
				conn, err := e.host(from).Connect(to, portHTTP)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := echoTCP(conn, 16<<20); err != nil {
					t.Errorf("16 MiB by TCP: %v", err)
				}
			})
		}
	}
	if s := e.status(); s.Flows.Lost != 0 {
		t.Errorf("flow records lost: %+v", s.Flows)
	}
}

// echoUDP sends a datagram of random bytes to the echo port and compares what comes back.
func echoUDP(to string, size int) error {
	conn, err := net.Dial("udp", net.JoinHostPort(to, fmt.Sprint(portOther)))
	if err != nil {
		return err
	}
	defer conn.Close()
	sent, got := make([]byte, size), make([]byte, 65536)
	rand.Read(sent)
	if _, err := conn.Write(sent); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	n, err := conn.Read(got)
	if err == nil && !bytes.Equal(sent, got[:n]) {
		err = errors.New("other bytes came back")
	}
	return err
}

// echoTCP sends size random bytes and compares what comes back.
func echoTCP(conn net.Conn, size int) error {
	sent, got := make([]byte, size), make([]byte, size)
	rand.Read(sent)
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- err
	}()
	_, err := io.ReadFull(conn, got)
	if err := errors.Join(err, <-wrote); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("other bytes came back")
	}
	return nil
}

// TestNewPodIsNeverOpen: somebody knocks at the address from before the pod is there.
func TestNewPodIsNeverOpen(t *testing.T) {
	e := newEnvWith(t, lab.Options{Pool4: "10.78.0.0/24", Pool6: "fd78::/112", RangeLast: 3},
		"pods.yaml", abc, "policy.yaml", policy("ns", "deny", "  podSelector: {matchLabels: {app: b}}\n  policyTypes: [Ingress]\n"))
	e.add("ns/a")
	knocking, stop := context.WithCancel(e.ctx)
	answered := make(chan bool)
	go func() {
		got := false
		for knocking.Err() == nil {
			if conn, err := e.host("ns/a").ConnectWithin("10.78.0.3", portHTTP, 20*time.Millisecond); err == nil {
				conn.Close()
				got = true
			}
		}
		answered <- got
	}()
	for range 5 {
		e.add("ns/b")
		if addr := e.pods["ns/b"].Addr4; addr != "10.78.0.3" {
			t.Fatalf("b has %s, not the address that a knocks at", addr)
		}
		time.Sleep(100 * time.Millisecond) // that the knocks can come
		e.must("del", e.DelPod(e.ctx, e.pods["ns/b"]))
	}
	stop()
	if <-answered {
		t.Error("a pod that nobody may reach answered")
	}
}
