// Package bypass tries every way around a network policy that is known to us, on a whole
// node: frames go out by a packet socket inside a pod, past nobody's checks, and a packet
// socket at the victim says what arrives. An attack has failed when the kernel counted
// every frame as dropped for the reason it deserves, the flow log tells of it, and nothing
// arrived.
//
//	mallory (not isolated)  eve (egress isolated)  alice (trusted by bob)
//	    \                      |                   /
//	     +---------------- the node --------------+--- outside
//	                           |
//	             bob: TCP 8080 and UDP 9000 for mallory and eve, all for alice
//
// What came of each attempt is docs/bypasses.md, rewritten by -update.
package bypass

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite docs/bypasses.md")

const table = "../../docs/bypasses.md"

func TestBypass(t *testing.T) {
	s := newScene(t)
	tried := try(t, s, ways())
	done := try(t, s, experiments)
	if t.Failed() || len(tried) != len(ways()) || len(done) != len(experiments) {
		return // some of them only, or not as the table says
	}
	text := render(tried, done)
	if *update {
		if err := os.WriteFile(table, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	is, err := os.ReadFile(table)
	if err != nil || string(is) != text {
		t.Errorf("%s is not what came of the attempts (%v): run `make bypasses`, and read what it changes\n%s", table, err, firstDifference(string(is), text))
	}
}

// try runs the attempts; it returns those that the -run flag let through.
func try(t *testing.T, s *scene, all []bypass) []tried {
	var out []tried
	for _, b := range all {
		t.Run(b.id+"_"+b.name, func(t *testing.T) {
			a := &attempt{T: t, scene: s}
			if b.try != nil {
				s.quiet(a)
				b.try(a)
			}
			out = append(out, tried{b, a.outcomes})
		})
	}
	return out
}

func firstDifference(is, want string) string {
	a, b := strings.Split(is, "\n"), strings.Split(want, "\n")
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return fmt.Sprintf("line %d is\n%s\nwant\n%s", i+1, at(a, i), at(b, i))
		}
	}
	return ""
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(nothing)"
}

// TestEveryWayIsHere: none of the 47 is forgotten, each says how it is tested, and the
// tests it refers to exist.
func TestEveryWayIsHere(t *testing.T) {
	all := ways()
	for i := 1; i <= 47; i++ {
		if id := fmt.Sprintf("B%02d", i); i > len(all) || all[i-1].id != id {
			t.Fatalf("%s is missing, or another is there twice", id)
		}
	}
	if len(all) != 47 {
		t.Errorf("%d ways, want 47", len(all))
	}
	tests := testsOf(t)
	for _, b := range slices.Concat(all, experiments, flaws) {
		if b.name == "" || b.title == "" {
			t.Errorf("%s has no name or no title", b.id)
		}
		if b.try == nil && len(b.tests) == 0 && b.note == "" {
			t.Errorf("%s is neither tried nor explained", b.id)
		}
		for _, name := range b.tests {
			if !tests[name] {
				t.Errorf("%s refers to %s, which does not exist", b.id, name)
			}
		}
	}
}

// TestASuccessIsSeen: an attack that gets through, or that fails for another reason than it
// should, fails the test.
func TestASuccessIsSeen(t *testing.T) {
	s := newScene(t)
	m, al, b := s.mallory, s.alice, s.bob
	open, closed := tcp(m.Addr4, 1, b.Addr4, openTCP, "S"), tcp(m.Addr4, 1, b.Addr4, closedTCP, "S")
	was := patience
	patience = 500 * time.Millisecond
	defer func() { patience = was }()
	for _, c := range []struct {
		name string
		try  func(*attempt)
		want string // of what is said, "" = nothing
	}{
		{"a drop", func(a *attempt) { a.drop("x", m, policy, closed, closed) }, ""},
		{"a pass", func(a *attempt) { a.pass("x", m, b, open) }, ""},
		{"what was to be dropped arrives", func(a *attempt) { a.drop("x", m, policy, open) }, "ns/bob received"},
		{"one of two arrives", func(a *attempt) { a.drop("x", m, policy, closed, open) }, "ns/bob received"},
		{"it goes outside", func(a *attempt) { a.drop("x", m, policy, udp(m.Addr4, 1, beyond4, 1)) }, "outside received"},
		{"another reason", func(a *attempt) { a.drop("x", m, spoofed, closed) }, `want 1 for "spoofed source"`},
		{"another sender", func(a *attempt) {
			a.pace(1)
			a.send("x", m, [][]byte{closed})
			a.recorded("x", al, policy, 1)
		}, "0 records"},
		{"what was to pass is dropped", func(a *attempt) { a.pass("x", m, b, closed) }, "does not arrive"},
		{"it arrives elsewhere", func(a *attempt) { a.pass("x", m, al, open) }, "does not arrive"},
	} {
		a := &attempt{T: t, scene: s, caught: &[]string{}}
		c.try(a)
		if said := strings.Join(*a.caught, "\n"); c.want == "" && said != "" || !strings.Contains(said, c.want) {
			t.Errorf("%s: said %q, want %q", c.name, said, c.want)
		}
	}
}
