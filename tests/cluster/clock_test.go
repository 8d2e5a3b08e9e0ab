package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/source"
)

// TestClockIsOff: a node whose clock is an hour behind, or ahead of a certificate's end, says so,
// keeps what it knows, and goes on when that is mended. Nothing else is compared with another
// machine's clock: leases have no times (TestAnnounce).
func TestClockIsOff(t *testing.T) {
	s := newScene(t)
	s.makeNode(nodeName, "10.244.1.0/24")
	s.makeNamespace("shop")
	s.makePod("p", "a")
	r := s.rights()
	s.grant(r)
	front := s.NewFront(t)
	front.Valid(time.Hour, 2*time.Hour)
	s.watch(s.Kubeconfig(front.Addr(), s.agentToken(r, nodeName)))
	says := func(word string) func() bool {
		return func() bool {
			text := strings.Join(s.source.Warnings(), "\n")
			return strings.Contains(text, "API server https://"+front.Addr()+" is not believed: ") && strings.Contains(text, word) && strings.Contains(text, "set this node's clock")
		}
	}
	s.until("a word about the clock", says(" is before "))
	s.until("it waits, and says for what", func() bool { return strings.Contains(s.log.String(), "waits for the API server") })
	if s.count() != 0 || !strings.Contains(s.log.String(), "set this node's clock") {
		t.Errorf("%d updates; it logged\n%s", s.count(), s.log)
	}
	front.Valid(-time.Hour, time.Hour)
	s.eventually("a first update", func(u source.Update) bool { return app(u, "p") == "a" })
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 })

	front.Valid(-2*time.Hour, -time.Hour)
	s.until("a word about a clock that is ahead", says(" is after "))
	s.label("p", "b")
	time.Sleep(500 * time.Millisecond)
	if u := s.last(); app(u, "p") != "a" {
		t.Errorf("the pod is %q by an API server that is not believed", app(u, "p"))
	}
	front.Valid(-time.Hour, time.Hour)
	s.eventually("the change", func(u source.Update) bool { return app(u, "p") == "b" })
	s.until("no warnings", func() bool { return len(s.source.Warnings()) == 0 })
	s.sync()
}
