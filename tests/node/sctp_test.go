//go:build sctp

package node

import (
	"testing"
	"time"
)

// TestSCTP has real SCTP sockets, on kernels that have them (tests/kernels).
func TestSCTP(t *testing.T) {
	fromA := policy("ns", "allow", `  podSelector: {matchLabels: {app: b}}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: a}}
      ports:
        - {port: 9000, protocol: SCTP}
        - {port: 7000, endPort: 7010, protocol: SCTP}
`)
	e := newEnv(t, "pods.yaml", abc, "allow.yaml", fromA)
	e.add("ns/a", "ns/b", "ns/c")
	e.must("serve", e.pods["ns/b"].ServeSCTP(e.ctx, portHTTP, portOther, portLow, portHigh, portPast))
	e.check(
		probe{"ns/a", "ns/b", "sctp", portOther, yes},
		probe{"ns/a", "ns/b", "sctp", portLow, yes},
		probe{"ns/a", "ns/b", "sctp", portHigh, yes},
		probe{"ns/a", "ns/b", "sctp", portPast, no},
		probe{"ns/a", "ns/b", "sctp", portHTTP, no},
		probe{"ns/a", "ns/b", "tcp", portOther, no},
		probe{"ns/a", "ns/b", "udp", portOther, no},
		probe{"ns/c", "ns/b", "sctp", portOther, no},
		probe{"outside", "ns/b", "sctp", portOther, no},
		probe{"node", "ns/b", "sctp", portHTTP, yes}, // a node reaches its pods
	)

	for _, family := range families {
		conn, err := e.host("ns/a").ConnectSCTP(e.host("ns/b").Addr(family), portOther)
		e.must("connect", err)
		defer conn.Close()
		b := make([]byte, 64)
		echoes := func(patience time.Duration) bool {
			_, err := conn.Write([]byte("weir?"))
			e.must("write", err)
			e.must("set a deadline", conn.SetReadDeadline(time.Now().Add(patience)))
			_, err = conn.Read(b)
			return err == nil
		}
		if !echoes(5 * time.Second) {
			t.Errorf("IPv%d: the association is silent while it is allowed", family)
		}
		e.apply("allow.yaml", policy("ns", "allow", denyIngress))
		if echoes(2 * time.Second) {
			t.Errorf("IPv%d: the association goes on after its policy went", family)
		}
		e.apply("allow.yaml", fromA)
		if !echoes(20 * time.Second) { // retransmissions back off
			t.Errorf("IPv%d: the association is silent after it was allowed again", family)
		}
	}
}
