package agent

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
)

// fakeShield is a kernel that has a shield with room for four.
type fakeShield struct {
	*datapath.Fake
	mu     sync.Mutex
	denied []netip.Prefix
	lists  [][]netip.Prefix // all that were given
	broken error
}

func (s *fakeShield) Deny(list []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	if len(list) > s.DeniedMost() {
		return &datapath.FullError{Map: "shield_deny", Size: s.DeniedMost(), Need: len(list)}
	}
	s.denied, s.lists = slices.Clone(list), append(s.lists, slices.Clone(list))
	return nil
}

func (s *fakeShield) Denied() ([]netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.denied), nil
}

func (s *fakeShield) DeniedMost() int { return 4 }

func (s *fakeShield) Recheck() ([]string, error) { return nil, nil }

func (b *bench) list(lines ...string) {
	b.t.Helper()
	if err := os.WriteFile(b.deny, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// denies waits until the kernel denies these and status says these things of it.
func (b *bench) denies(what, list string, says ...string) {
	b.t.Helper()
	var got, text string
	defer func() {
		if b.t.Failed() {
			b.t.Logf("%s: the kernel has %s; status: %s", what, got, text)
		}
	}()
	b.eventually(what, func() bool {
		denied, _ := b.shield.Denied()
		s, err := b.agent.Status(b.t.Context(), 0)
		if err != nil {
			b.t.Fatal(err)
		}
		got, text = fmt.Sprint(denied), fmt.Sprintf("degraded %v", s.Degraded)
		if s.Shield != nil {
			text += fmt.Sprintf(" shield %+v", *s.Shield)
		}
		for _, e := range s.Errors {
			text += "\n" + e.String()
		}
		text += "\n" + strings.Join(s.Warnings, "\n")
		return got == list && !slices.ContainsFunc(says, func(w string) bool { return !strings.Contains(text, w) }) &&
			(len(says) > 0 || !strings.Contains(text, "shield's list") && !s.Degraded)
	})
}

func TestShieldListIsEnforced(t *testing.T) {
	b := newBench(t)
	own, two := nodeOf("node", []string{"192.0.2.1", "192.0.2.11"}, "10.0.1.0/24"), nodeOf("two", []string{"192.0.2.2"}, "10.77.2.0/24")
	b.nodes = &source.Nodes{Own: &own, Others: []source.Node{two}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.77.2.0/24")}}
	b.shield = &fakeShield{Fake: b.kernel}
	b.deny = filepath.Join(t.TempDir(), "deny")
	b.hooks.attach(2, "eth0", "shield")
	b.list("198.51.100.7", "203.0.113.0/24 # scanners")
	b.write("api.yaml", `
apiVersion: v1
kind: Service
metadata: {namespace: default, name: kubernetes}
spec: {ports: [{name: https, port: 443, protocol: TCP}], clusterIP: 10.96.0.1}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: default, name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6443, protocol: TCP}]
endpoints: [{addresses: [192.0.2.99], conditions: {ready: true}}]
`)
	b.start()
	b.denies("the list", "[198.51.100.7/32 203.0.113.0/24]")

	b.list("198.51.100.7", "", "192.0.2.1", "192.0.2.2", "192.0.2.11", "10.77.2.9", "10.0.1.0/24", "192.0.2.99", "127.0.0.1", "192.0.2.0/24", "what", "2001:db8:bad::/48")
	b.denies("what cuts the node off is refused, and nothing else", "[198.51.100.7/32 2001:db8:bad::/48]", "degraded true",
		b.deny+":3: 192.0.2.1 is an address of this node", b.deny+":4: 192.0.2.2 is an address of node two", b.deny+":5: 192.0.2.11 is an address of this node",
		b.deny+":6: 10.77.2.9 is in 10.77.2.0/24, pods' addresses", b.deny+":7: 10.0.1.0/24 is in 10.0.0.0/16, pods' addresses",
		b.deny+":8: 192.0.2.99 is the API server's", b.deny+":9: 127.0.0.1 is in 127.0.0.0/8, loopback", b.deny+":10: 192.0.2.0/24 is too wide", b.deny+`:11: "what" is neither`)

	b.list("198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4", "198.51.100.5")
	b.denies("a list that is too long changes nothing", "[198.51.100.7/32 2001:db8:bad::/48]", "5 entries, and map shield_deny holds 4")

	if err := os.Remove(b.deny); err != nil {
		t.Fatal(err)
	}
	b.denies("a list that is gone stays", "[198.51.100.7/32 2001:db8:bad::/48]", "the last good list stays in force", "no such file")

	// Restarted without the list, then with another, the kernel is never without what is in both.
	b.stop()
	b.start()
	b.denies("a list that is gone stays after a restart", "[198.51.100.7/32 2001:db8:bad::/48]", "the last good list stays in force")
	b.list("198.51.100.7", "198.51.100.8")
	b.denies("another", "[198.51.100.7/32 198.51.100.8/32]")
	for _, list := range b.shield.lists {
		if !slices.Contains(list, netip.MustParsePrefix("198.51.100.7/32")) {
			t.Errorf("it was let in: %v", list)
		}
	}

	// A node that gets a listed address is let in.
	b.agent.sourceChanged(source.Update{Revision: 1 << 40, Changes: &policy.Changes{}, Nodes: &source.Nodes{Own: &own, Others: []source.Node{nodeOf("two", []string{"198.51.100.8"})}}})
	b.denies("a node's new address", "[198.51.100.7/32]", b.deny+":2: 198.51.100.8 is an address of node two")

	b.list("")
	b.denies("an empty list", "[]")
}

// Nothing that the kernel does not take is called enforced, and it is tried again.
func TestShieldListIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.shield = &fakeShield{Fake: b.kernel, broken: &datapath.FullError{Map: "shield_deny", Size: 1, Need: 2}}
	b.deny = filepath.Join(t.TempDir(), "deny")
	b.list("198.51.100.7")
	b.start()
	b.denies("the kernel takes nothing", "[]", "the shield's list is not enforced whole: map shield_deny is full")
	b.shield.mu.Lock()
	b.shield.broken = nil
	b.shield.mu.Unlock()
	b.agent.shieldAgain()
	b.denies("and then it does", "[198.51.100.7/32]", "not empty (1) and no uplink has the shield", "uplink-xdp")
	b.hooks.attach(2, "eth0", "shield")
	b.agent.attachDevices(nil)
	b.denies("with an uplink that has it", "[198.51.100.7/32]")
	b.hooks.mu.Lock()
	delete(b.hooks.attached, loader.Attachment{Name: "eth0", Hook: "shield", Ifindex: 2})
	b.hooks.mu.Unlock()
	b.agent.attachDevices(nil)
	b.denies("and without", "[198.51.100.7/32]", "no uplink has the shield")

	// An agent without the setting empties it.
	b.stop()
	b.deny = ""
	b.start()
	b.denies("without the setting", "[]")
}
